"""The log files of a service's processes: one each, in <data dir>/logs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

KEEP_BYTES = 10_000_000  # a longer log is set aside at the next start, one generation is kept
LOOK_S = 0.2


def rotate(log: Path) -> None:
    """Set a long log aside."""
    if log.exists() and log.stat().st_size > KEEP_BYTES:
        log.replace(log.with_suffix(".log.1"))


def tail(log: Path, lines: int = 10) -> str:
    """The last lines of a log, indented."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


async def follow(folder: Path, write: Callable[[str, str], None]) -> None:
    """Call `write(name, line)` for every line that is added to a log in the folder from now on. Never returns."""
    read = {log: log.stat().st_size for log in folder.glob("*.log")}
    while True:
        for log in sorted(folder.glob("*.log")):
            with log.open("rb") as file:
                file.seek(read.get(log, 0))
                *lines, rest = file.read().split(b"\n")
                read[log] = file.tell() - len(rest)
            for line in lines:
                write(log.stem, line.decode(errors="replace"))
        await asyncio.sleep(LOOK_S)
