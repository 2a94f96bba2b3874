"""A real S3 server for tests: SeaweedFS, on ports of its own, with one pair of keys and one bucket.

Besides those that are named here it would listen on 8181 and 9101 (catalogs of Iceberg and Lance), and end where somebody does so
already: another one of these, in the next test process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

WEED = Path(sys.executable).with_name("weed")
BUCKET, KEY_ID, SECRET = "celadon-test", "celadon", "a-secret-that-no-log-may-hold"
START_CPU_S, START_S = 30.0, 50.0  # of its own, and of a clock, after which it is given up; a busy machine lets it have little of both
HANGS_S = 150.0
TRIES = 3
PORTS = range(20_000, 32_000)  # below those that the system gives to whoever connects: nobody gets one between choosing and listening
OWNER_ID = "owner"  # who may make buckets; the same secret


@dataclass
class S3Server:
    """Where it is, and who may ask. `stop` and `go_on` make it as one that is away and comes back."""

    endpoint: str
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(default_factory=dict)
    ports: frozenset[int] = frozenset()

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)


def free_ports(count: int) -> list[int]:
    """All of them at one time, so that none comes twice. Others who choose so at this moment choose others, by all likelihood."""
    found = list[int]()
    with ExitStack() as stack:
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError("too few ports are free")


class ServerEnded(RuntimeError):
    """It ended while it started."""


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server with an empty bucket. It is killed at the end: an orderly stop would take it a dozen seconds."""
    with ExitStack() as stack:
        for attempt in range(TRIES):
            try:
                server = stack.enter_context(_started(folder / str(attempt)))
                break
            except ServerEnded:  # somebody took one of its ports between choosing it and listening
                if attempt + 1 == TRIES:
                    raise
        yield server


@contextmanager
def _started(folder: Path) -> Iterator[S3Server]:
    folder.mkdir()
    people = [_identity("owner", OWNER_ID, ["Admin"]), _identity("celadon", KEY_ID, ["Read", "Write", "List"])]
    (folder / "s3.json").write_text(json.dumps({"identities": people}))
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = {
        "dir": folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.telemetry": "false", "volume.max": 20,
        "master.volumeSizeLimitMB": 64, "master.electionTimeout": "1s", "filer.localSocket": folder / "filer.sock",
        "s3.localSocket": folder / "s3.sock", "s3.config": folder / "s3.json", "s3.port.iceberg": 0, "s3.port.lance": 0, **ports,
    }  # fmt: skip
    command = [WEED, "-logtostderr=false", f"-logdir={folder}", "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    keys = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    try:
        _make_bucket(endpoint, process)
        yield S3Server(endpoint, process, keys, frozenset(ports.values()))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _identity(name: str, key_id: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": key_id, "secretKey": SECRET}], "actions": actions}


def _make_bucket(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    """Ask until it has made one: a bucket is a PUT of its name, which an object store client sends for an empty key too."""
    store = S3Store(
        endpoint=endpoint, access_key_id=OWNER_ID, secret_access_key=SECRET, region="us-east-1", bucket=BUCKET,
        client_options={"allow_http": True, "timeout": "5s"}, retry_config={"max_retries": 0},
    )  # fmt: skip
    began = time.monotonic()
    while True:
        if process.poll() is not None:
            raise ServerEnded(f"the S3 server ended with status {process.returncode}")
        try:
            with suppress(AlreadyExistsError):
                obstore.put(store, "", b"", use_multipart=False)
            obstore.put(store, "first", b"x", use_multipart=False)  # a volume to write to comes last
            obstore.delete(store, "first")
            return
        except BaseError as error:
            waited = time.monotonic() - began
            assert waited < START_S or (_cpu_s(process.pid) < START_CPU_S and waited < HANGS_S), f"the S3 server did not start: {error}"
            time.sleep(0.05)


def _cpu_s(pid: int) -> float:
    """Seconds of processor time that it has had; none where the system does not tell."""
    with suppress(OSError, AttributeError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
