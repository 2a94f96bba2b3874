"""The torch backend of a worker: CUDA, or eager on a CPU."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import structlog
import torch
from diffusers.models.attention_processor import Attention

from pipelines.checkpoint_folder import Described
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.lanes import Stream
from pipelines.loading import Folders, load_described
from pipelines.replay import CudaRecorder, Replay
from pipelines.text_to_image import TorchStages
from workers.model import ModelRefused, Opened
from workers.settings import WorkerSettings

log = structlog.get_logger("worker")

LITTLE_MEMORY = 8 << 30  # bytes of a GPU, below which large pictures are decoded in tiles


def open_torch(said: Described, settings: WorkerSettings) -> Opened:
    """Raises ModelRefused, CheckpointError or OSError."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    if settings.offload == "model" and settings.loras:
        raise ModelRefused("CELADON_OFFLOAD=model goes without CELADON_LORAS: what changes weights must find them on the device")
    if settings.fuse == "qkv" and settings.loras:
        raise ModelRefused("CELADON_FUSE=qkv goes without CELADON_LORAS, which change weights of the single projections")
    folders, offload = Folders(**settings.folders), settings.offload == "model"
    checkpoint = load_described(said, device=device, dtype=dtype, folders=folders, offload=offload)
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    if tiled(settings.vae_tiling, memory):
        checkpoint.vae.enable_tiling()
    if device.type == "cuda":
        for module in (checkpoint.unet, checkpoint.vae):
            module.to(memory_format=torch.channels_last)  # what its convolutions take without a copy
    if settings.fuse == "qkv":
        fuse_projections(checkpoint.unet)
    if settings.compile == "blocks":
        # kernels of earlier starts are taken from there; torch reads the variable when it compiles first
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((settings.caches / "inductor").absolute()))
        compile_blocks(checkpoint.unet)
    denoiser = TorchDenoiser(
        checkpoint.unet, device=device, dtype=dtype, told=checkpoint.told, wardrobe=checkpoint.wardrobe, controlnets=checkpoint.controlnets
    )
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    how = f"torch-{str(dtype).removeprefix('torch.')}"
    how += ", fused projections" if settings.fuse == "qkv" else ""
    how += ", compiled blocks" if settings.compile == "blocks" else ""
    lanes = [Stream(device), Stream(device)] if device.type == "cuda" and not offload else []
    stages, warm = TorchStages(checkpoint, *lanes), device.type == "cuda" or settings.compile == "blocks"
    if why := why_no_graphs(settings, device):
        log.info("no_graphs", model=said.card.id, reason=why)
        return Opened(stages, denoiser, device.type, name, how, warm=warm)
    replay = Replay(denoiser, CudaRecorder(device), partial(log.info, model=said.card.id))
    return Opened(stages, replay, device.type, name, f"{how}, graphs", warm=True, recording=replay)


def why_no_graphs(settings: WorkerSettings, device: torch.device) -> str:
    """Why no call is recorded; empty where they are."""
    if device.type != "cuda":
        return "no GPU"
    if settings.offload == "model":
        return "CELADON_OFFLOAD"  # the weights move, and a graph holds their addresses
    return "" if settings.graphs == "auto" else "CELADON_GRAPHS"


def fuse_projections(unet: Any) -> None:
    """Query, key and value by one product, those of a text by one for key and value (diffusers' `fuse_qkv_projections`); the weights lie
    there once: the single projections are parts of the fused ones.
    """
    unet.fuse_qkv_projections()
    for layer in (module for module in unet.modules() if isinstance(module, Attention)):
        whole, parts = (layer.to_kv, ("to_k", "to_v")) if layer.is_cross_attention else (layer.to_qkv, ("to_q", "to_k", "to_v"))
        whole.requires_grad_(False)
        for name in ("weight", *(("bias",) if layer.use_bias else ())):
            single = [getattr(getattr(layer, part), name) for part in parts]
            for weight, there in zip(single, getattr(whole, name).data.split([len(w) for w in single]), strict=True):
                weight.data = there


def tiled(said: str, memory: int | None) -> bool:
    """Whether the VAE takes pictures beyond its trained size in tiles. `memory`: bytes of the GPU, None on a CPU. It does not look at what
    is free: the same seed would draw another picture.
    """
    return said == "always" or (said == "auto" and memory is not None and memory < LITTLE_MEMORY)


def compile_blocks(unet: Any) -> None:
    """The transformer blocks by torch.compile, one kernel for all of a kind and of any number of rows. Raises ModelRefused."""
    try:
        unet.compile_repeated_blocks(dynamic=True)
    except ValueError as error:  # diffusers knows of no such blocks in it
        raise ModelRefused("CELADON_COMPILE=blocks, but this U-Net has no blocks that repeat; leave it out") from error


def pick_device(name: str) -> torch.device:
    """The device; auto takes CUDA where there is one. Raises ModelRefused where cuda is asked for and missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelRefused("CELADON_DEVICE=cuda, but torch sees no CUDA device; unset it to run on the CPU")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The U-Net's dtype; auto is bfloat16 on a GPU and on a CPU that multiplies it natively, else float32."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16
    native = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") else torch.float32
