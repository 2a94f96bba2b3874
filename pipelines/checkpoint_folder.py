"""A checkpoint folder in diffusers layout (Stable Diffusion 1.x, 2.x, XL and what was distilled from them), read without torch: configs,
card, ladder, solvers.

A `celadon.json` beside `model_index.json` adds what diffusers has no place for: sizes, defaults, words, and the latent-to-RGB map of
previews.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import guidance_list, samplers, schedules
from pipelines.card import Defaults, ModelCard
from pipelines.checkpoint_checks import check_parts
from pipelines.checkpoint_error import CheckpointError
from pipelines.conditioning import Told
from pipelines.config_bounds import check_counts, check_said
from pipelines.ladder import Ladder
from pipelines.params import KINDS
from pipelines.prompts import SYNTAXES
from pipelines.solver_files import Solver, SolverError, read_solvers
from pipelines.sources import local, slug
from pipelines.upscaler import METHOD, PART, Recipe
from pipelines.weight_files import read_object, tensors_in
from pipelines.weight_shapes import check_weights, superres_shapes

LIMIT_PX = 1024  # a side, or twice the trained one, of a checkpoint that does not say how far beyond its training size it may go
MOST_BLOCKS = 8  # of a VAE, each of which halves the sides: latents of a 128th
SMALL = 32  # places a side of latents
LEAST_TOKENS = 3  # start, a word and end
HASHED = {".safetensors", ".json", ".txt"}
OF_SD = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "LatentConsistencyModelPipeline")
OF_SDXL = ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline")
PARTS = ("unet", "vae", "text_encoder")

# Least-squares map from SD 1.x latents to RGB in [0, 1], for checkpoints that bring none of their own.
SD_LATENT_RGB = ([[0.149, 0.104, 0.092], [0.098, 0.144, 0.129], [-0.095, 0.094, 0.135], [-0.092, -0.136, -0.228]], [0.5, 0.5, 0.5])


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """What is known of a checkpoint before any weight is read."""

    folder: Path
    card: ModelCard
    ladder: Ladder
    latent_rgb: tuple[NDArray[np.float32], NDArray[np.float32]]  # matrix [C, 3], bias [3]
    solvers: Mapping[str, Solver]  # from files, by id
    configs: Mapping[str, Mapping[str, Any]]  # of unet, vae and text_encoder, and of superres where there is one
    vae_factor: int  # pixels per latent cell and side
    tokens: int  # of a prompt, start and end included
    told: Told  # what the U-Net takes beside timestep and text
    zero_negative: bool  # an empty negative prompt is no text at all
    parameters: int  # numbers in all weights

    @property
    def text_widths(self) -> dict[str, int]:
        """Of the vectors that its text encoders read, by part."""
        return {part: int(config.get("hidden_size", 512)) for part, config in self.configs.items() if part.startswith("text_encoder")}

    @property
    def small(self) -> bool:
        """Whether the U-Net was made for so few places that starting its operations takes a good part of its time. On OpenVINO it has a
        second graph then, and does attention step by step, not in one operation by pieces.
        """
        size = self.configs["unet"].get("sample_size") or 64
        return (max(size) if isinstance(size, list | tuple) else int(size)) <= SMALL

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latent."""
        return self.configs["vae"].get("latent_channels", 4), height // self.vae_factor, width // self.vae_factor


def describe(source: str | Path, solvers: Path | None = None, cache: Path | None = None) -> Described:
    """Read a local folder, a hub id or a single file (converted into `cache`), with solvers from its folder `solvers` and from that one.

    Raises CheckpointError where it is no checkpoint of Stable Diffusion 1.x, 2.x or XL, or a solver cannot run on it.
    """
    folder, name = local(source, cache)
    try:
        return _described(folder, name, solvers)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror or error}", "not_found") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise CheckpointError(f"the configs of {name} cannot be read: {type(error).__name__} {error}", "bad_config") from error


