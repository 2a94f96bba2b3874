"""How many submits a gateway takes, and what idle followers cost it. `python -m benchmarks.submits` prints it.

The gateway is pinned to the first core; the load and Valkey to the others. Submits come at a fixed rate whether they are answered or not
(open loop), each with a prompt of its own, over kept connections of HTTP/1.1; a latency counts from the moment at which the submit was
due. Where a rate is more than the gateway can do, the lag grows without end, and that is what is reported. CPU time is the kernel's
account, so that a figure for each submit also means something on a machine that does other work.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop

import jobs.valkey
from benchmarks.load import percentile
from benchmarks.serving import announce, cpu_seconds, free_port, wait_for
from benchmarks.stamp import commit, machine
from pipelines.checkpoint_folder import describe
from workers.settings import DEFAULT_MODEL

CONNECTIONS = 64
BODY = {"prompt": "a red apple on a blue background", "steps": 20}
GIVE_UP_S = 30.0  # for answers that are late when the last submit has been sent
HEAD = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
ACCEPTED = "202"


@dataclass
class Tally:
    latencies: list[float] = field(default_factory=list)  # of the accepted ones: seconds since the submit was due
    answers: Counter[str] = field(default_factory=Counter)  # statuses, and what else became of a submit


class Connection(asyncio.Protocol):
    """One submit after the other; `free` holds those that wait for one."""

    def __init__(self, tally: Tally, free: deque[Connection]) -> None:
        self._tally, self._free = tally, free
        self._due, self._read = 0.0, b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._free.append(self)

    def send(self, number: int, due: float) -> None:
        assert self._transport
        body = b'{"prompt":"%d: a red apple on a blue background","steps":20}' % number
        self._due, self._read = due, b""
        self._transport.write(HEAD % (len(body), body))

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, rest = self._read.partition(b"\r\n\r\n")
        if end and len(rest) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            status = head[9:12].decode()
            self._tally.answers[status] += 1
            if status == ACCEPTED:
                self._tally.latencies.append(time.perf_counter() - self._due)
            self._due = 0.0
            self._free.append(self)

    def give_up(self) -> None:
        """What it still waits for is counted already."""
        self._due = 0.0

    def connection_lost(self, exc: Exception | None) -> None:
        if self._due:
            self._tally.answers[f"connection lost: {type(exc).__name__}"] += 1
        if self in self._free:
            self._free.remove(self)


async def load(port: int, rate: float, seconds: float) -> Tally:
    """Submits at this rate, due one after the other, each sent by the first connection that is free."""
    tally, free, loop = Tally(), deque[Connection](), asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: Connection(tally, free), "127.0.0.1", port) for _ in range(CONNECTIONS)]
    number, wanted, began = 0, round(rate * seconds), time.perf_counter()
    while sum(tally.answers.values()) < wanted and (now := time.perf_counter()) < began + seconds + GIVE_UP_S:
        while free and number < min((now - began) * rate, wanted):
            free.popleft().send(number, began + number / rate)
            number += 1
        await asyncio.sleep(0.001)
    tally.answers["given up"] += wanted - sum(tally.answers.values())
    for transport, connection in made:
        connection.give_up()
        transport.close()
    return tally


@contextmanager
def gateway(folder: Path, core: int) -> Iterator[tuple[int, int, int]]:
    """Port and process of one that is pinned to a core, and the process of Valkey beside it, which is not."""
    server = jobs.valkey.start(folder)
    port, url = free_port(), jobs.valkey.url(folder)
    asyncio.run(announce(url, describe(DEFAULT_MODEL).card))
    told = {"CELADON_REDIS_URL": url, "CELADON_DATA_DIR": str(folder), "CELADON_PORT": str(port)}
    bounds = {"CELADON_MAX_QUEUED": "1000000", "CELADON_MAX_QUEUED_PER_CLIENT": "1000000"}
    others = os.sched_getaffinity(0) - {core} or {core}
    environment, command = told | bounds | os.environ, [sys.executable, "-m", "celadon", "gateway"]
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz")
        os.sched_setaffinity(server.pid, others)
        os.sched_setaffinity(0, others)
        yield port, process.pid, server.pid
    finally:
        process.terminate()
        process.wait()
        server.terminate()
        server.wait()


async def listen(port: int, pid: int, count: int, seconds: float) -> float:
    """Share of a core that the gateway takes while so many follow a queued job each, and nothing happens."""
    streams = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(BODY).encode()
        writer.write(HEAD % (len(body), body))
        answer = await reader.readuntil(b"\r\n\r\n")
        job = json.loads(await reader.readexactly(int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])))
        writer.write(f"GET /jobs/{job['id']}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"event: queued")
        streams.append((reader, writer))
    await asyncio.sleep(2)  # what the start of them costs is not meant
    before, began = cpu_seconds(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    share = (cpu_seconds(pid) - before) / (time.perf_counter() - began)
    for _, writer in streams:
        writer.close()
    return share


@dataclass(frozen=True)
class Spent:
    """CPU seconds, and the time they were spent in."""

    gateway: float
    valkey: float
    load: float
    took: float


def measure(port: int, pid: int, server: int, rate: float, seconds: float) -> tuple[Tally, Spent]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(load(port, min(rate, 500), 1))  # the first ones load what is loaded once
        gc.collect()
        before, began = (cpu_seconds(pid), cpu_seconds(server), time.process_time()), time.perf_counter()
        tally = runner.run(load(port, rate, seconds))
    spent = (now - then for now, then in zip((cpu_seconds(pid), cpu_seconds(server), time.process_time()), before, strict=True))
    return tally, Spent(*spent, time.perf_counter() - began)


def report(tally: Tally, spent: Spent, rate: float, seconds: float) -> str:
    accepted, offered = tally.answers[ACCEPTED], round(rate * seconds)
    errors = {what: count for what, count in tally.answers.items() if what != ACCEPTED and count}
    late = [f"{share:.0%} {percentile(tally.latencies, share) * 1000:.1f} ms" for share in (0.5, 0.95, 0.99) if tally.latencies]
    each = [f"{name} {seconds * 1000 / max(accepted, 1):.3f} ms" for name, seconds in list(vars(spent).items())[:3]]
    shares = [f"{name} {seconds / spent.took:.0%}" for name, seconds in list(vars(spent).items())[:3]]
    return "\n".join((
        f"offered {rate:g} submits a second for {seconds:g} s ({offered}); accepted {accepted}, {accepted / spent.took:.0f} a second",
        f"errors: {errors or 'none'}",
        f"latency of the accepted: {', '.join(late)}",
        f"CPU time of each: {', '.join(each)}; {accepted / max(spent.gateway, 0.01):.0f} for each second of the gateway's",
        f"share of a core: {', '.join(shares)}",
    ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=2000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--listeners", type=int, default=200, help="0: none, and no figures of them")
    options = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    print(f"{machine()}, commit {commit()}")
    with tempfile.TemporaryDirectory(prefix="celadon-", ignore_cleanup_errors=True) as folder, gateway(Path(folder), core) as running:
        port, pid, server = running
        if options.listeners:
            idle = asyncio.run(listen(port, pid, 0, 20))
            share = asyncio.run(listen(port, pid, options.listeners, 20))
            print(f"{options.listeners} idle followers: {share:.1%} of a core, {idle:.1%} without them")
        print(report(*measure(port, pid, server, options.rate, options.seconds), options.rate, options.seconds))


if __name__ == "__main__":
    main()
