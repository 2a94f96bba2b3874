"""Real processes for end-to-end tests: Valkey, gateway and workers, each started, killed and restarted by hand."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2

import jobs.valkey

TIMEOUT_S = 120.0  # a worker that starts beside others on a busy machine takes a minute


@contextlib.contextmanager
def shared(folder: Path, model: Path, **environment: str) -> Iterator[Fleet]:
    """A gateway and one worker that gentle tests share, on a server of their own: other tests empty theirs."""
    server = jobs.valkey.start(folder)
    fleet = Fleet(jobs.valkey.url(folder), folder, model, **environment)
    try:
        fleet.gateway()
        fleet.worker()
        yield fleet
    finally:
        fleet.close()
        server.terminate()
        server.wait()


class Fleet:
    """One gateway and any number of workers on one Redis, in one data directory. With a key its client shows it."""

    def __init__(self, redis_url: str, folder: Path, model: Path, *, key: str = "", **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("CELADON_")} | {
            "CELADON_REDIS_URL": redis_url,
            "CELADON_DATA_DIR": str(folder),
            "CELADON_MODEL": str(model),
            "CELADON_DTYPE": "float32",
            "CELADON_THREADS": "1",
            "CELADON_LEASE_S": "2",
            "CELADON_RENEW_S": "0.2",
            "CELADON_PROGRESS_S": "0.05",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.client = httpx2.Client(base_url=self.url, headers=self._headers, timeout=TIMEOUT_S)

    def gateway(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        self._gateway = self.start("gateway", CELADON_PORT=str(self.port))
        if wait:
            self.until(lambda: self.client.get("/healthz").status_code == 200)
        return self._gateway

    def restart_gateway(self, *, wait: bool = True) -> None:
        """Kill -9, then a new one on the same port."""
        self._gateway.kill()
        self._gateway.wait()
        self.client.close()
        self.client = httpx2.Client(base_url=self.url, headers=self._headers, timeout=TIMEOUT_S)
        self.gateway(wait=wait)

    def worker(self, program: Sequence[str] = ("celadon", "worker"), **environment: str) -> subprocess.Popen[bytes]:
        """A worker that is ready to draw. `program`: a module and its arguments."""
        before = self.workers()
        process = self.start(*program[1:], module=program[0], **environment)
        self.until(lambda: bool(self.workers() - before) or process.poll() is not None)
        assert process.poll() is None, (self.folder / "log").read_text()[-4000:]
        return process

    def crew(self, count: int, **environment: str) -> None:
        """So many workers, started at once and ready to draw."""
        ready = len(self.workers()) + count
        for _ in range(count):
            self.start("worker", **environment)
        self.until(lambda: len(self.workers()) >= ready, count * TIMEOUT_S)

    def workers(self) -> set[str]:
        """Ids of the workers whose heart beats."""
        return {w["id"] for w in self.client.get("/workers").json()}

    def submit(self, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
        answer = self.client.post("/generate", json={"prompt": "a red apple", "steps": 4} | body, headers=headers)
        assert answer.status_code in (200, 202), answer.text
        job: dict[str, Any] = answer.json()
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.client.get(f"/jobs/{job_id}").json()
        return job

    def events(self, job_id: str, after: str | None = None) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(id, type, data) of a job, as they come, to the final one."""
        headers = {"Last-Event-ID": after} if after else {}
        with self.client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
            assert answer.status_code == 200
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if not line and "data" in fields:
                    yield fields["id"], fields["event"], json.loads(fields["data"])
                    fields = {}
                elif line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    fields[name] = value

    def finished(self, job_id: str) -> dict[str, Any]:
        """The job after its final event."""
        for _ in self.events(job_id):
            pass
        return self.job(job_id)

    def running(self, job_id: str) -> None:
        """Returns once the job has made progress."""
        assert any(kind == "progress" for _, kind, _ in self.events(job_id)), "the job ended without any progress"

    def picture(self, job: dict[str, Any], index: int = 0) -> bytes:
        answer = self.client.get(job["images"][index]["url"])
        assert answer.status_code == 200, answer.text
        return answer.content

    def until(self, condition: Callable[[], bool], limit_s: float = TIMEOUT_S) -> None:
        """Asks again and again; fails loudly after two minutes."""
        limit = time.monotonic() + limit_s
        while time.monotonic() < limit:
            with contextlib.suppress(httpx2.TransportError):
                if condition():
                    return
            time.sleep(0.1)  # not more often: asking costs time that a process needs to start
        raise TimeoutError((self.folder / "log").read_text()[-4000:])

    def close(self) -> None:
        self.client.close()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
        for process in self._processes:
            process.wait()

    def faulty_worker(self, fault: str, seed: int, **environment: str) -> subprocess.Popen[bytes]:
        """One with a fault of `tests.faulty_worker`, which strikes as long as `self.fault` exists."""
        told = {"FAULT": fault, "FAULT_SEED": str(seed), "FAULT_FILE": str(self.fault)}
        return self.worker(("tests.faulty_worker",), **told, **environment)

    @property
    def fault(self) -> Path:
        return self.folder / "fault"

    def start(self, *arguments: str, module: str = "celadon", **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, env=self._environment | environment, stdout=log, stderr=subprocess.STDOUT)
        self._processes.append(process)
        return process


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
