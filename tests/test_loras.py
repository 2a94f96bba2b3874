"""LoRA files: equal to diffusers with PEFT in every form, on both backends, in batches that leave each other alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import save_file

from pipelines.checkpoint_folder import describe
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.loading import Checkpoint, load
from pipelines.openvino_model import Compiler, OpenVinoDenoiser, OpenVinoStages
from pipelines.params import GenerationParams, LoraUse
from pipelines.prompts import Reading
from pipelines.text_to_image import TorchStages, denoise
from tests import lora_files
from tests.checkpoints import write
from tests.test_openvino import drawn, relative, request


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write(tmp_path_factory.mktemp("model") / "sd", "sd1")


@pytest.fixture(scope="module")
def loras(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`noted` is `film` in the other form, with its alpha in the header."""
    here = tmp_path_factory.mktemp("loras")
    ink, film = lora_files.layers(folder, 1), lora_files.layers(folder, 2)
    lora_files.peft(here / "ink.safetensors", ink)
    lora_files.kohya(here / "film.safetensors", film, alpha=1.5)
    lora_files.peft(here / "noted.safetensors", film, alpha=1.5)
    lora_files.old_diffusers(here / "old.safetensors", ink)
    return here


def asked(*worn: tuple[str, float], **changes: Any) -> GenerationParams:
    usual: dict[str, Any] = {"prompt": "a red apple", "sampler": "ddim", "steps": 2, "guidance": 3.0, "width": 64, "height": 64}
    return request(**usual | {"loras": tuple(LoraUse(*one) for one in worn)} | changes)