def _described(folder: Path, name: str, solvers: Path | None) -> Described:
    index = read_json(folder / "model_index.json")
    parts = _parts(folder, index)
    extra = read_json(folder / "celadon.json") if (folder / "celadon.json").exists() else {}
    configs = {part: read_json(folder / part / "config.json") for part in parts}
    for part, config in configs.items():
        check_counts(part, config)
    check_said(extra, configs["vae"].get("latent_channels", 4))
    ladder = read_ladder(folder, extra)
    configs |= _upscaler(folder)
    told, kinds = _told(folder, configs), _kinds(folder, configs)
    tensors = {part: tensors_in(folder / part) for part in parts}
    parameters = sum(math.prod(tensor.shape) for found in tensors.values() for tensor in found.values())
    if configs["vae"].get("latents_mean") or configs["vae"].get("latents_std"):  # Playground's: no scaling factor says it
        raise CheckpointError(f"the VAE of {folder.name} normalises each channel of its latents, which is not done here", "unsupported_vae")
    blocks = configs["vae"]["block_out_channels"]
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= MOST_BLOCKS:
        raise TypeError(f"block_out_channels of the VAE is no list of 1 to {MOST_BLOCKS}")
    factor = 2 ** (len(blocks) - 1)
    tokens = _tokens(folder, configs["text_encoder"])
    check_parts(folder, {part: configs[part] for part in parts}, tensors)
    named = {"id": name, "title": folder.resolve().name if folder.name == name else name} | extra
    card = build_card(folder, named, ladder, (configs["unet"].get("sample_size") or 64) * factor, factor, tokens - 2, configs["unet"])
    card = replace(card, kinds=kinds, size_conditioning=told.sizes > 0, distilled_guidance=told.scale > 0)
    card = replace(card, max_clip_skip=_layers(configs), upscalers=(METHOD,) if PART in configs else ())
    zero_negative = parts != PARTS and bool(index.get("force_zeros_for_empty_prompt", True))
    matrix, bias = (extra["latent_rgb"]["matrix"], extra["latent_rgb"]["bias"]) if "latent_rgb" in extra else SD_LATENT_RGB
    latent_rgb = np.asarray(matrix, np.float32), np.asarray(bias, np.float32)
    known = _solvers(folder, solvers, ladder)
    card = _with_solvers(card, known, solvers)
    _check_defaults(card)
    return Described(folder, card, ladder, latent_rgb, known, configs, factor, tokens, told, zero_negative, parameters)


def _check_defaults(card: ModelCard) -> None:
    """Raises ValueError where what it draws with by default cannot be drawn with."""
    named = card.defaults.sampler, card.defaults.schedule
    if named[0] not in {info.id for info in card.samplers} or named[1] not in {"auto", *(info.id for info in card.schedules)}:
        raise ValueError(f"the model cannot be drawn with its defaults {' on '.join(named)}")


