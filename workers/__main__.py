"""`celadon worker`: load the model, measure, announce, serve."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import secrets
import signal
import socket
import sys
import time
from contextlib import suppress

import structlog

from workers.log import configure
from workers.settings import WorkerSettings

log = structlog.get_logger("worker")

REFUSED = 2  # exit status: these settings cannot work, so starting again cannot help


def main() -> int:
    """Run one worker until SIGTERM or SIGINT; the exit status is 0 after a clean drain, 2 for settings that cannot work."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads collapse beside a busy neighbour
    settings = WorkerSettings()
    configure(settings.log_level)
    with suppress(KeyboardInterrupt):
        return asyncio.run(serve(settings))
    return 0


async def serve(settings: WorkerSettings) -> int:
    """Everything between the settings and a drained worker; the exit status."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    from redis.exceptions import AuthenticationError

    from jobs.hooks import HookQueue
    from jobs.image_store import LocalImageStore  # imports stand here so that a bad setting is told before torch loads
    from jobs.job_queue import JobQueue, ServerUnfit
    from jobs.registry import Registry, WorkerInfo
    from jobs.shards import open_shards
    from workers.drawing import DrawingThread
    from workers.insist import insist, unless
    from workers.model import ModelRefused, open_model
    from workers.worker import Doors, Worker

    started = time.monotonic()
    try:
        model = await asyncio.to_thread(open_model, settings)
    except ModelRefused as error:
        print(error, file=sys.stderr)
        return REFUSED
    store = LocalImageStore(settings.data_dir / "images")
    shards = open_shards(settings.redis_url, settings.shards)
    try:
        if not await unless(stop, insist(shards.check)):
            await shards.aclose()
            return 0
    except (ServerUnfit, AuthenticationError) as error:
        print(f"CELADON_REDIS_URL: {error}", file=sys.stderr)
        await shards.aclose()
        return REFUSED
    queue = JobQueue(
        shards,
        lease_s=settings.lease_s,
        retention_s=settings.retention_s,
        checkpoint_s=settings.checkpoint_ttl_s,
        max_checkpoint_bytes=settings.checkpoint_bytes,
    )
    doors = Doors(queue, Registry(shards), store, HookQueue(shards))
    card = model.checkpoint.card
    info = WorkerInfo(
        id=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
        models=(card.id,),
        device=model.device_name,
        backend=model.backend,
        slots=settings.slots,
        busy=0,
        version=importlib.metadata.version("celadon"),
        started_at=time.time(),
        ready=False,
    )
    worker = Worker(info, card, settings, doors)
    log.info("ready", worker=info.id, model=card.id, device=info.device, backend=info.backend, seconds=round(time.monotonic() - started, 1))
    try:
        await worker.run(DrawingThread(model.checkpoint, model.engine, worker.report, numpy_arrays=model.numpy_arrays), stop)
    finally:
        await shards.aclose()
    return 0


if __name__ == "__main__":
    sys.exit(main())
