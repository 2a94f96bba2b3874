"""`celadon up` and its supervisor, with real processes: what is killed comes back, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from redis.client import Redis
from redis.exceptions import ConnectionError, ResponseError

import jobs.valkey
from celadon.supervisor import GUARD, Child, Supervisor, describe, restart_delay
from tests.up_process import LIMIT_S, UpProcess, alive, descendants, environment, eventually, up

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
DEAF = (
    "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def store(data_dir: Path) -> Redis:
    return Redis.from_url(jobs.valkey.url(data_dir), decode_responses=True)


def test_children_are_processes_that_say_what_they_are(data_dir: Path) -> None:
    with up(data_dir) as service:
        assert httpx2.get(f"{service.url}/healthz").status_code == 200
        lines = sorted(service.children().values())
        assert [word in line for line, word in zip(lines, ("celadon gateway", "valkey-server"), strict=True)] == [True, True]
        assert service.stop() == 0
        assert "Stopped" in service.said()


def test_kill_9_of_the_supervisor_leaves_nobody(data_dir: Path) -> None:
    # The worker is killed while it is still loading: the moment when a promise to watch the parent is easily not kept yet.
    with up(data_dir, "--workers", "1") as service:
        assert service.url
        children = {service.child(word) for word in ("celadon gateway", "celadon worker", "valkey-server")}
        service.process.kill()
        eventually(lambda: not alive(children), "the children's end")
    with up(data_dir) as service:  # and the folder is free again at once
        assert httpx2.get(f"{service.url}/healthz").status_code == 200


def test_a_killed_gateway_comes_back_and_no_request_is_refused(data_dir: Path) -> None:
    with up(data_dir) as service:
        url, first = service.url, service.child("celadon gateway")
        os.kill(first, signal.SIGKILL)
        eventually(lambda: first not in service.children(), "the first gateway's end")
        assert httpx2.get(f"{url}/healthz", timeout=30).status_code == 200  # it waits in the listening socket's queue
        assert service.child("celadon gateway") != first


def test_a_killed_valkey_comes_back_with_its_data(data_dir: Path) -> None:
    with up(data_dir) as service:
        assert service.url
        with store(data_dir) as redis:
            redis.set("kept", "yes")
        first = service.child("valkey-server")
        os.kill(first, signal.SIGKILL)
        eventually(lambda: first not in service.children(), "the first server's end")
        eventually(lambda: httpx2.get(f"{service.url}/readyz").json() and _value(data_dir, "kept"), "the second server")
        assert "valkey killed by SIGKILL; starting it again at once" in service.said()


def test_data_survive_the_service(data_dir: Path) -> None:
    with up(data_dir) as service:
        assert service.url
        with store(data_dir) as redis:
            redis.set("kept", "yes")
        assert service.stop(signal.SIGINT) == 0
    with up(data_dir) as service:
        assert service.url
        assert _value(data_dir, "kept") == "yes"


def test_a_second_service_is_refused(data_dir: Path, tmp_path: Path) -> None:
    with up(data_dir) as service:
        port = service.url.rpartition(":")[2]
        same_folder = refused("--data-dir", str(data_dir), "--port", "0")
        assert service.url in same_folder
        assert "--data-dir" in same_folder
        same_port = refused("--data-dir", str(tmp_path / "other"), "--port", port)
        assert f"port {port} of 127.0.0.1 cannot be opened" in same_port


def test_the_second_signal_kills(data_dir: Path) -> None:
    with up(data_dir) as service:
        assert service.url
        children = set(service.children())
        os.kill(service.child("celadon gateway"), signal.SIGSTOP)  # it would keep the end waiting
        service.process.send_signal(signal.SIGINT)
        eventually(lambda: "Stopping" in service.said(), "the first signal's effect")
        begun = time.monotonic()
        assert service.stop(signal.SIGINT) == 0
        assert time.monotonic() - begun < 10  # and not the 25 s that a gateway may take
        assert not alive(children)


def test_an_existing_redis_is_used_and_its_address_stays_out_of_the_command_lines(data_dir: Path, redis_url: str) -> None:
    with up(data_dir, CELADON_REDIS_URL=redis_url) as service:
        assert httpx2.get(f"{service.url}/healthz").status_code == 200
        lines = list(service.children().values())
        assert len(lines) == 1
        assert "celadon gateway" in lines[0]
        assert redis_url not in lines[0]
        assert service.stop() == 0
    with Redis.from_url(redis_url) as redis:
        assert redis.ping()  # it was not ours to stop


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CELADON_MAX_STEPS", "many"),
        ("CELADON_SLOTS", "0"),
        ("CELADON_PROT", "7860"),
        ("CELADON_REDIS_URL", "http://127.0.0.1"),
        ("CELADON_REDIS_URL", "redis://someone:secret@127.0.0.1:1/0"),
        ("CELADON_WORKERS", "-1"),
    ],
)
def test_a_bad_variable_refuses_the_start_and_is_named(data_dir: Path, variable: str, value: str) -> None:
    said = refused("--data-dir", str(data_dir), "--port", "0", **{variable: value})
    assert variable in said
    assert "secret" not in said
    assert "Traceback" not in said
    assert not data_dir.exists()


def test_a_model_that_is_none_ends_the_start_with_its_reason(data_dir: Path, tmp_path: Path) -> None:
    """Starting such a worker again and again would help nobody."""
    up = UpProcess(data_dir, CELADON_MODEL=str(tmp_path / "nothing-here"))
    assert up.process.wait(timeout=LIMIT_S) == 2
    assert "CELADON_MODEL: no folder nothing-here" in up.said()


async def test_the_dead_start_again_at_once_and_then_later_and_later(tmp_path: Path) -> None:
    seen: list[str] = []
    third = asyncio.Event()

    def report(name: str, line: str) -> None:
        seen.append(line)
        if len(seen) == 3:
            third.set()

    supervisor = Supervisor(report)
    await supervisor.add(child(tmp_path, [sys.executable, "-I", "-S", "-c", "import sys; sys.exit(7)"]))
    await asyncio.wait_for(third.wait(), 30)
    supervisor.stop()
    await asyncio.wait_for(supervisor.run(), 30)
    assert [line.partition(" (see")[0] for line in seen] == [
        "ended with status 7; starting it again at once",
        "ended with status 7; starting it again in 0.5 s",
        "ended with status 7; starting it again in 1 s",
    ]


async def test_a_child_that_refuses_its_settings_ends_everything(tmp_path: Path) -> None:
    supervisor = Supervisor(lambda name, line: None)
    await supervisor.add(child(tmp_path, SLEEPER, name="other"))
    await supervisor.add(child(tmp_path, [sys.executable, "-I", "-S", "-c", "import sys; sys.exit(2)"]))
    await asyncio.wait_for(supervisor.run(), 30)
    assert supervisor.refused == "it"


async def test_a_child_that_is_deaf_to_sigterm_is_killed(tmp_path: Path) -> None:
    seen: list[str] = []
    supervisor = Supervisor(lambda name, line: seen.append(line))
    deaf = child(tmp_path, [sys.executable, "-I", "-S", "-c", DEAF, str(tmp_path / "deaf")], stop_s=0.1)
    await supervisor.add(deaf)
    while not (tmp_path / "deaf").exists():
        await asyncio.sleep(0.01)
    supervisor.stop()
    await asyncio.wait_for(supervisor.run(), 30)
    assert seen == ["did not stop within 0.1 s; killed"]
    assert deaf.pid is None


async def test_the_highest_stage_stops_first(tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n    open(sys.argv[1], 'a').write(sys.argv[2]); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); pathlib.Path(sys.argv[1] + sys.argv[2]).touch(); time.sleep(600)"
    )
    supervisor = Supervisor(lambda name, line: None)
    for stage in (1, 0, 2):
        await supervisor.add(
            child(tmp_path, [sys.executable, "-I", "-S", "-c", script, str(order), str(stage)], name=str(stage), stage=stage)
        )
    while len(list(tmp_path.glob("order?"))) < 3:
        await asyncio.sleep(0.01)
    supervisor.stop()
    await asyncio.wait_for(supervisor.run(), 30)
    assert order.read_text() == "210"


def test_restart_delays() -> None:
    assert [restart_delay(n) for n in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert restart_delay(10_000) == 30


def test_exit_statuses_in_words() -> None:
    assert (describe(-9), describe(3)) == ("killed by SIGKILL", "ended with status 3")


def test_the_guard_does_not_start_for_a_parent_that_is_gone() -> None:
    """The parent may die before its child could ask to be told of it."""
    gone = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    gone.wait()
    assert subprocess.run([sys.executable, "-I", "-S", str(GUARD), "SIGKILL", str(gone.pid), *SLEEPER], timeout=30).returncode == 1


def test_where_the_kernel_does_not_tell_the_guard_watches(tmp_path: Path) -> None:
    """The way of systems without PR_SET_PDEATHSIG: the guard stays beside its command and looks after the parent."""
    watch = f"import os, runpy, signal, sys; runpy.run_path({str(GUARD)!r})['watch']({SLEEPER!r}, os.getppid(), signal.SIGKILL)"
    spawn = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {watch!r}]); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", spawn]) as parent:
        family = eventually(lambda: [p for p in descendants(parent.pid) if len(descendants(parent.pid)) == 2], "guard and command")
        parent.kill()
    eventually(lambda: not alive(set(family)), "the end of guard and command")


def child(folder: Path, command: list[str], name: str = "it", **options: object) -> Child:
    return Child(name, command, environment(), folder / f"{name}.log", **options)


def refused(*arguments: str, **variables: str) -> str:
    """What `celadon up` says when it does not start."""
    command = [sys.executable, "-m", "celadon", "up", "--workers", "0", *arguments]
    if "CELADON_WORKERS" in variables:
        command[4:6] = []
    run = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=50)
    assert run.returncode == 2, run.stdout + run.stderr
    return run.stdout + run.stderr


def _value(data_dir: Path, key: str) -> str | None:
    with store(data_dir) as redis:
        try:
            value = redis.get(key)
        except (ConnectionError, ResponseError):  # away, or still reading its file
            return None
    assert value is None or isinstance(value, str)
    return value
