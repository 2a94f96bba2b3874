"""Checkpoints in diffusers layout (Stable Diffusion 1.x and 2.x) -> modules and a ModelCard.

The modules are diffusers' and transformers' own; accelerate places their weights without a second copy. Only safetensors
are read. A `celadon.json` beside `model_index.json` adds what diffusers has no place for: sizes, defaults, words, and the
latent-to-RGB map of previews.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines import guidance_list, samplers, schedules
from pipelines.card import Defaults, ModelCard
from pipelines.ladder import Ladder
from pipelines.perturbation import self_attentions
from pipelines.solver_files import Solver, SolverError, read_solvers

LIMIT_PX = 1024  # of a checkpoint that does not say how far beyond its training size it may go
HUB_FILES = ["*.json", "*/*.json", "*/*.txt", "*/*.safetensors", "celadon.json"]
HASHED = {".safetensors", ".json", ".txt"}

# Least-squares map from SD 1.x latents to RGB in [0, 1], for checkpoints that bring none of their own.
SD_LATENT_RGB = ([[0.149, 0.104, 0.092], [0.098, 0.144, 0.129], [-0.095, 0.094, 0.135], [-0.092, -0.136, -0.228]], [0.5, 0.5, 0.5])


class CheckpointError(ValueError):
    """The folder is no checkpoint that this program can run; the message says what is missing."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The modules of one model, in eval mode on their device, and what is known of it."""

    card: ModelCard
    ladder: Ladder
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    device: torch.device
    dtype: torch.dtype  # of the U-Net; text encoder and VAE stay float32 on a CPU
    latent_rgb: tuple[NDArray[np.float32], NDArray[np.float32]]  # matrix [C, 3], bias [3]
    solvers: Mapping[str, Solver] = field(default_factory=dict)  # from files, by id

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.unet.config.in_channels, height // self.vae_factor, width // self.vae_factor


def load(source: str | Path, *, device: torch.device, dtype: torch.dtype, solvers: Path | None = None) -> Checkpoint:
    """Load a local folder or a hub id, and solvers from its folder `solvers` and from that one.

    Raises CheckpointError where it is no SD 1.x or 2.x checkpoint in diffusers layout, or a solver cannot run on it.
    """
    folder = resolve(source)
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "StableDiffusionPipeline":
        kind = index.get("_class_name", "unknown")
        raise CheckpointError(f"{folder.name} is a {kind} checkpoint; only StableDiffusionPipeline runs here")
    extra = read_json(folder / "celadon.json") if (folder / "celadon.json").exists() else {}
    ladder = read_ladder(folder, extra)
    rest = torch.float32 if device.type == "cpu" else dtype
    unet = _module(UNet2DConditionModel, folder / "unet", device, dtype)
    vae = _module(AutoencoderKL, folder / "vae", device, rest)
    text_encoder = _module(CLIPTextModel, folder / "text_encoder", device, rest)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    perturbable, trained_px = bool(self_attentions(unet)), unet.config.sample_size * factor
    card = build_card(folder, extra, ladder, trained_px, factor, tokenizer.model_max_length - 2, perturbable=perturbable)
    matrix, bias = (extra["latent_rgb"]["matrix"], extra["latent_rgb"]["bias"]) if "latent_rgb" in extra else SD_LATENT_RGB
    latent_rgb = np.asarray(matrix, np.float32), np.asarray(bias, np.float32)
    known = _solvers(folder, solvers, ladder)
    return Checkpoint(_with_solvers(card, known, solvers), ladder, tokenizer, text_encoder, unet, vae, device, dtype, latent_rgb, known)


def _solvers(folder: Path, further: Path | None, ladder: Ladder) -> dict[str, Solver]:
    try:
        return read_solvers([folder / "solvers", *([further] if further else [])], ladder)
    except SolverError as error:
        raise CheckpointError(str(error)) from error


def _with_solvers(card: ModelCard, solvers: Mapping[str, Solver], further: Path | None) -> ModelCard:
    """They are announced like the others. Those outside the checkpoint's folder are not in its hash, and decide pictures too."""
    digest = hashlib.sha256(card.hash.encode())
    outside = sorted(further.glob("*.json")) if further else []
    for path in outside:
        digest.update(path.read_bytes())
    hash = digest.hexdigest()[:16] if outside else card.hash
    return replace(card, samplers=(*card.samplers, *(solver.info() for solver in solvers.values())), hash=hash)


def read_ladder(folder: Path, extra: Mapping[str, Any]) -> Ladder:
    """The training levels, and how input was scaled and normalised (arXiv 2301.10972): `input_scale` and `normalize` of celadon.json."""
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    try:
        return Ladder.from_config(config, input_scale=extra.get("input_scale", 1.0), normalize=extra.get("normalize"))
    except ValueError as error:
        raise CheckpointError(f"{folder.name} cannot run here: {error}") from error


def resolve(source: str | Path) -> Path:
    """The checkpoint's local folder; a hub id ("owner/name") is fetched once into the hub's own cache."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "model_index.json").exists():
            raise CheckpointError(f"{folder.name} holds no model_index.json: it is not a checkpoint in diffusers layout")
        return folder
    if str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise CheckpointError(f"no folder {folder.name}: name an existing folder in diffusers layout, or a hub id such as owner/name")
    return Path(snapshot_download(str(source), allow_patterns=HUB_FILES))


def build_card(
    folder: Path, extra: Mapping[str, Any], ladder: Ladder, trained_px: int, factor: int, prompt_tokens: int, *, perturbable: bool
) -> ModelCard:
    """The card of a checkpoint: `celadon.json` where it speaks, the configs where it does not."""
    if extra.get("schema", 1) != 1:
        raise CheckpointError(f"celadon.json has schema {extra['schema']}; this program reads schema 1")
    defaults = Defaults(**extra.get("defaults", {}))
    width, height = extra.get("width", trained_px), extra.get("height", trained_px)
    return ModelCard(
        id=extra.get("id", folder.resolve().name),
        title=extra.get("title", folder.resolve().name),
        description=extra.get("description", ""),
        license=extra.get("license", "unknown"),
        hash=checkpoint_hash(folder),
        prediction_type=ladder.prediction_type,
        width=width,
        height=height,
        max_width=extra.get("max_width", max(LIMIT_PX, width)),
        max_height=extra.get("max_height", max(LIMIT_PX, height)),
        size_multiple=factor,
        max_steps=1000,
        max_prompt_tokens=prompt_tokens,
        defaults=defaults,
        samplers=samplers.catalog(ladder),
        schedules=schedules.catalog(ladder),
        guidances=guidance_list.catalog(defaults.guidance_rescale, perturbable=perturbable),
        words=tuple(extra.get("words", ())),
    )


def checkpoint_hash(folder: Path) -> str:
    """Sixteen hex digits of the SHA-256 over everything that decides a picture: weights, configs, vocabulary."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in HASHED):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path.parent.name}/{path.name} is missing: it is not a whole checkpoint in diffusers layout")
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def _module(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """One module in eval mode. The weights go through accelerate's empty initialisation, never through pickle."""
    module = kind.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=True, dtype=dtype)
    return module.to(device).eval().requires_grad_(False)
