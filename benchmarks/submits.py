"""How many submits a gateway takes, and what idle followers cost it. `python -m benchmarks.submits` prints it.

The gateway is pinned to the first core; the load and Valkey to the others. Submits come at a fixed rate whether they are answered or not
(open loop), over kept connections; a latency counts from the moment at which the submit was due. Where a rate is more than the gateway
can do, the lag grows without end, and that is what is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jobs.valkey
from benchmarks.serving import announce, cpu_seconds, free_port, wait_for
from benchmarks.stamp import commit, machine
from pipelines.checkpoint_folder import describe
from workers.settings import DEFAULT_MODEL

CONNECTIONS = 64
BODY = {"prompt": "a red apple on a blue background", "steps": 20}
GIVE_UP_S = 30.0  # for answers that are late when the last submit has been sent


@dataclass
class Tally:
    latencies: list[float] = field(default_factory=list)  # seconds since the submit was due
    answers: Counter[str] = field(default_factory=Counter)


async def load(port: int, rate: float, seconds: float) -> Tally:
    """Submits at this rate, due one after the other, each sent by the first connection that is free."""
    tally, due, began = Tally(), iter(range(round(rate * seconds))), time.perf_counter()
    body = json.dumps(BODY).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in due:
            at = began + number / rate
            await asyncio.sleep(max(at - time.perf_counter(), 0))
            if time.perf_counter() > began + seconds + GIVE_UP_S:
                tally.answers["given up"] += 1
                continue
            writer.write(request)
            tally.answers[await _answer(reader)] += 1
            tally.latencies.append(time.perf_counter() - at)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return tally


async def _answer(reader: asyncio.StreamReader) -> str:
    """Its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return head[9:12].decode()


@contextmanager
def gateway(folder: Path, core: int) -> Iterator[tuple[int, int]]:
    """Port and process of one that is pinned to a core; Valkey beside it is not."""
    server = jobs.valkey.start(folder)
    port, url = free_port(), jobs.valkey.url(folder)
    asyncio.run(announce(url, describe(DEFAULT_MODEL).card))
    told = {"CELADON_REDIS_URL": url, "CELADON_DATA_DIR": str(folder), "CELADON_PORT": str(port), "CELADON_LOG_LEVEL": "warning"}
    bounds = {"CELADON_MAX_QUEUED": "1000000", "CELADON_MAX_QUEUED_PER_CLIENT": "1000000"}
    others = os.sched_getaffinity(0) - {core} or {core}
    environment, command = os.environ | told | bounds, [sys.executable, "-m", "celadon", "gateway"]
    process = subprocess.Popen(command, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz")
        os.sched_setaffinity(server.pid, others)
        os.sched_setaffinity(0, others)
        yield port, process.pid
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
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=2000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--listeners", type=int, default=200)
    options = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="celadon-", ignore_cleanup_errors=True) as folder, gateway(Path(folder), core) as (port, pid):
        idle = asyncio.run(listen(port, pid, 0, 20))
        share = asyncio.run(listen(port, pid, options.listeners, 20))
        before, began = cpu_seconds(pid), time.perf_counter()
        tally = asyncio.run(load(port, options.rate, options.seconds))
        spent, took = cpu_seconds(pid) - before, time.perf_counter() - began
    accepted, late = tally.answers["202"], sorted(tally.latencies)
    print(f"{machine()}, commit {commit()}")
    print(f"{options.listeners} idle followers: {share:.1%} of a core, {idle:.1%} without them")
    print(f"{options.rate:g} submits a second for {options.seconds:g} s: answers {dict(tally.answers)} within {took:.1f} s")
    print(f"latency 50 % {late[len(late) // 2] * 1000:.0f} ms, 99 % {late[int(len(late) * 0.99)] * 1000:.0f} ms")
    per_cpu_s = f"{accepted / spent:.0f} for each second of the gateway's CPU time"
    print(f"{accepted / took:.0f} accepted a second, {per_cpu_s} ({spent / took:.0%} of its core)")


if __name__ == "__main__":
    main()
