"""`celadon worker`: settings, log and signals; then the process serves until it is told to go, and ends whatever its threads do."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import NoReturn

import structlog

from workers.log import configure, where
from workers.settings import WorkerSettings
from workers.watch import leave

log = structlog.get_logger("worker")

CRASHED = 1  # exit status


def main() -> NoReturn:
    """Run one worker until SIGTERM or SIGINT; the exit status is 0 after a clean drain, 2 for settings that cannot work."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads collapse beside a busy neighbour
    settings = WorkerSettings()
    configure(settings.log_level)
    runner = asyncio.Runner()
    try:
        status = runner.run(serve(settings))
    except KeyboardInterrupt:
        status = 0
    except ImportError:
        raise  # nothing runs yet, and the message says what is missing
    except BaseException as error:
        log.critical("crashed", error=where(error))
        status = CRASHED
    leave(status)


async def serve(settings: WorkerSettings) -> int:
    """Everything between the settings and a drained worker; the exit status."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    from workers.serving import run  # here, so that a bad setting is told before torch loads

    return await run(settings, stop)


if __name__ == "__main__":
    main()
