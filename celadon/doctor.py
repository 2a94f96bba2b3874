"""`celadon doctor`: is everything there that `celadon up` needs? One line each: what was found, or what to do."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from celadon.settings import check_redis, check_storage, of_gateway, of_worker
from celadon.supervisor import StartRefused

if TYPE_CHECKING:
    from workers.settings import WorkerSettings

OLDEST = (3, 11)
LOW_DISK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `remedy` is empty where nothing is wrong; a finding that is not `fatal` is only a remark."""

    text: str
    remedy: str = ""
    fatal: bool = True


def run(console: Console) -> int:
    """Make every check, print each finding as it comes, and return 1 if any of them stands in the way of a start."""
    wrong = 0
    for name, check in CHECKS.items():
        with console.status(f"checking {name}"):
            finding = _guarded(check)
        mark = "[green]✓[/]" if not finding.remedy else "[red]✗[/]" if finding.fatal else "[yellow]![/]"
        console.print(f"{mark} [bold]{name:<9}[/] {escape(finding.text)}", highlight=False, soft_wrap=True)
        if finding.remedy:
            console.print(f"            → {escape(finding.remedy)}", highlight=False, soft_wrap=True)
            wrong += finding.fatal
    console.print("\nAll is well: [bold]celadon up[/]" if not wrong else f"\n{wrong} to mend.")
    return 1 if wrong else 0


def worker_alive() -> int:
    """0 if a worker of this host is ready, else 1: the health check of a worker's container. Raises StartRefused."""
    import socket

    from redis import RedisError

    from jobs.registry import Registry
    from jobs.shards import open_shards

    settings = of_worker()

    async def alive() -> bool:
        async with contextlib.aclosing(open_shards(settings.redis_url, settings.shards)) as shards:
            workers = await Registry(shards).workers()
        return any(worker.ready and worker.id.startswith(f"{socket.gethostname()}-") for worker in workers)

    try:
        return 0 if asyncio.run(alive()) else 1
    except (RedisError, OSError) as error:
        raise StartRefused(f"CELADON_REDIS_URL: {error}") from error


def _guarded(check: Callable[[], Finding]) -> Finding:
    """A check that cannot be made is itself a finding, and the others still run."""
    try:
        return check()
    except StartRefused as error:
        return Finding(str(error), "mend the setting and run `celadon doctor` again")
    except Exception as error:
        return Finding(f"{type(error).__name__}: {error}", "see the line above; `make install` mends a broken installation")


def python() -> Finding:
    found = f"Python {platform.python_version()} at {sys.executable}"
    return Finding(found, "" if sys.version_info >= OLDEST else "install Python 3.11 or newer, then `make install`")


def settings() -> Finding:
    of_gateway()
    of_worker(redis_url="unix:///embedded")
    return Finding("every CELADON_* variable is known and good")


def redis() -> Finding:
    settings = of_gateway()
    if settings.redis_url:
        seen = check_redis(settings.redis_url, settings.shards)
        return Finding(seen.text, seen.remedy, fatal=False)
    from jobs import valkey

    said = subprocess.run([valkey.binary(), "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    return Finding(f"embedded {said.split(' sha=')[0].strip()}")


def storage() -> Finding:
    from jobs.image_store import LocalImageStore

    settings = of_gateway()
    if settings.storage:
        check_storage(settings)
        return Finding(f"{settings.storage}: writable")
    folder = settings.image_dir.resolve()
    with _made(folder):
        asyncio.run(LocalImageStore(folder).check())
        free = shutil.disk_usage(folder).free
    if free < LOW_DISK_BYTES:
        return Finding(f"{folder}: {free / 1e9:.1f} GB free", "make room, or choose another folder with CELADON_DATA_DIR", fatal=False)
    return Finding(f"{folder}: writable, {free / 1e9:.0f} GB free")


@contextlib.contextmanager
def _made(folder: Any) -> Iterator[None]:
    """The folder, made for the moment where it is missing: a check leaves nothing behind."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        inside = sorted(folder.rglob("*"), reverse=True) if missing else []
        for empty in (*inside, *missing):
            with contextlib.suppress(OSError):
                empty.rmdir()


def port() -> Finding:
    from celadon.generate import is_celadon
    from celadon.up import listen

    wanted = of_gateway()
    try:
        with listen(wanted.host, wanted.port) as listener:
            return Finding(f"{wanted.host}:{listener.getsockname()[1]} is free")
    except StartRefused as error:
        url = f"http://{wanted.host}:{wanted.port}"
        if is_celadon(url):
            return Finding(f"a service already runs at {url}")
        return Finding(str(error), "free the port, or set CELADON_PORT")


def device() -> Finding:
    from workers.model import ModelRefused, pick_backend

    wanted = of_worker(redis_url="unix:///embedded")
    try:
        backend, reason = pick_backend(wanted)
        runs = _openvino(wanted) if backend == "openvino" else _torch(wanted)
    except ModelRefused as error:
        return Finding(str(error), "make install-gpu brings torch, make install OpenVINO")
    return Finding(f"{runs}; because {reason}")


def _openvino(wanted: WorkerSettings) -> str:
    from pipelines.graphs.runtime import openvino
    from pipelines.openvino_model import fastest_precision, processor

    precision = fastest_precision() if wanted.dtype == "auto" else wanted.dtype
    return f"{processor()}, {precision} (OpenVINO {openvino.get_version().split('-')[0]})"


def _torch(wanted: WorkerSettings) -> str:
    import torch

    from workers.model_torch import pick_device, pick_dtype

    picked = pick_device(wanted.device)
    name = torch.cuda.get_device_name(picked) if picked.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    dtype = str(pick_dtype(wanted.dtype, picked)).removeprefix("torch.")
    return f"{name}, {dtype} (torch {torch.__version__})"


def model() -> Finding:
    from pipelines.checkpoint_error import CheckpointError
    from pipelines.checkpoint_folder import describe

    wanted = of_worker(redis_url="unix:///embedded")
    begun = time.monotonic()
    try:
        card = describe(wanted.model, cache=wanted.caches).card
    except (CheckpointError, OSError) as error:
        return Finding(f"{wanted.model}: {error}", "point CELADON_MODEL to a folder in diffusers layout, or to a hub id")
    sizes = f"{card.width}x{card.height}, {len(card.samplers)} samplers, {len(card.schedules)} schedules"
    return Finding(f"{card.id} ({card.hash[:8]}): {sizes}, read in {time.monotonic() - begun:.1f} s")


CHECKS: dict[str, Callable[[], Finding]] = {
    "Python": python,
    "settings": settings,
    "Redis": redis,
    "storage": storage,
    "port": port,
    "device": device,
    "model": model,
}
