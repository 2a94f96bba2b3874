"""A folder of ControlNets in diffusers layout, a folder each, looked at without torch: which of them fit a model, and why others do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.card import ControlNetInfo
from pipelines.checkpoint_error import CheckpointError
from pipelines.checkpoint_folder import Described, read_json
from pipelines.weight_files import PICKLES, fingerprint, numbers_in, weight_files

EQUAL = {  # what must be as the U-Net's config has it, with diffusers' defaults
    "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 1280, "addition_embed_type": None,
    "projection_class_embeddings_input_dim": None, "addition_time_embed_dim": None, "class_embed_type": None, "encoder_hid_dim": None,
}  # fmt: skip
NO_GRAPH = "the OpenVINO backend has no graph of ControlNets: set CELADON_BACKEND=torch for its workers"


class ControlNetError(ValueError):
    """It is no ControlNet for this model; the message says why."""


def entries(folder: Path | None) -> Iterator[tuple[str, Path]]:
    """By name: folders, and files that somebody may take for one."""
    for path in sorted(folder.iterdir()) if folder else ():
        if path.is_dir():
            yield path.name, path
        elif path.suffix in (".safetensors", *PICKLES):
            yield path.stem, path


def unused(folder: Path | None, why: str = NO_GRAPH) -> tuple[ControlNetInfo, ...]:
    """All of them, with one reason why none can be used."""
    return tuple(ControlNetInfo(name, refused=why) for name, _ in entries(folder))


def checked(path: Path, said: Described) -> tuple[dict[str, Any], str]:
    """Its config and a hash of it. Raises ControlNetError."""
    if not path.is_dir():
        pickle = f"a {path.suffix} file is a pickle, which runs code where it is read"
        raise ControlNetError(pickle if path.suffix in PICKLES else "it is a single file; a folder in diffusers layout is read")
    try:
        config = read_json(path / "config.json")
        _fits(config, said.configs["unet"], said)
        numbers_in(path)
        return config, fingerprint([path / "config.json", *weight_files(path)])
    except ControlNetError:
        raise
    except CheckpointError as error:
        raise ControlNetError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ControlNetError("its config cannot be read") from error


def _fits(config: Mapping[str, Any], unet: Mapping[str, Any], said: Described) -> None:
    if config.get("_class_name") != "ControlNetModel":
        raise ControlNetError(f"it is a {config.get('_class_name', 'model of no name')}; only ControlNetModel runs here")
    for name, usual in EQUAL.items():
        if _plain(config.get(name, usual)) != _plain(unet.get(name, usual)):
            raise ControlNetError(f"it is of another model: {name} differs from the U-Net's")
    if config.get("in_channels", 4) != said.configs["vae"].get("latent_channels", 4) or config.get("conditioning_channels", 3) != 3:
        raise ControlNetError("it takes other channels than a latent's and a picture's three")
    if config.get("global_pool_conditions"):
        raise ControlNetError("it pools its answers, as guess mode does, which is not done here")
    if 2 ** (len(config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))) - 1) != said.vae_factor:
        raise ControlNetError("it is of another model: its latents have another size than the VAE's")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
