"""From settings to a measured, warm engine: which backend, which device and precision, and whether batches may take any size.

OpenVINO serves CPUs and needs no torch; torch serves GPUs, and CPUs where it is asked for or where OpenVINO has no graph.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import structlog

from pipelines.checkpoint_error import CheckpointError
from pipelines.checkpoint_folder import Described, describe
from pipelines.denoiser import Denoiser, batch_invariant, fixed_rows, warm_up
from pipelines.engine.engine import Engine
from pipelines.planning import Stages
from pipelines.weight_files import numbers_in
from workers.settings import WorkerSettings
from workers.warm import Recording, buckets, made_ready

log = structlog.get_logger("worker")

ALONE = 2  # rows of a guided picture
GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, either of them under WSL

Array = Any
Backend = Literal["openvino", "torch"]


class ModelRefused(Exception):
    """The settings name a model or device that cannot run here; starting again cannot help."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A backend with its weights in place."""

    stages: Stages
    denoiser: Denoiser
    device: str  # cpu or cuda
    device_name: str
    name: str  # for example openvino-bfloat16, 2 streams of 1 thread
    note: Path | None = None  # where it is kept what was measured of this build of the model; nowhere: measured at every start
    warm: bool = False  # whether calls of each number of rows are to be made before any job comes: first ones are slow
    recording: Recording | None = None  # the denoiser, where it records its calls


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint with its engine, warm."""

    stages: Stages
    engine: Engine
    device_name: str
    backend: str  # for example openvino-bfloat16, 2 streams of 1 thread, rows any


def describe_models(settings: WorkerSettings) -> dict[str, Described]:
    """Every model of the settings by its id. Raises ModelRefused."""
    found: dict[str, Described] = {}
    try:
        sources = settings.sources
    except ValueError as error:
        raise ModelRefused(f"CELADON_DATA_DIR: {error}") from error
    for name, source in sources.items():
        said = _described(settings, source, "" if name == source else name)
        if said.card.id in found:
            raise ModelRefused(f"CELADON_MODELS: two models are called {said.card.id}: name one in models.json")
        found[said.card.id] = said
    return found


def open_model(settings: WorkerSettings, said: Described | None = None) -> Model:
    """Load, warm up with one call of every stage, and find out whether a row's result depends on its neighbours.

    Raises ModelRefused.
    """
    opened = open_backend(settings, said)
    stages, card = opened.stages, opened.stages.card
    shape = stages.latent_shape(card.width, card.height)
    context = stages.encode("").states
    rows: int | None = settings.rows or None
    seen = stages.unet_channels, *shape[1:]
    _check_numbers(opened, seen, context)
    if rows is None and not _invariant(opened, seen, context):
        rows = fixed_rows(opened.denoiser, seen, context, stages.told.width)
    max_rows = settings.max_rows
    if opened.warm:
        sizes = (rows,) if rows else buckets(max_rows)
        with opened.recording.warming(sizes) if opened.recording else contextlib.nullcontext():
            held = made_ready(opened.denoiser, seen, context, stages.told.width, sizes, card.id)
        max_rows = max_rows if rows else held
    xp = opened.denoiser.xp
    try:
        stages.begin(xp.zeros(shape, dtype=xp.float32, device=opened.denoiser.device)).pixels()
    except FloatingPointError as error:
        raise _no_numbers(card.id, "VAE") from error
    engine = Engine(opened.denoiser, slots=settings.slots, max_rows=max_rows, rows=rows)
    for size in () if rows else buckets(max_rows) if opened.warm else (ALONE,):
        engine.begin(shape, size, _seconds(opened, seen, context, size))
    return Model(stages, engine, opened.device_name, f"{opened.name}, rows {rows or 'any'}")


def _check_numbers(opened: Opened, shape: tuple[int, int, int], context: Array) -> None:
    """Before anything is measured: weights that are infinite or no numbers would fail every job one by one. Raises ModelRefused."""
    xp, stages = opened.denoiser.xp, opened.stages
    if not bool(xp.all(xp.isfinite(context))):
        raise _no_numbers(stages.card.id, "text encoder")
    if not bool(xp.all(xp.isfinite(warm_up(opened.denoiser, shape, context, stages.told.width)))):
        raise _no_numbers(stages.card.id, "U-Net")


def _no_numbers(model: str, part: str) -> ModelRefused:
    return ModelRefused(f"{model}: its {part} answers with what are no numbers, as where weights are infinite or none (weights_not_finite)")


def _seconds(opened: Opened, shape: tuple[int, int, int], context: Array, rows: int) -> float:
    """Of a call, to its end."""
    xp, began = opened.denoiser.xp, time.perf_counter()
    float(xp.sum(warm_up(opened.denoiser, shape, context, opened.stages.told.width, rows)))
    return time.perf_counter() - began


def _invariant(opened: Opened, shape: tuple[int, int, int], context: Array) -> bool:
    """Whether a row's result is its own in every batch: as an earlier start noted it of the very same build, or measured and noted."""
    if opened.note:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if (known := json.loads(opened.note.read_text())["batch_invariant"]) in (True, False):
                warm_up(opened.denoiser, shape, context, opened.stages.told.width)
                return bool(known)
    found = batch_invariant(opened.denoiser, shape, context, opened.stages.told.width)
    if opened.note:
        with contextlib.suppress(OSError):  # a full disk costs the next start a second, not the worker
            opened.note.parent.mkdir(parents=True, exist_ok=True)
            opened.note.write_text(json.dumps({"batch_invariant": found}) + "\n")
    return found


