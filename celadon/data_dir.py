"""The folder that holds a service's data: who owns it now, and where the one that runs there answers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

LOCK = "celadon.lock"
SERVICE = "service.json"
LINGER_S = 5.0  # how long the children of a killed service may take to end


class DataDirBusy(Exception):
    """Another service runs on this folder; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service that runs on a data folder. `url` is how this machine reaches it."""

    url: str
    pid: int


@contextlib.contextmanager
def own(data_dir: Path) -> Iterator[int]:
    """Make the folder (mode 0700) and own it; yields the lock's file descriptor.

    Who inherits the descriptor holds the lock too: given to the embedded server, it says that nobody writes there any
    more, not only that its supervisor is gone. Raises DataDirBusy, OSError.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data_dir / LOCK).open("a") as lock:
        _take(lock, data_dir)
        try:
            yield lock.fileno()
        finally:
            (data_dir / SERVICE).unlink(missing_ok=True)


def _take(lock: IO[str], data_dir: Path) -> None:
    until = time.monotonic() + LINGER_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            running = read_service(data_dir)
            if running or time.monotonic() > until:
                where = f" at {running.url} (process {running.pid})" if running else ""
                raise DataDirBusy(f"{data_dir} is in use by a service{where}: stop that one, or choose another --data-dir") from None
            time.sleep(0.05)


def write_service(data_dir: Path, service: Service) -> None:
    """Tell other commands where this service answers."""
    draft = data_dir / f"{SERVICE}.new"
    draft.write_text(json.dumps(asdict(service)) + "\n")
    draft.replace(data_dir / SERVICE)


def read_service(data_dir: Path) -> Service | None:
    """The service that says it runs on this folder, or None; a note left by a dead one does not count."""
    try:
        service = Service(**json.loads((data_dir / SERVICE).read_text()))
        os.kill(service.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return service