def _parts(folder: Path, index: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules of the pipeline that the index names. Raises CheckpointError where it is none of ours."""
    kind = index.get("_class_name", "unknown")
    if kind in OF_SD:
        return PARTS
    if kind not in OF_SDXL and not str(kind).startswith("StableDiffusionXL"):
        raise CheckpointError(
            f"{folder.name} is a {kind} checkpoint; only {', '.join((*OF_SD, *OF_SDXL))} run here", "unsupported_pipeline"
        )
    if (index.get("text_encoder") or [None])[0] is None or index.get("requires_aesthetics_score"):
        raise CheckpointError(
            f"{folder.name} is SDXL's refiner, which goes on where a base model ends; only base models run here", "refiner"
        )
    if kind not in OF_SDXL:
        raise CheckpointError(
            f"{folder.name} is a {kind} checkpoint; only {', '.join((*OF_SD, *OF_SDXL))} run here", "unsupported_pipeline"
        )
    return (*PARTS, "text_encoder_2")


def _upscaler(folder: Path) -> dict[str, dict[str, Any]]:
    """The config of the network that doubles its pictures, if it brings one. Raises CheckpointError where there are no weights of it."""
    if not (folder / PART / "config.json").exists():
        return {}
    config = read_json(folder / PART / "config.json")
    Recipe.from_config(config)
    check_weights(PART, superres_shapes(config["shape"]), tensors_in(folder / PART))
    return {PART: config}


def _told(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> Told:
    try:
        told = Told.from_config(configs["unet"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.name} cannot run here: {error}", "unsupported_unet") from error
    pools = configs["text_encoder_2"].get("projection_dim", 512) if "text_encoder_2" in configs else 0
    if told.pooled != pools:
        raise CheckpointError(
            f"the U-Net of {folder.name} takes a pooled text of {told.pooled} numbers; its text encoders make {pools}", "unsupported_unet"
        )
    return told


def _layers(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """How many layers of the text encoders may be the one that is read: SDXL never reads the last."""
    encoders = [configs[part] for part in ("text_encoder", "text_encoder_2") if part in configs]
    fewest: int = min(config.get("num_hidden_layers", 12) for config in encoders)
    return fewest - (len(encoders) - 1)


def _kinds(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """What the U-Net's input allows: latents, or latents beside a mask and the latents of a masked picture."""
    takes, latents = configs["unet"].get("in_channels", 4), configs["vae"].get("latent_channels", 4)
    if takes == latents:
        return KINDS
    if takes == 2 * latents + 1:
        return ("inpaint", "outpaint")
    message = f"the U-Net of {folder.name} takes {takes} channels: neither {latents} nor, as for inpainting, {2 * latents + 1}"
    raise CheckpointError(message, "unsupported_unet")


def _tokens(folder: Path, text: Mapping[str, Any]) -> int:
    said = read_json(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length", 77)
    found = min(int(said), int(text.get("max_position_embeddings", 77)))
    if found < LEAST_TOKENS:
        raise ValueError(f"a prompt of {found} tokens holds no word")
    return found


def _solvers(folder: Path, further: Path | None, ladder: Ladder) -> dict[str, Solver]:
    try:
        return read_solvers([folder / "solvers", *([further] if further else [])], ladder)
    except SolverError as error:
        raise CheckpointError(str(error), "bad_solver") from error


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
        check_counts("scheduler", config)
        return Ladder.from_config(config, input_scale=extra.get("input_scale", 1.0), normalize=extra.get("normalize"))
    except ValueError as error:
        raise CheckpointError(f"{folder.name} cannot run here: {error}") from error


def build_card(
    folder: Path, extra: Mapping[str, Any], ladder: Ladder, trained_px: int, factor: int, prompt_tokens: int, unet: Mapping[str, Any]
) -> ModelCard:
    """The card of a checkpoint: `celadon.json` where it speaks, the configs where it does not."""
    if extra.get("schema", 1) != 1:
        raise CheckpointError(f"celadon.json has schema {extra['schema']}; this program reads schema 1")
    defaults = Defaults(**_usual(folder, unet) | extra.get("defaults", {}))
    width, height = extra.get("width", trained_px), extra.get("height", trained_px)
    largest = extra.get("max_width", max(LIMIT_PX, 2 * width)), extra.get("max_height", max(LIMIT_PX, 2 * height))
    for side, most in zip((width, height), largest, strict=True):
        if type(side) is not int or type(most) is not int or not 0 < side <= most or side % factor:
            raise ValueError(f"pictures of {width} x {height}, at most {largest[0]} x {largest[1]}, in steps of {factor}, cannot be")
    return ModelCard(
        id=slug(extra["id"]),
        title=extra["title"],
        description=extra.get("description", ""),
        license=extra.get("license", "unknown"),
        hash=checkpoint_hash(folder),
        prediction_type=ladder.prediction_type,
        width=width,
        height=height,
        max_width=largest[0],
        max_height=largest[1],
        size_multiple=factor,
        max_steps=1000,
        max_prompt_tokens=prompt_tokens,
        defaults=defaults,
        samplers=samplers.catalog(ladder),
        schedules=schedules.catalog(ladder),
        guidances=() if unet.get("time_cond_proj_dim") else guidance_list.catalog(defaults.guidance_rescale, perturbable=perturbable(unet)),
        words=tuple(extra.get("words", ())),
        prompt_syntaxes=SYNTAXES,
    )


def _usual(folder: Path, unet: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of distilled models, which their configs give away: latent consistency (LCMScheduler), and turbo and lightning
    (an Euler sampler on trailing timesteps).
    """
    noise = read_json(folder / "scheduler" / "scheduler_config.json")
    if noise.get("_class_name") == "LCMScheduler" or unet.get("time_cond_proj_dim"):
        return {"sampler": "lcm", "schedule": "lcm", "steps": 4, "guidance": 8.5 if unet.get("time_cond_proj_dim") else 1.0}
    if str(noise.get("_class_name")).startswith("Euler") and noise.get("timestep_spacing") == "trailing":
        return {"sampler": "euler_a" if "Ancestral" in noise["_class_name"] else "euler", "steps": 4, "guidance": 1.0}
    return {}


def perturbable(unet: Mapping[str, Any]) -> bool:
    """Whether the middle of the U-Net attends to itself, which PAG and SEG disturb."""
    crossed = unet.get("mid_block_only_cross_attention")
    crossed = unet.get("only_cross_attention", False) if crossed is None else crossed
    return unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn" and crossed is not True


def checkpoint_hash(folder: Path) -> str:
    """Sixteen hex digits of the SHA-256 over everything that decides a picture: weights, configs, vocabulary."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in HASHED and not p.is_dir()):
        if not path.is_file():
            raise CheckpointError(f"{path.relative_to(folder)} is no file, or one that is linked to and not there")
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError."""
    try:
        return read_object(path)
    except FileNotFoundError as error:
        message = f"{path.parent.name}/{path.name} is missing: it is not a whole checkpoint in diffusers layout"
        raise CheckpointError(message, "not_diffusers") from error
    except ValueError as error:
        raise CheckpointError(f"{path.parent.name}/{path.name} cannot be read as JSON: {error}", "bad_config") from error
