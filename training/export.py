"""Write a checkpoint folder in diffusers layout, with celadon.json: `python -m training.export`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from training.captions import shown_words
from training.checkpoint import Average, load, same_run, told
from training.noise import COSINE, Noise, add_arguments, noise_of
from training.sources import attribution
from training.text import build_text_encoder, save_tokenizer
from training.unet import build_unet
from training.vae import averaged

SHARD = "45MB"
DESCRIPTION = "204 everyday things in three styles, on ten backgrounds, in eight colours. Trained from scratch on a CPU."
FEW_STEPS = {"sampler": "lcm", "schedule": "lcm", "steps": 4, "guidance": 1.0, "guidance_rescale": 0.0}


def scheduler_for(prediction: str, noise: Noise) -> DDIMScheduler:
    """Ours for v_prediction; for epsilon the ladder of Stable Diffusion 1."""
    if prediction == "v_prediction":
        return DDIMScheduler(
            trained_betas=noise.betas(), prediction_type=prediction, rescale_betas_zero_snr=True, timestep_spacing="trailing",
            steps_offset=1, clip_sample=False, set_alpha_to_one=True,
        )  # fmt: skip
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction, timestep_spacing="leading",
        steps_offset=1, clip_sample=False, set_alpha_to_one=False,
    )  # fmt: skip


def fold_statistics(vae: AutoencoderKL, mean: np.ndarray, std: np.ndarray) -> None:
    """Move the latents' normalisation into the two 1x1 convolutions around them, exactly: no scaling factor remains."""
    m, s = torch.from_numpy(mean).float(), torch.from_numpy(std).float()
    with torch.no_grad():
        quant, post = vae.quant_conv, vae.post_quant_conv
        quant.weight[:4] /= s.view(4, 1, 1, 1)
        quant.bias[:4] = (quant.bias[:4] - m) / s
        quant.bias[4:] -= 2 * s.log()  # log-variance
        post.bias += post.weight[:, :, 0, 0] @ m
        post.weight *= s.view(1, 4, 1, 1)


def latent_rgb(latents: np.ndarray, pictures: np.ndarray) -> dict[str, list]:
    """Least squares from a latent [n, 4, h, w] to the mean colour of its pixels, 0..1: the cheap preview."""
    n, _, h, w = latents.shape
    block = pictures.shape[1] // h
    rgb = pictures.reshape(n, h, block, w, block, 3).mean((2, 4)).reshape(-1, 3) / 255
    z = latents.transpose(0, 2, 3, 1).reshape(-1, 4).astype(np.float64)
    solution, *_ = np.linalg.lstsq(np.concatenate([z, np.ones((len(z), 1))], 1), rgb, rcond=None)
    rounded = solution.round(5).tolist()
    return {"matrix": rounded[:4], "bias": rounded[4]}


def card(name: str, title: str, description: str, preview: dict[str, list], **changes: object) -> dict[str, object]:
    """celadon.json: what the service announces about the model."""
    defaults = {"sampler": "unipc", "schedule": "auto", "steps": 10, "guidance": 3.0, "guidance_rescale": 0.7}
    return {
        "schema": 1, "id": name, "title": title, "description": description, "license": "Apache-2.0", "width": 128, "height": 128,
        "max_width": 512, "max_height": 512, "defaults": defaults, "words": shown_words(), "latent_rgb": preview,
    } | changes  # fmt: skip


def write_checkpoint(
    folder: Path, unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL, celadon: dict[str, object],
    prediction: str = "v_prediction", noise: Noise = COSINE,
) -> None:  # fmt: skip
    """Half precision, in shards below what code hosting minds."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, module in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        module.eval().to(memory_format=torch.contiguous_format).half().save_pretrained(folder / part, max_shard_size=SHARD)
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # written readable by the owner alone
    config = folder / "text_encoder" / "config.json"  # transformers would load half precision, diffusers loads single
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    save_tokenizer(tokenizer, folder / "tokenizer")
    scheduler_for(prediction, noise).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None], "safety_checker": [None, None],
        "requires_safety_checker": False, "image_encoder": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "celadon.json").write_text(json.dumps(celadon | noise.on_card(), indent=1) + "\n")


def trained(root: Path, noise: Noise) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer, int]:
    """U-Net and text encoder with averaged weights, and the pictures seen. Raises SystemExit where they were trained with other noise."""
    state, tokenizer = load(root / "unet.pt"), CLIPTokenizer.from_pretrained(root / "tokenizer")
    same_run(root / "unet.pt", state, told(noise))
    unet, text = build_unet(), build_text_encoder(tokenizer)
    put(state["average"], unet, text)
    return unet, text, tokenizer, state["images"]


def put(averages: list[torch.Tensor], *modules: torch.nn.Module) -> None:
    average = Average(modules, 0.0)
    average.restore(averages)
    average.swap()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"))
    parser.add_argument("--out", type=Path, help="models/celadon-mini, or models/celadon-mini-lcm for --few-steps")
    parser.add_argument("--few-steps", action="store_true", help="the U-Net of `training.lcm`, drawn in 4 steps without guidance")
    add_arguments(parser)
    args = parser.parse_args()
    name, title, changes = "celadon-mini", "Celadon mini", {}
    unet, text, tokenizer, images = trained(args.root, noise_of(args))
    if args.few_steps:
        put(load(args.root / "lcm.pt")["average"], unet)
        name, title, changes = "celadon-mini-lcm", "Celadon mini, few steps", {"defaults": FEW_STEPS}
    vae, data = averaged(args.root), args.root / "data"
    fold_statistics(vae, *np.load(data / "latent_stats.npy"))
    preview = latent_rgb(np.load(data / "latents.npy", mmap_mode="r")[:2000], np.load(data / "pictures.npy", mmap_mode="r")[:2000])
    out = args.out or Path("models") / name
    write_checkpoint(out, unet, text, tokenizer, vae, card(name, title, DESCRIPTION, preview, **changes), noise=noise_of(args))
    (out / "ATTRIBUTION.md").write_text(attribution(), encoding="utf-8")
    print(f"{out}: weights after {images} pictures")


if __name__ == "__main__":
    main()
