"""A described checkpoint with its modules in torch. The modules are diffusers' and transformers' own; accelerate places their weights
without a second copy. Only safetensors are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipelines.card import ModelCard
from pipelines.checkpoint_error import CheckpointError
from pipelines.checkpoint_folder import Described, describe
from pipelines.conditioning import Told
from pipelines.controls_torch import ControlNets
from pipelines.embeddings import Embeddings
from pipelines.empty_modules import shapes
from pipelines.ladder import Ladder
from pipelines.loras_torch import Wardrobe
from pipelines.offload import Turns
from pipelines.solver_files import Solver
from pipelines.tiny_unet import load_network
from pipelines.upscaler import PART, Recipe, Upscaler
from pipelines.weight_files import tensors_in
from pipelines.weight_shapes import check_weights


@dataclass(frozen=True, slots=True, eq=False)
class SecondEncoder:
    """SDXL's other text encoder, which also pools the prompt into one vector."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection


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
    second: SecondEncoder | None = None  # of SDXL
    told: Told = field(default_factory=Told)
    zero_negative: bool = False  # an empty negative prompt is no text at all, as SDXL was trained
    upscaler: Upscaler | None = None  # that doubles its pictures
    wardrobe: Wardrobe = field(default_factory=lambda: Wardrobe(None, {}))
    embeddings: Embeddings = field(default_factory=lambda: Embeddings(None, {}, 0))
    controlnets: ControlNets = field(default_factory=lambda: ControlNets(None, None, torch.device("cpu"), torch.float32))

    @property
    def unet_channels(self) -> int:
        """Of the U-Net's input: those of a latent, or more for an inpainting model."""
        return int(self.unet.config.in_channels)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.vae.config.latent_channels, height // self.vae_factor, width // self.vae_factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Of the operator's files that go with a model; those that fit it are used."""

    loras: Path | None = None
    embeddings: Path | None = None
    controlnets: Path | None = None


def load(source: str | Path, *, device: torch.device, dtype: torch.dtype, **folders: Path | None) -> Checkpoint:
    """Load a local folder or a hub id, the solvers in its folder `solvers`, and what fits it of the `folders`.

    Raises CheckpointError where it is no SD 1.x, 2.x or SDXL checkpoint in diffusers layout, or a solver cannot run on it.
    """
    return load_described(describe(source), device=device, dtype=dtype, folders=Folders(**folders))


def load_described(
    said: Described, *, device: torch.device, dtype: torch.dtype, folders: Folders | None = None, offload: bool = False
) -> Checkpoint:
    """The modules of what was described; with `offload` they take turns on the device. Raises CheckpointError where the weights are not
    those that the configs describe.
    """
    rest, home = torch.float32 if device.type == "cpu" else dtype, torch.device("cpu") if offload else device
    unet = _module(UNet2DConditionModel, said.folder / "unet", home, dtype)
    vae = _module(AutoencoderKL, said.folder / "vae", home, torch.float32 if said.configs["vae"].get("force_upcast") else rest)
    text_encoder = _module(CLIPTextModel, said.folder / "text_encoder", home, rest)
    tokenizer = _tokenizer(said.folder / "tokenizer")
    second = _second(said, home, rest)
    modules = {"unet": unet, "text_encoder": text_encoder} | ({"text_encoder_2": second.text_encoder} if second else {})
    if offload:
        Turns(modules | {"vae": vae}, device)
    folders = folders or Folders()
    wardrobe, learned = Wardrobe(folders.loras, modules), Embeddings(folders.embeddings, said.text_widths, said.tokens - 2)
    controlnets = ControlNets(folders.controlnets, said, device, dtype)
    card = replace(said.card, loras=wardrobe.loras.infos, embeddings=learned.infos, controlnets=controlnets.infos)
    return Checkpoint(
        card, said.ladder, tokenizer, text_encoder, unet, vae, device, dtype, said.latent_rgb, said.solvers,
        second, said.told, said.zero_negative, _upscaler(said, device), wardrobe, learned, controlnets,
    )  # fmt: skip


def _upscaler(said: Described, device: torch.device) -> Upscaler | None:
    if PART not in said.configs:
        return None
    config = said.configs[PART]
    return Upscaler(load_network(said.folder / PART, config, device), Recipe.from_config(config))


def _second(said: Described, device: torch.device, dtype: torch.dtype) -> SecondEncoder | None:
    if "text_encoder_2" not in said.configs:
        return None
    text_encoder = _module(CLIPTextModelWithProjection, said.folder / "text_encoder_2", device, dtype)
    return SecondEncoder(_tokenizer(said.folder / "tokenizer_2"), text_encoder)


def _tokenizer(folder: Path) -> CLIPTokenizer:
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # the library raises whatever a field of another kind leads to
        raise CheckpointError(f"{folder.name} cannot be read: {type(error).__name__} {error}", "bad_config") from error


def _module(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """One module in eval mode. The weights go through accelerate's empty initialisation, never through pickle.

    What does not fit is found before, so that whatever is raised while they are read is what it says: a lack of memory, for example.
    """
    check_weights(folder.name, shapes(kind, folder).items(), tensors_in(folder))
    try:
        module, told = kind.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=True, dtype=dtype, output_loading_info=True)
    except SafetensorError as error:
        raise CheckpointError(f"the weights of {folder.name} cannot be read: {error}", "weights_unreadable") from error
    if wrong := sorted(map(str, (*told["missing_keys"], *told["mismatched_keys"]))):
        raise CheckpointError(f"{folder.name}: {wrong[0]} is missing or of another shape than its config describes", "weights_misfit")
    return module.to(device).eval().requires_grad_(False)
