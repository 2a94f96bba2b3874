"""From settings to a measured, warm engine: device, dtype, and whether batches may take any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from pipelines.denoiser import batch_invariant
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.loading import Checkpoint, CheckpointError, load
from pipelines.text_to_image import decode, encode_prompt
from workers.settings import WorkerSettings

log = structlog.get_logger("worker")

FIXED_ROWS = {"cpu": 2, "cuda": 8}  # rows of every call where the backend is not batch-invariant


class ModelRefused(Exception):
    """The settings name a model or device that cannot run here; starting again cannot help."""


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint with its engine, warm."""

    checkpoint: Checkpoint
    engine: Engine
    device_name: str
    backend: str  # for example torch-bfloat16, rows any
    numpy_arrays: bool


def open_model(settings: WorkerSettings) -> Model:
    """Load, warm up with one call of every stage, and measure whether a row's result depends on its neighbours.

    Raises ModelRefused.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    solvers = Path(settings.solvers) if settings.solvers else None
    if solvers and not solvers.is_dir():
        raise ModelRefused(f"CELADON_SOLVERS: {solvers} is no folder")
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    try:
        checkpoint = load(settings.model, device=device, dtype=dtype, solvers=solvers)
    except (CheckpointError, OSError) as error:  # OSError: a weight file is missing, or the hub cannot be reached
        raise ModelRefused(f"CELADON_MODEL: {error}") from error
    denoiser = TorchDenoiser(checkpoint.unet, device=device, dtype=dtype)
    on_cpu = device.type == "cpu"
    shape = checkpoint.latent_shape(checkpoint.card.width, checkpoint.card.height)
    states = encode_prompt(checkpoint, "")
    context = states.numpy() if on_cpu else states
    rows: int | None = settings.rows or None
    if rows is None and not batch_invariant(denoiser, shape, context):
        rows = FIXED_ROWS[device.type]
    decode(checkpoint, torch.zeros(shape))
    engine = Engine(denoiser, slots=settings.slots, max_rows=settings.max_rows, rows=rows)
    name = "cpu" if on_cpu else torch.cuda.get_device_name(device)
    backend = f"torch-{str(dtype).removeprefix('torch.')}, rows {rows or 'any'}"
    return Model(checkpoint, engine, name, backend, on_cpu)


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