def reference(folder: Path, loras: Path, params: GenerationParams) -> np.ndarray:
    """diffusers' latents [C, h, w], by PEFT's adapters."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    for name, _ in params.worn:
        pipe.load_lora_weights(str(loras), weight_name=f"{name}.safetensors", adapter_name=name)
    if params.worn:
        pipe.set_adapters([name for name, _ in params.worn], [weight for _, weight in params.worn])
    latents = pipe(
        params.prompt, negative_prompt=params.negative_prompt, num_inference_steps=params.steps, guidance_scale=params.guidance,
        width=params.width, height=params.height, generator=torch.Generator("cpu").manual_seed(params.seed), output_type="latent",
    ).images[0]  # fmt: skip
    return np.asarray(latents)


INK, FILM, OLD = asked(("ink", 0.8)), asked(("film", 1.0), seed=3), asked(("old", -0.5), seed=4)
BOTH = asked(("ink", 0.4), ("film", 0.6), seed=5)


@pytest.mark.timeout(180)  # diffusers loads a pipeline for each
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_the_same_latents_as_diffusers(folder: Path, loras: Path) -> None:
    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32, loras=loras)
    assert [info.refused for info in checkpoint.card.loras] == [""] * 4
    plain = denoise(checkpoint, asked())
    for params in (INK, FILM, OLD, BOTH):
        wanted = reference(folder, loras, params)
        assert np.abs(denoise(checkpoint, params) - wanted).max() <= 1e-3, params.worn
        assert relative(plain, wanted) > 0.05, "a LoRA that changes nothing would make the comparison empty"
    noted = denoise(checkpoint, asked(("noted", 1.0), seed=3))
    assert np.abs(denoise(checkpoint, FILM) - noted).max() < 1e-4, "alpha in the tensors is alpha in the header"
    named = asked(prompt="a red apple<lora:ink:0.8>", prompt_syntax="a1111")
    assert np.array_equal(denoise(checkpoint, named), denoise(checkpoint, INK))


@pytest.mark.timeout(120)
def test_openvino_draws_the_same_and_without_loras_what_it_draws_without_any(folder: Path, loras: Path) -> None:
    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32, loras=loras)
    said = describe(folder)
    compiler = Compiler(said, None, threads=1, loras=loras)
    stages, graphs = OpenVinoStages(said, compiler), OpenVinoDenoiser(compiler.forms("float32"), said.configs["unet"])
    assert stages.card.loras == checkpoint.card.loras
    crowd = [BOTH, asked(seed=6), INK]
    together = drawn(stages, graphs, crowd, rows=2)
    for params, latents in zip(crowd, together, strict=True):
        assert relative(latents, denoise(checkpoint, params)) < 1e-4
        assert np.array_equal(latents, drawn(stages, graphs, [params], rows=2)[0])
    assert np.array_equal(together[1], drawn(*plainly(folder), [crowd[1]], rows=2)[0])


def plainly(folder: Path) -> tuple[OpenVinoStages, OpenVinoDenoiser]:
    """Of a worker that has never heard of LoRAs."""
    said = describe(folder)
    compiler = Compiler(said, None, threads=1)
    return OpenVinoStages(said, compiler), OpenVinoDenoiser(compiler.forms("float32"), said.configs["unet"])


@pytest.mark.timeout(120)
def test_jobs_with_and_without_leave_each_other_alone_to_the_bit(folder: Path, loras: Path) -> None:
    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32, loras=loras)
    crowd = [INK, BOTH, asked(seed=8), asked(("ink", 0.8), seed=9, guidance=1.0), asked(("ink", 0.8), prompt="a cat", seed=10)]
    together = drawn(*dressed(checkpoint), crowd, rows=2)
    for params, latents in zip(crowd, together, strict=True):
        assert np.array_equal(latents, drawn(*dressed(checkpoint), [params], rows=2)[0])
        assert relative(latents, denoise(checkpoint, params)) < 1e-4
    other = load(folder, device=torch.device("cpu"), dtype=torch.float32)
    assert np.array_equal(together[2], drawn(*dressed(other), [asked(seed=8)], rows=2)[0]), "as if there were no LoRAs"


def dressed(checkpoint: Checkpoint) -> tuple[Any, Any]:
    unet = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype, wardrobe=checkpoint.wardrobe)
    return TorchStages(checkpoint), unet


def test_sdxl_wears_them_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "xl", "sdxl")
    (tmp_path / "loras").mkdir()
    made = lora_files.layers(folder, 3)
    lora_files.peft(tmp_path / "loras" / "ink.safetensors", made)
    lora_files.kohya(tmp_path / "loras" / "film.safetensors", made, alpha=3.0)
    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32, loras=tmp_path / "loras")
    assert [info.refused for info in checkpoint.card.loras] == ["", ""]
    stages = TorchStages(checkpoint)
    plain, worn, same = (stages.encode("a cat", Reading(loras=set)) for set in ((), (("ink", 0.7),), (("film", 0.7),)))
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.load_lora_weights(str(tmp_path / "loras"), weight_name="ink.safetensors", adapter_name="ink")
    pipe.set_adapters(["ink"], [0.7])
    with torch.inference_mode():
        states, _, pooled, _ = pipe.encode_prompt("a cat", do_classifier_free_guidance=False)
    assert np.abs(worn.states - states[0].numpy()).max() < 1e-4 and np.abs(worn.pooled - pooled[0].numpy()).max() < 1e-4
    assert np.abs(worn.states - plain.states).max() > 0.05 and np.abs(worn.states - same.states).max() < 1e-5


ORIGINAL = {  # written down by hand, of a U-Net with one layer a block
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_3_1_transformer_blocks_1_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
    "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
    "output_blocks_1_1_transformer_blocks_0_attn2_to_k": "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k",
    "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_2_0_emb_layers_1": "up_blocks.1.resnets.0.time_emb_proj",
}


def test_kohyas_names_for_sdxl_are_those_of_the_original_layout(tmp_path: Path) -> None:
    folder = write(tmp_path / "xl", "sdxl")
    pipe, generator, tensors = DiffusionPipeline.from_pretrained(folder), torch.Generator().manual_seed(0), {}
    for name, layer in ORIGINAL.items():
        shape = pipe.unet.get_submodule(layer).weight.shape
        up = torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=generator)
        tensors |= {f"lora_unet_{name}.lora_down.weight": torch.randn(2, *shape[1:], generator=generator)}
        tensors |= {f"lora_unet_{name}.lora_up.weight": up, f"lora_unet_{name}.alpha": torch.tensor(1.0)}
    (tmp_path / "loras").mkdir()
    save_file(tensors, tmp_path / "loras" / "ink.safetensors")
    wardrobe = load(folder, device=torch.device("cpu"), dtype=torch.float32, loras=tmp_path / "loras").wardrobe
    assert [info.refused for info in wardrobe.loras.infos] == [""]
    assert {name.removesuffix(".weight") for name in wardrobe.loras.deltas("unet", (("ink", 1.0),))} == set(ORIGINAL.values())
    attentions = {name: tensor for name, tensor in tensors.items() if "transformer_blocks" in name or "proj_in" in name}
    save_file(attentions, tmp_path / "loras" / "ink.safetensors")
    pipe.load_lora_weights(str(tmp_path / "loras"), weight_name="ink.safetensors", adapter_name="ink")
    x, told = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 32, 48, generator=generator)
    further = {"text_embeds": torch.randn(1, 22, generator=generator), "time_ids": torch.ones(1, 6) * 64}
    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32, loras=tmp_path / "loras")
    with torch.inference_mode(), checkpoint.wardrobe.wearing("unet", (("ink", 1.0),)):
        wanted = pipe.unet(x, 500, told, added_cond_kwargs=further)[0]
        assert (checkpoint.unet(x, 500, told, added_cond_kwargs=further)[0] - wanted).abs().max() < 1e-4


def pair(name: str, *down: int, up: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_A.weight": torch.zeros(down), f"{name}.lora_B.weight": torch.zeros(up)}


BAD: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "half": ({"unet.conv_in.lora_A.weight": torch.zeros(2, 4, 3, 3)}, "one half"),
    "dora": ({"lora_unet_conv_in.dora_scale": torch.zeros(2)}, "DoRA"),
    "loha": ({"lora_unet_conv_in.hada_w1_a": torch.zeros(2, 2)}, "LoHa"),
    "other": (pair("unet.no_such", 2, 4, up=(4, 2)), "another model"),
    "size": (pair("unet.conv_in", 2, 9, 3, 3, up=(12, 2, 1, 1)), "another size"),
    "empty": (pair("unet.conv_in", 0, 4, 3, 3, up=(12, 0, 1, 1)), "another size"),
    "numbers": (pair("unet.conv_in", up=(12, 2, 1, 1)), "another size"),
    "weights": ({"conv_in.weight": torch.zeros(2, 4)}, "none of a LoRA"),
}


UNREADABLE = ("cut", "huge", "list", "deep", "endless", "pipe")


def test_what_is_no_lora_of_the_model_is_refused_with_its_reason(folder: Path, tmp_path: Path) -> None:
    for name, (tensors, _) in BAD.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "size.safetensors").read_bytes()[:30])
    (tmp_path / "huge.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")
    (tmp_path / "list.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    (tmp_path / "deep.safetensors").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    (tmp_path / "endless.safetensors").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.pt")
    found = {info.name: info.refused for info in load(folder, device=torch.device("cpu"), dtype=torch.float32, loras=tmp_path).card.loras}
    for name, (_, why) in BAD.items():
        assert why in found[name], name
    assert "pickle" in found["old"] and all("cannot be read" in found[name] for name in UNREADABLE)
