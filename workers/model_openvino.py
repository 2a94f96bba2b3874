"""The OpenVINO backend of a worker: no torch in the process. Streams are chosen by a measurement, once a machine and model."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread, main_thread
from weakref import ref

import numpy as np
import structlog

from pipelines.checkpoint_folder import Described
from pipelines.openvino_model import Compiler, OpenVinoDenoiser, OpenVinoStages, fastest_precision
from workers.model import ModelRefused, Opened
from workers.settings import WorkerSettings

log = structlog.get_logger("worker")

SETTLE = "settle"  # the name of a thread
QUIET_S, LATEST_S, LOOK_S = 1.0, 20.0, 0.05  # a worker settles after a second without a call, at the latest after so many
ROWS = (2, 8)  # one guided picture, and a crowd
REPEATS = 3
WORTH = 0.85  # another split must take less than this share of the time of one thread a stream, whose bits no core count changes


def open_openvino(said: Described, settings: WorkerSettings) -> Opened:
    """Raises ModelRefused, NoGraph or OSError."""
    if settings.device == "cuda" or settings.dtype == "float16":
        raise ModelRefused("CELADON_BACKEND=openvino runs on CPUs, in float32 or bfloat16")
    for name, said_otherwise in (
        ("COMPILE", settings.compile != "none"), ("FUSE", settings.fuse != "none"),
        ("OFFLOAD", settings.offload != "none"), ("VAE_TILING", settings.vae_tiling == "always"),
    ):  # fmt: skip
        if said_otherwise:
            raise ModelRefused(f"CELADON_{name} is torch's: leave it out, or set CELADON_BACKEND=torch")
    precision = fastest_precision() if settings.dtype == "auto" else settings.dtype
    cores = settings.threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    cache = settings.caches
    int8 = settings.weights == "int8"
    compiler = Compiler(said, cache, cores, int8=int8, **settings.folders)
    streams = settings.streams or _streams(said, compiler, precision, cores, cache)
    compiler.kept.put_off()
    with ThreadPoolExecutor(1) as beside:
        around = beside.submit(OpenVinoStages, said, compiler, precision)
        denoiser = OpenVinoDenoiser(compiler.forms(precision, streams), said.configs["unet"], streams)
        stages = around.result()
    Thread(target=_settle, args=(said, ref(denoiser), ref(compiler)), name=SETTLE).start()
    threads = max(1, cores // streams)
    name = f"openvino-{precision}{', int8 weights' * int8}, {streams} stream{'s' * (streams > 1)} of {threads} thread{'s' * (threads > 1)}"
    return Opened(stages, denoiser, "cpu", "cpu", name, compiler.note("unet", precision, streams))


def _settle(said: Described, model: ref[OpenVinoDenoiser], compiler: ref[Compiler]) -> None:
    """What makes later pictures and starts quicker, and must not make the first one late: the cache is written, the U-Net taken from there,
    and a second one made for the usual call. Who has no memory left for it goes on without. A model that left meanwhile is let go.
    """
    if (denoiser := _quiet(model)) is None or (made_by := compiler()) is None:
        return
    began, card = time.monotonic(), said.card
    try:
        shape = int(said.configs["unet"].get("in_channels", 4)), *said.latent_shape(card.width, card.height)[1:]
        if made_by.kept.write():
            denoiser.renew(shape, said.tokens)
        if said.small and not denoiser.specialize(shape, said.tokens):
            log.info("not_specialized", reason="its bits are others on this processor")
    except (OSError, RuntimeError, MemoryError) as error:
        log.warning("not_settled", model=card.id, reason=type(error).__name__)
    else:
        log.info("settled", model=card.id, seconds=round(time.monotonic() - began, 1))
    made_by.kept.drop_pages()


def _quiet(model: ref[OpenVinoDenoiser]) -> OpenVinoDenoiser | None:
    """The model after its first pause, such as after the first pictures; None where it leaves or the process ends before."""
    latest = time.monotonic() + LATEST_S
    while (found := model()) and main_thread().is_alive():
        if time.monotonic() >= min(latest, found.asked_at + QUIET_S):
            return found
        del found
        time.sleep(LOOK_S)
    return None


def _streams(said: Described, compiler: Compiler, precision: str, cores: int, cache: Path) -> int:
    """What an earlier start found, or a measurement: as many streams as cores unless fewer, wider ones are clearly faster.

    Two cores are not measured: a stream each won every time, and the start of a laptop is what everybody sees.
    """
    if cores <= 2:
        return cores
    note = cache / f"streams-{said.card.hash}-{precision}-{cores}.json"
    try:
        found = int(json.loads(note.read_text())["streams"])
        if 1 <= found <= cores:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    splits = [n for n in range(cores, 0, -1) if cores % n == 0]
    times = {n: _seconds(said, OpenVinoDenoiser(compiler.forms(precision, n), said.configs["unet"], n)) for n in splits}
    best = min(splits, key=lambda n: times[n])
    chosen = best if times[best] < WORTH * times[cores] else cores
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"streams": chosen, "seconds": {str(n): round(s, 5) for n, s in times.items()}}) + "\n")
    except OSError:
        return chosen
    return chosen


def _seconds(said: Described, denoiser: OpenVinoDenoiser) -> float:
    """A row's mean over a small and a large batch, each at its best."""
    unet, card = said.configs["unet"], said.card
    shape = unet.get("in_channels", 4), *said.latent_shape(card.width, card.height)[1:]
    total = 0.0
    for rows in ROWS:
        x, t = np.zeros((rows, *shape), np.float32), np.full(rows, 500, np.float32)
        context = np.zeros((rows, said.tokens, unet.get("cross_attention_dim", 1280)), np.float32)
        best = float("inf")
        for _ in range(1 + REPEATS):  # the first one makes kernels for the shape
            began = time.perf_counter()
            denoiser(x, t, context)
            best = min(best, time.perf_counter() - began)
        total += best / rows
    return total / len(ROWS)
