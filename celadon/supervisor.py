"""Keeps processes running: starts them, starts the dead again, stops them in order, and lets none outlive it.

One asyncio task per child. A child is started through `guard.py`, which ties its life to ours even when we are killed
with -9. Children lead sessions of their own, so that Ctrl-C reaches only us and we choose the order of the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
HEALTHY_S = 30.0  # a child that lived this long starts again at once when it dies
LAST_DELAY_S = 30.0
BAD_SETTINGS = 2  # the exit status of a child that refuses its settings: starting it again cannot help

Report = Callable[[str, str], None]  # name of the child, one line on what happened to it


class StartRefused(Exception):
    """Something stands in the way of a start; the message is one line that says what, and what to do."""


@dataclass(slots=True)
class Child:
    """One process to keep. Its output goes to `log`."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    death_signal: str = "SIGKILL"  # what it gets when the supervisor itself is killed
    pass_fds: tuple[int, ...] = ()
    stage: int = 0  # the highest stage is stopped first, all of it at once
    stop_s: float = 10.0  # after SIGTERM, before SIGKILL
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.returncode is None else None


class Supervisor:
    """Runs children until `stop` is called, SIGINT or SIGTERM arrives, or one refuses its settings."""

    def __init__(self, report: Report, on_signal: Callable[[], None] = lambda: None) -> None:
        self._report, self._on_signal = report, on_signal
        self._children: list[Child] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._signals = 0
        self.refused: str | None = None  # the name of a child that would not start with these settings

    def listen(self) -> None:
        """Turn SIGINT, SIGTERM and SIGHUP into an orderly end; the second one kills."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                loop.add_signal_handler(number, self._signal)

    async def add(self, child: Child) -> None:
        """Start a child and keep it running. Does nothing when everything is to stop already."""
        if self._stopping.is_set():
            return
        self._children.append(child)
        await self._spawn(child)
        self._tasks.append(asyncio.create_task(self._keep(child)))

    async def run(self) -> None:
        """Wait for the wish to stop, then stop the children, the highest stage first."""
        await self._stopping.wait()
        for stage in sorted({child.stage for child in self._children}, reverse=True):
            await asyncio.gather(*(self._end(child) for child in self._children if child.stage == stage))
        await asyncio.gather(*self._tasks)

    async def until(self, event: Coroutine[None, None, None]) -> bool:
        """Wait for an event, but no longer than until everything is to stop. True if it came; its exception is raised."""
        task, stop = asyncio.create_task(event), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            return not self._stopping.is_set()
        finally:
            stop.cancel()
            task.cancel()

    def stop(self) -> None:
        self._stopping.set()

    async def _keep(self, child: Child) -> None:
        failures = 0
        while child.process:
            started = time.monotonic()
            status = await child.process.wait()
            if self._stopping.is_set():
                return
            if status == BAD_SETTINGS:
                self.refused = child.name
                return self.stop()
            failures = 0 if time.monotonic() - started > HEALTHY_S else failures
            delay = restart_delay(failures)
            self._report(child.name, f"{describe(status)}; starting it again {f'in {delay:g} s' if delay else 'at once'} (see {child.log})")
            failures += 1
            if not await self.until(asyncio.sleep(delay)):
                return
            await self._spawn(child)
            if self._stopping.is_set():  # it was asked for while the new process was being made
                return await self._end(child)

    async def _spawn(self, child: Child) -> None:
        guard = [sys.executable, "-I", "-S", str(GUARD), child.death_signal, str(os.getpid())]
        with child.log.open("ab") as log:
            child.process = await asyncio.create_subprocess_exec(
                *guard,
                *child.command,
                env=dict(child.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=child.pass_fds,
            )

    async def _end(self, child: Child) -> None:
        """SIGTERM, patience, SIGKILL."""
        process = child.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL if self._signals > 1 else signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), child.stop_s)
        except TimeoutError:
            self._report(child.name, f"did not stop within {child.stop_s:g} s; killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._on_signal()
            return self.stop()
        for child in self._children:
            if child.process and child.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.process.kill()


def restart_delay(failures: int) -> float:
    """Seconds before the next start, after so many failed ones in a row: at once, then 0.5, 1, 2, 4 ... 30."""
    return 0.0 if failures == 0 else min(LAST_DELAY_S, 0.5 * 2 ** min(failures - 1, 10))


def describe(status: int) -> str:
    """What an exit status says: `killed by SIGKILL` or `ended with status 3`."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