def open_backend(settings: WorkerSettings, said: Described | None = None) -> Opened:
    """The weights in place, nothing measured yet: of what was described, or of CELADON_MODEL. Raises ModelRefused."""
    said = said or _described(settings, settings.model)
    backend, _ = pick_backend(settings)
    try:
        return _open(backend, said, settings)
    except CheckpointError as error:
        raise ModelRefused(f"{said.card.id}: {error} ({error.code})") from error
    except OSError as error:  # a file of weights is gone or cannot be read
        raise ModelRefused(f"{said.card.id}: {error} (weights_unreadable)") from error


def _described(settings: WorkerSettings, source: str, name: str = "") -> Described:
    """`name` is its id where one was given."""
    solvers = Path(settings.solvers) if settings.solvers else None
    for what, folder in (settings.folders | {"solvers": solvers}).items():
        if folder and not folder.is_dir():
            raise ModelRefused(f"CELADON_{what.upper()}: {folder} is no folder")
    try:
        said = describe(source, solvers, settings.caches)
    except CheckpointError as error:
        raise ModelRefused(f"CELADON_MODEL: {error} ({error.code})") from error
    except OSError as error:
        raise ModelRefused(f"CELADON_MODEL: {error}") from error
    return replace(said, card=replace(said.card, id=name)) if name else said


def weight_bytes(said: Described, settings: WorkerSettings) -> int:
    """What its weights take in memory, roughly: two bytes a number on a GPU or in half precision, else four. A small U-Net counts twice
    on OpenVINO, which compiles it for two kinds of calls.
    """
    backend, why = pick_backend(settings)
    half = settings.dtype in ("bfloat16", "float16") or (settings.dtype == "auto" and why == "there is a GPU")
    twice = said.small and backend == "openvino" and _has_graph(said)
    return (said.parameters + (numbers_in(said.folder / "unet") if twice else 0)) * (2 if half or settings.device == "cuda" else 4)


def _has_graph(said: Described) -> bool:
    from pipelines.graphs import unet

    try:
        unet.check(said.configs["unet"])
    except unet.NoGraph:
        return False
    return True


def pick_backend(settings: WorkerSettings) -> tuple[Backend, str]:
    """The backend and the reason for it. Raises ModelRefused for settings that no installed backend serves."""
    has = {name for name in ("openvino", "torch") if importlib.util.find_spec(name)}
    if settings.backend != "auto":
        if settings.backend not in has:
            extra = {"openvino": "cpu", "torch": "gpu"}[settings.backend]
            raise ModelRefused(f"CELADON_BACKEND={settings.backend}, but {settings.backend} is not installed: pip install celadon[{extra}]")
        return settings.backend, "CELADON_BACKEND says so"
    if settings.device == "cuda" or settings.dtype == "float16":
        if "torch" not in has:
            asked = "CELADON_DEVICE=cuda" if settings.device == "cuda" else "CELADON_DTYPE=float16"
            raise ModelRefused(f"{asked} needs torch, which is not installed: make install-gpu, or pip install celadon[gpu]")
        return "torch", "a GPU or float16 is asked for"
    if settings.device == "auto" and "torch" in has and _sees_gpu():
        return "torch", "there is a GPU"
    if "openvino" in has:
        return "openvino", "the CPU is asked for" if settings.device == "cpu" else "there is no GPU that torch can use"
    if "torch" in has:
        return "torch", "OpenVINO is not installed"
    raise ModelRefused("no backend is installed: pip install celadon[cpu], or celadon[gpu] for a GPU")


def _sees_gpu() -> bool:
    """torch is asked only where a driver is: importing it takes a second and 200 MB."""
    if not any(Path(name).exists() for name in GPU_FILES):
        return False
    import torch

    return bool(torch.cuda.is_available())


def _open(backend: Backend, said: Described, settings: WorkerSettings) -> Opened:
    if backend == "torch":
        return _open_torch(said, settings)
    from pipelines.graphs.unet import NoGraph
    from workers.model_openvino import open_openvino

    try:
        return open_openvino(said, settings)
    except NoGraph as error:
        if settings.backend == "openvino" or not importlib.util.find_spec("torch"):
            raise ModelRefused(f"{said.card.id}: {error}; torch runs it: pip install celadon[gpu] (no_graph)") from error
        log.warning("no_graph", reason=str(error), backend="torch")
        return _open_torch(said, settings)


def _open_torch(said: Described, settings: WorkerSettings) -> Opened:
    if settings.weights == "int8":
        raise ModelRefused("CELADON_WEIGHTS=int8 is OpenVINO's: leave it out, or set CELADON_BACKEND=openvino")
    from workers.model_torch import open_torch

    return open_torch(said, settings)
