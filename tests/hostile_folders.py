"""Ways to make a checkpoint hostile, each with the code that it is refused with: one change to a sound folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Change = Callable[[Path], None]

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET, VAE, TEXT = f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"
NOISE, WORDS = "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"


def fifo(path: str) -> Callable[[Path], None]:
    """Whoever opens it waits for ever."""

    def change(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        os.mkfifo(folder / path)

    return change


def link(path: str, to: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).symlink_to(to)

    return change


def write(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(text) and None


def said(path: str, **fields: object) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(json.dumps(json.loads((folder / path).read_text()) | fields)) and None


def huge(path: str) -> Callable[[Path], None]:
    """A gigabyte of nothing that takes no room."""
    return lambda folder: os.truncate(folder / path, 1 << 30)


def folder_instead(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).mkdir()

    return change


INDEX = f"unet/{WEIGHTS}.index.json"
DEEP = "[" * 200_000
MORE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights that are a pipe": (fifo(f"unet/{WEIGHTS}"), "weights_unreadable"),
    "weights that never end": (link(f"unet/{WEIGHTS}", "/dev/zero"), "weights_unreadable"),
    "weights that are a folder": (folder_instead(f"vae/{WEIGHTS}"), "weights_unreadable"),
    "weights that are this machine's secrets": (link(f"vae/{WEIGHTS}", "/etc/hostname"), "weights_truncated"),
    "weights that are linked in a circle": (link(f"vae/{WEIGHTS}", WEIGHTS), "weights_missing"),
    "an absolute shard": (write(INDEX, '{"weight_map": {"w": "/etc/hostname"}}'), "weights_missing"),
    "shards that are numbers": (write(INDEX, '{"weight_map": {"w": 3}}'), "weights_missing"),
    "a deep index of shards": (write(INDEX, DEEP), "weights_unreadable"),
    "a deep index": (write("model_index.json", DEEP), "bad_config"),
    "an index that is a pipe": (fifo("model_index.json"), "bad_config"),
    "a config that never ends": (link("unet/config.json", "/dev/zero"), "bad_config"),
    "a config of a gigabyte": (huge("unet/config.json"), "bad_config"),
    "a config that is a folder": (folder_instead("vae/config.json"), "bad_config"),
    "a vocabulary that never ends": (link("tokenizer/merges.txt", "/dev/zero"), "bad_config"),
    "more that never ends": (link("unet/notes.txt", "/dev/zero"), "bad_config"),
    "ten thousand blocks": (said("vae/config.json", block_out_channels=[1] * 10_000), "bad_config"),
    "a picture of no size": (said("celadon.json", width=0), "bad_config"),
    "a picture of words": (said("celadon.json", width="wide"), "bad_config"),
    "a thousand million levels": (said("scheduler/scheduler_config.json", num_train_timesteps=10**9), "bad_config"),
    "a thousand million layers of text": (said("text_encoder/config.json", num_hidden_layers=10**9), "bad_config"),
    "a thousand million layers a block": (said("unet/config.json", layers_per_block=10**9), "bad_config"),
    "a block without channels": (said("unet/config.json", block_out_channels=[0, 32]), "bad_config"),
    "half a channel": (said("unet/config.json", block_out_channels=[32.5, 64]), "bad_config"),
    "channels in a broken form": (said("unet/config.json", block_out_channels=[32.0, 64]), "bad_config"),
    "layers in lists in lists": (said("unet/config.json", layers_per_block=json.loads("[" * 400 + "1" + "]" * 400)), "bad_config"),
    "groups of nothing": (said("unet/config.json", norm_num_groups=0), "bad_config"),
    "latents of no size": (said("vae/config.json", scaling_factor=0), "bad_config"),
    "latents of words": (said("vae/config.json", scaling_factor="x"), "bad_config"),
    "latents that are no number": (said("vae/config.json", scaling_factor=float("nan")), "bad_config"),
    "no prompt": (said("tokenizer/tokenizer_config.json", model_max_length=-5), "bad_config"),
}


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def gone(*paths: str) -> Change:
    return lambda folder: [(folder / path).unlink() for path in paths] and None


def of_two_files(change: Change) -> Change:
    """What is changed in the older form of a tokenizer, a vocabulary and its merges, where there is no other."""
    return both(gone(WORDS), change)


def tokens(change: Callable[[dict[str, Any]], object]) -> Change:
    def write_back(folder: Path) -> None:
        told = json.loads((folder / WORDS).read_text())
        change(told)
        (folder / WORDS).write_text(json.dumps(told))

    return write_back


def numbered(by: Callable[[int], object]) -> Change:
    return tokens(lambda told: told["model"].update(vocab={word: by(number) for word, number in told["model"]["vocab"].items()}))


def without_marks(told: dict[str, Any]) -> None:
    told["added_tokens"] = []
    for mark in ("<|startoftext|>", "<|endoftext|>"):
        told["model"]["vocab"].pop(mark, None)


def tensor(path: str, ending: str, make: Callable[[torch.Tensor], torch.Tensor | None]) -> Change:
    """One tensor is made another, or goes."""

    def change(folder: Path) -> None:
        found = load_file(folder / path)
        name = next(name for name in found if name.endswith(ending))
        made = make(found.pop(name))
        save_file(found if made is None else found | {name: made}, folder / path, {"format": "pt"})

    return change


def every(path: str, dtype: torch.dtype) -> Change:
    return lambda folder: save_file({name: value.to(dtype) for name, value in load_file(folder / path).items()}, folder / path)


def wider(folder: Path) -> None:
    """A text encoder that is whole, and of another width than the U-Net reads."""
    said("text_encoder/config.json", hidden_size=48)(folder)
    found = load_file(folder / TEXT)
    save_file({name: torch.zeros([48 if side == 32 else side for side in value.shape]) for name, value in found.items()}, folder / TEXT)
    places = next(name for name in found if name.endswith("position_embedding.weight"))  # 32 of them, too
    tensor(TEXT, places, lambda _: torch.zeros(32, 48))(folder)


def twice(path: str) -> Change:
    """The first tensor's name stands there once more."""

    def change(folder: Path) -> None:
        data = (folder / path).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        name, entry = next((name, entry) for name, entry in json.loads(data[8:end]).items() if name != "__metadata__")
        text = data[8:end].rstrip()[:-1] + f",{json.dumps(name)}:{json.dumps(entry)}}}".encode()
        (folder / path).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    return change


