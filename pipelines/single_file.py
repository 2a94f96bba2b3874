"""One file in the original layout (CompVis' latent diffusion, Stability's SGM for SDXL) -> a folder in diffusers layout, once.

Keys are renamed by diffusers' own conversions; what comes out is compared with the module that its config describes, so that nothing
is missing or of another shape. `python -m pipelines.single_file FILE OUT`, in a process of its own, since it needs torch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from pipelines import original
from pipelines.checkpoint_error import CheckpointError
from pipelines.empty_modules import shapes
from pipelines.original_layout import release_of
from pipelines.weight_files import check_finite, read_header

REFUSED = 2  # exit status; the reason is a line of JSON on standard error
NARROW = (torch.float8_e4m3fn, torch.float8_e5m2)  # kept as halves: nothing here computes in eight bits
Tensors = dict[str, torch.Tensor]


def convert(path: Path, out: Path) -> None:
    """Write the folder, whole or not at all. A folder beside the file with its name may hold configs of another size or celadon.json.

    Raises CheckpointError.
    """
    header = read_header(path)
    release = release_of(path.name, {name: tensor.shape for name, tensor in header.items()})
    check_finite(path)
    part = out.with_name(f"{out.name}.{uuid.uuid4().hex}")
    try:
        original.write_configs(part, release)
        _lay_over(path.with_suffix(""), part)
        tensors = {name: tensor.half() if tensor.dtype in NARROW else tensor for name, tensor in load_file(path).items()}
        _adjust(part, tensors)
        for name, kind in KINDS.items():
            if (part / name / "config.json").exists():
                _write(part / name, kind, _converted(name, tensors, json.loads((part / name / "config.json").read_text())), path.name)
        out.parent.mkdir(parents=True, exist_ok=True)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _lay_over(beside: Path, folder: Path) -> None:
    """What the folder beside the file holds takes the place of what the release has, part by part; weights are the file's alone."""
    for entry in beside.iterdir() if beside.is_dir() else ():
        if entry.is_dir():
            shutil.rmtree(folder / entry.name, ignore_errors=True)
            shutil.copytree(entry, folder / entry.name, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin"))
        elif entry.suffix == ".json":
            shutil.copy(entry, folder / entry.name)


def _adjust(folder: Path, tensors: Tensors) -> None:
    """What the weights say of themselves: inpainting's channels, and trainers' marks for v-prediction and zero terminal SNR."""
    unet, noise = folder / "unet" / "config.json", folder / "scheduler" / "scheduler_config.json"
    _change(unet, in_channels=tensors["model.diffusion_model.input_blocks.0.0.weight"].shape[1])
    if "v_pred" in tensors:
        _change(noise, prediction_type="v_prediction")
    if "ztsnr" in tensors:
        _change(noise, rescale_betas_zero_snr=True)


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=1) + "\n")


def _converted(name: str, tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """The weights of one part under diffusers' names."""
    if name == "unet":
        return convert_ldm_unet_checkpoint(tensors, config)
    if name == "vae":
        return convert_ldm_vae_checkpoint(tensors, config)
    prefix = "conditioner.embedders.1.model." if name == "text_encoder_2" else "cond_stage_model.model."
    if f"{prefix}positional_embedding" not in tensors:
        return convert_ldm_clip_checkpoint(tensors)
    return convert_open_clip_checkpoint(SimpleNamespace(config=SimpleNamespace(**config)), tensors, prefix=prefix)


def _write(folder: Path, kind: Any, found: Tensors, source: str) -> None:
    """Raises CheckpointError where the weights are not those that the config describes."""
    wanted = shapes(kind, folder)
    flat = {name.removeprefix("text_model."): tensor for name, tensor in found.items()}
    if missing := sorted(wanted.keys() - flat.keys()):
        raise CheckpointError(f"{source} has no {folder.name}: {missing[0]} and {len(missing) - 1} more are missing", "weights_missing")
    for name, shape in wanted.items():
        if tuple(flat[name].shape) != shape:
            has = "x".join(map(str, flat[name].shape))
            raise CheckpointError(f"{name} of the {folder.name} in {source} is {has}, not {'x'.join(map(str, shape))}", "weights_misfit")
    kept = {name: flat[name].contiguous().clone() for name in wanted}
    prefix = "text_model." if folder.name.startswith("text") else ""
    named = {name if name.startswith("text_projection") else prefix + name: tensor for name, tensor in kept.items()}
    save_file(named, folder / ("model.safetensors" if prefix else "diffusion_pytorch_model.safetensors"), metadata={"format": "pt"})


KINDS: Mapping[str, Any] = {
    "unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    try:
        convert(args.file, args.out)
    except CheckpointError as error:
        print(json.dumps({"code": error.code, "message": str(error)}), file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
