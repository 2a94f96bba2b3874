"""`celadon up` as a user runs it: a process of its own, with its children in sight."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from celadon import data_dir as data_dirs

LIMIT_S = 45.0
Value = TypeVar("Value")


class UpProcess:
    """One `celadon up`, started with a free port, and what can be seen of it from outside."""

    def __init__(self, data_dir: Path, *arguments: str, **variables: str) -> None:
        self.data_dir = data_dir
        self.output = data_dir.with_suffix(".output")
        command = [sys.executable, "-m", "celadon", "up", "--port", "0", "--data-dir", str(data_dir), *arguments]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, env=environment(**variables), stdout=output, stderr=output)

    @property
    def url(self) -> str:
        """Where it answers; waits until it does."""
        return eventually(self._service, f"the service of {self.data_dir}:\n{self.said()}").url

    def _service(self) -> data_dirs.Service | None:
        assert self.process.poll() is None, self.said()
        return data_dirs.read_service(self.data_dir)

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def children(self) -> dict[int, str]:
        """Process id -> command line of each child that has become what it is to be."""
        found = {pid: line for pid, parent, line in processes() if parent == self.process.pid}
        return {pid: line for pid, line in found.items() if line and "guard.py" not in line}

    def child(self, word: str) -> int:
        """The process id of the child whose command line holds the word; waits for it."""
        return eventually(lambda: next((pid for pid, line in self.children().items() if word in line), None), f"a child {word!r}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)


@contextlib.contextmanager
def up(data_dir: Path, *arguments: str, **variables: str) -> Iterator[UpProcess]:
    """A running service without workers unless the arguments say otherwise; nothing of it is left at the end."""
    service = UpProcess(data_dir, *(arguments or ("--workers", "0")), **variables)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.wait()


def environment(**changes: str) -> dict[str, str]:
    """Ours without any CELADON_* variable, plus what is given."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CELADON_")}
    return ours | {"OMP_NUM_THREADS": "1"} | changes


def processes() -> Iterator[tuple[int, int, str]]:
    """Process id, parent and command line of everything that runs here and is no zombie, from /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                yield int(folder.name), int(parent), (folder / "cmdline").read_text().replace("\0", " ").strip()


def descendants(pid: int) -> set[int]:
    """Children and their children."""
    parents = {child: parent for child, parent, _ in processes()}
    children = {child for child, parent in parents.items() if parent == pid}
    return children.union(*(descendants(child) for child in children))


def alive(pids: set[int]) -> set[int]:
    return pids & {pid for pid, _, _ in processes()}


def eventually(condition: Callable[[], Value | None], what: str) -> Value:
    """The first true value of the condition; fails after a while with a word on what was waited for."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {LIMIT_S:g} s for {what}")