def noise(**fields: object) -> Change:
    return said(NOISE, trained_betas=None, **fields)


TOKENIZERS: dict[str, Change] = {
    **{
        f"a tokenizer that is {text[:12]!r}": write(WORDS, text) for text in ("{}", "[]", "null", "3", "", '{"a": "b"}', '{"model": ', DEEP)
    },
    "a tokenizer that is a folder": folder_instead(WORDS),
    "a tokenizer without marks": tokens(without_marks),
    "a tokenizer without words": tokens(lambda told: told["model"].update(vocab={})),
    "a tokenizer without a model": tokens(lambda told: told.pop("model")),
    "merges of no words": tokens(lambda told: told["model"].update(merges=[["qq", "zz"]])),
    "words of large numbers": numbered(lambda number: number + 10**6),
    "words of words": numbered(str),
    "words below zero": numbered(lambda number: -number),
    "a mark that is no word": said("tokenizer/tokenizer_config.json", eos_token="nope"),
    "a mark that is a list": said("tokenizer/tokenizer_config.json", pad_token=["x"]),
    "marks that are a list": write("tokenizer/special_tokens_map.json", "[]"),
    "marks that are torn": write("tokenizer/special_tokens_map.json", '{"pad_'),
    "further words of large numbers": write("tokenizer/added_tokens.json", '{"<x>": 99999}'),
    "a vocabulary that is a list": of_two_files(write("tokenizer/vocab.json", "[]")),
    "a vocabulary that is torn": of_two_files(write("tokenizer/vocab.json", '{"a": 1,')),
    "a vocabulary of words": of_two_files(write("tokenizer/vocab.json", '{"a": "b"}')),
    "merges of three": of_two_files(write("tokenizer/merges.txt", "a b c\n")),
    "merges that are no text": of_two_files(lambda folder: (folder / "tokenizer/merges.txt").write_bytes(bytes(range(256))) and None),
}
MISFITS: dict[str, Change] = {
    "another shape": tensor(UNET, "conv_out.weight", lambda _: torch.zeros(4, 17, 3, 3)),
    "a weight that is missing": tensor(UNET, "attn2.to_k.weight", lambda _: None),
    "an offset that is missing": tensor(UNET, "conv_norm_out.bias", lambda _: None),
    "an offset of nothing": tensor(UNET, "conv_out.bias", lambda _: torch.zeros(0)),
    "an offset that is one number": tensor(UNET, "conv_out.bias", lambda _: torch.zeros(())),
    "whole numbers": tensor(UNET, "conv_out.weight", lambda value: value.to(torch.int8)),
    "whole numbers of a text encoder": every(TEXT, torch.int64),
    "yes and no": every(VAE, torch.bool),
    "no tensors": lambda folder: save_file({}, folder / UNET),
    "half an encoder": tensor(VAE, "encoder.conv_in.weight", lambda _: None),
    "a text encoder of other layers": said("text_encoder/config.json", num_hidden_layers=3),
    "a text encoder of another width": said("text_encoder/config.json", hidden_size=64),
    "fewer words": said("text_encoder/config.json", vocab_size=10),
    "more layers": said("unet/config.json", layers_per_block=3),
    "wider texts": said("unet/config.json", cross_attention_dim=64),
    "linear projections": said("unet/config.json", use_linear_projection=True),
    "a shard whose tensors nobody names": both(
        lambda folder: (folder / UNET).rename(folder / "unet/a.safetensors") and None,
        write(f"{UNET}.index.json", '{"weight_map": {"x": "a.safetensors"}}'),
    ),
}
CONFIGS: dict[str, Change] = {
    **{f"betas up to {beta}": noise(beta_end=beta) for beta in (inf, -inf, nan, 1e300, 5, -1, "x", None)},
    "a beta without end": write(NOISE, '{"beta_end": 1e400}'),
    "betas of nothing": noise(beta_start=0, beta_end=0),
    **{f"trained betas {betas}": said(NOISE, trained_betas=betas) for betas in ([0.1, inf], [], [[0.1, 0.2]], "x", [0.1, -0.2], [0.1])},
    "one level": noise(num_train_timesteps=1),
    "a prediction of nothing": noise(prediction_type="nope"),
    **{f"a flow shifted by {shift}": noise(_class_name="FlowMatchEulerDiscreteScheduler", shift=shift) for shift in (inf, -3, nan)},
    **{f"EDM up to {sigma}": noise(_class_name="EDMEulerScheduler", sigma_max=sigma) for sigma in (inf, 0, 1e200)},
    "an input scale of nearly nothing": said("celadon.json", input_scale=1e-200),
    "defaults of words": said("celadon.json", defaults={"steps": "x"}),
    "a sampler that is none": said("celadon.json", defaults={"sampler": "nope"}),
    "guidance without end": said("celadon.json", defaults={"guidance": inf}),
    "previews of another shape": said("celadon.json", latent_rgb={"matrix": [[1]], "bias": [1]}),
    "a title that is a list": said("celadon.json", title=["x"]),
    "groups that do not divide": said("unet/config.json", norm_num_groups=7),
    "other numbers of blocks": said("unet/config.json", down_block_types=["DownBlock2D"]),
    "blocks that nobody names": said("unet/config.json", down_block_types=[]),
    "depths of another number": said("unet/config.json", transformer_layers_per_block=[1]),
    "an epsilon of words": said("unet/config.json", norm_eps="x"),
    "a shift of words": said("unet/config.json", freq_shift="x"),
    "a timestep of no waves": said("unet/config.json", freq_shift=8),
    "padding of five": said("unet/config.json", downsample_padding=5),
    "pictures of four channels": said("vae/config.json", out_channels=4),
    "a VAE of other numbers of blocks": said("vae/config.json", up_block_types=["UpDecoderBlock2D"]),
    "layers of a VAE by level": said("vae/config.json", layers_per_block=[1, 1]),
    "heads that do not divide": said("text_encoder/config.json", num_attention_heads=5),
    "an activation of no name": said("text_encoder/config.json", hidden_act="nope"),
    "an epsilon below zero": said("text_encoder/config.json", layer_norm_eps=-1),
    "an end of words": said("text_encoder/config.json", eos_token_id="x"),
    "a type of no name": said("text_encoder/config.json", dtype="nope"),
    "attention of no name": said("text_encoder/config.json", _attn_implementation="nope"),
    "eight bits of a library": said("text_encoder/config.json", quantization_config={"quant_method": "bitsandbytes"}),
}
MORE |= {name: (change, "bad_config") for name, change in (TOKENIZERS | CONFIGS).items()}
MORE |= {name: (change, "weights_misfit") for name, change in MISFITS.items()}
MORE |= {
    "no words": (of_two_files(gone("tokenizer/vocab.json")), "not_diffusers"),
    "a tensor twice": (twice(UNET), "weights_unreadable"),
    "a text encoder under a name of diffusers": (
        lambda folder: (folder / TEXT).rename(folder / "text_encoder" / WEIGHTS) and None, "weights_missing",
    ),
    "texts that nobody reads": (wider, "unsupported_unet"),
    "a U-Net of no kind": (said("unet/config.json", down_block_types=["Nope", "Nope"]), "unsupported_unet"),
    "blocks that are a number": (said("unet/config.json", down_block_types=3), "unsupported_unet"),
    "a U-Net that is told a class": (said("unet/config.json", class_embed_type="timestep"), "unsupported_unet"),
    "a U-Net of no activation": (said("unet/config.json", act_fn="nope"), "unsupported_unet"),
    "a VAE of no activation": (said("vae/config.json", act_fn="nope"), "unsupported_vae"),
}  # fmt: skip
