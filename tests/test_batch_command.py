"""`celadon batch` and the example of docs/queue.md, against a real gateway and a real worker with a toy model."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from redis.client import Redis as BlockingRedis

import jobs.valkey
from celadon.batch import with_options
from fleet import Fleet, shared
from live_gateway import Live, running
from picture_samples import as_file, as_url, sample_picture
from tests.cards import card
from tests.up_process import environment
from training.toy import write_toy

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("batch")
    with shared(folder, write_toy(folder / "toy")) as service:
        yield service


@contextlib.contextmanager
def started(service: Fleet | Live, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    # What a shell starts in the background inherits a deaf ear for SIGINT; these tests may be such a thing.
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from celadon.__main__ import main; main()"
    command = [sys.executable, "-c", hear, "batch", *map(str, arguments)]
    with subprocess.Popen(command, env=environment(CELADON_URL=service.url), text=True, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def batch(service: Fleet | Live, *arguments: str | Path) -> tuple[int, str]:
    """Exit status and what was said."""
    with started(service, *arguments) as process:
        said = process.communicate(timeout=280)[1]
        return process.returncode, said


def newest(fleet: Fleet) -> dict[str, Any]:
    found: dict[str, Any] = fleet.client.get("/batches?limit=1").json()["batches"][0]
    return found


def test_pictures_are_named_by_line_and_what_is_missing_is_fetched_again(fleet: Fleet, tmp_path: Path) -> None:
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    file.write_text('"a [red] apple"\n\n{"prompt": "a car", "num_images": 2, "steps": 3}\n{"prompt": "a", "sampler": "nope"}\n"a frog"\n')
    status, said = batch(fleet, file, "-o", out, "--set", "steps=2", "--set", "output_format=webp")
    names = {"00001.webp", "00003-1.webp", "00003-2.webp", "00005.webp"}
    assert status == 1 and {p.name for p in out.glob("*.webp")} == names, said
    assert "line 4: refused: There is no sampler 'nope'" in " ".join(said.split())
    with Image.open(out / "00005.webp") as picture:
        assert picture.size == (128, 128)
    first = newest(fleet)
    kept = (out / "00003-2.webp").read_bytes()
    (out / "00003-2.webp").unlink()
    with BlockingRedis.from_url(jobs.valkey.url(fleet.folder)) as redis:
        assert redis.delete(*redis.keys("{q0}:idem:*"))  # as after a day
    assert batch(fleet, file, "-o", out, "--set", "steps=2", "--set", "output_format=webp")[0] == 1
    assert (out / "00003-2.webp").read_bytes() == kept and newest(fleet)["id"] == first["id"], "nothing is drawn a second time"
    job = fleet.client.get(first["links"]["results"].removeprefix(fleet.url)).text.splitlines()[0]
    assert fleet.job(json.loads(job)["id"])["params"]["steps"] == 2


def test_stopped_and_run_again_it_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    file, out = tmp_path / "many.jsonl", tmp_path / "out"  # one is there long before the others, which are drawn side by side
    file.write_text("\n".join(json.dumps({"prompt": f"{n} apples", "steps": 2 if n == 1 else 80}) for n in range(1, 41)))
    with started(fleet, file, "-o", out) as process:
        fleet.until(lambda: any(out.glob("*.png")))
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=280)[1]
    assert process.returncode == 130 and "Run it again" in said
    status, said = batch(fleet, file, "-o", out)
    assert status == 0 and {p.name for p in out.glob("*.png")} == {f"{n:05d}.png" for n in range(1, 41)}, said
    assert newest(fleet)["counts"] | {"succeeded": 40, "queued": 0} == newest(fleet)["counts"] and not list(out.glob("*.part"))


def test_what_is_left_can_be_canceled(fleet: Fleet, tmp_path: Path) -> None:
    file, out = tmp_path / "slow.txt", tmp_path / "out"
    file.write_text("\n".join(f"{n} slow cats" for n in range(30)))
    note = out / ".celadon-batch.json"
    with started(fleet, file, "-o", out, "--set", "steps=100") as process:
        fleet.until(lambda: note.exists() and "id" in json.loads(note.read_text()))
        assert batch(fleet, file, "-o", out, "--cancel")[0] == 0
        said = process.communicate(timeout=280)[1]
    assert process.returncode == 1 and "canceled" in said and newest(fleet)["status"] == "ended"


def test_a_file_of_nothing_good_says_why(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("{oops\n")
    status, said = batch(fleet, file, "-o", tmp_path / "out")
    assert status == 1 and "Line 1: The line is not JSON" in " ".join(said.split())


def test_a_full_queue_is_waited_for_and_full_uploads_are_not(redis_url: str, tmp_path: Path) -> None:
    file, out = tmp_path / "lines.jsonl", tmp_path / "out"
    with running(redis_url, tmp_path, card(), max_uploads=1, max_queued=2) as live:
        assert live.http.post("/uploads", files={"file": as_file(sample_picture(seed=1))}).status_code == 201
        file.write_text(json.dumps({"prompt": "x", "image": as_url(sample_picture(seed=2))}))
        status, said = batch(live, file, "-o", out)
        assert status == 1 and "(too_many_uploads)" in said and "Trying again" not in said, said
        assert [live.post({"prompt": "x"}).status_code for _ in range(2)] == [202, 202]
        file.write_text('"x"')
        with started(live, file, "-o", out) as process:
            assert process.stderr and "queue is full" in (heard := process.stderr.readline()) and "Trying again in" in heard
            assert process.poll() is None


def test_options_stand_beneath_what_the_file_says() -> None:
    def lines(body: str, *, plain: bool = False) -> list[Any]:
        sent = with_options(body.encode(), {"steps": 2}, plain=plain).decode()
        return [json.loads(line) if line.strip() else None for line in sent.split("\n")]

    assert lines('{"defaults": {"steps": 9}}\n"a"') == [{"defaults": {"steps": 9}}, "a"]
    assert lines('{"defaults": {"seed": 9}}\n\n"a"') == [{"defaults": {"steps": 2, "seed": 9}}, None, "a"]
    assert lines('"a"\n\n{"prompt": "b", "steps": 3}') == [{"steps": 2, "prompt": "a"}, None, {"steps": 3, "prompt": "b"}]
    assert lines('say "a"\n\nb', plain=True) == [{"steps": 2, "prompt": 'say "a"'}, None, {"steps": 2, "prompt": "b"}]


def test_the_example_of_the_queue_runs(fleet: Fleet) -> None:
    """Taken from the page as it stands; the second time the key finds the same job."""
    (code,) = re.findall(r"```python\n(import asyncio.*?)```", (ROOT / "docs" / "queue.md").read_text(), re.DOTALL)
    for told in ("queued 0 of 8", ""):
        variables = environment(CELADON_REDIS_URL=jobs.valkey.url(fleet.folder), PYTHONPATH=str(ROOT))
        run = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=280)
        assert run.returncode == 0, run.stderr
        assert told in run.stdout
        status, key = run.stdout.splitlines()[-1].split()
        assert status == "succeeded" and (fleet.folder / "images" / key).exists()
