"""What is kept of compiled models, where workers share it, are killed or cannot write, and a stream that fails."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.checkpoint_folder import describe
from pipelines.openvino_cache import WRITTEN_S
from pipelines.openvino_model import Compiler, OpenVinoStages
from tests.test_openvino import MIX, drawn, opened, settings, settled
from training.toy import write_toy
from workers import model_openvino
from workers.model import open_backend


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


def test_what_cannot_be_read_or_removed_is_made_anew(toy: Path, tmp_path: Path) -> None:
    first = drawn(*opened(toy, cache=tmp_path), MIX[:1])[0]
    blobs = list(tmp_path.glob("*.blob"))
    assert len(blobs) == 3
    for blob in blobs:
        blob.unlink()
        blob.mkdir()
        (blob / "something").touch()
    assert np.array_equal(first, drawn(*opened(toy, cache=tmp_path), MIX[:1])[0])
    assert sorted(tmp_path.iterdir()) == sorted(blobs)


def test_a_full_disk_keeps_no_half_of_an_entry(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    stages, denoiser = opened(toy, cache=tmp_path)
    assert drawn(stages, denoiser, MIX[:1])[0].shape == (4, 16, 16)
    assert not list(tmp_path.iterdir())


def test_workers_with_one_process_id_write_apart_and_what_killed_ones_left_goes(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, write = [], Path.write_bytes

    def noted(path: Path, content: bytes) -> int:
        names.append(path.name)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", noted)
    monkeypatch.setattr(os, "getpid", lambda: 7)
    opened(toy, cache=tmp_path)
    blobs = list(tmp_path.glob("*.blob"))
    left, young = (blobs[0].with_name(f"{blobs[0].stem}.{name}.part") for name in ("left", "young"))
    for torn in (left, young):
        torn.touch()
    os.utime(left, times=(0, left.stat().st_mtime - 2 * WRITTEN_S))
    blobs[0].unlink()
    opened(toy, cache=tmp_path)
    assert len(names) == len(set(names)) == 4
    assert sorted(tmp_path.iterdir()) == sorted([*blobs, young])


def test_a_file_is_mapped_once(toy: Path, tmp_path: Path) -> None:
    """A VAE that overflows is asked again in float32, for each picture anew."""
    opened(toy, cache=tmp_path)
    gc.collect()
    compiler = Compiler(describe(toy), tmp_path, threads=1)
    stages = OpenVinoStages(describe(toy), compiler)
    z = np.random.default_rng(0).standard_normal((4, 16, 16), dtype=np.float32)
    pictures = [stages.decode(z, exact=exact) for exact in (False, True, True)]
    assert all(np.array_equal(pictures[0], picture) for picture in pictures)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    begins = [path for _, _, offset, _, _, path in lines if not int(offset, 16)]
    assert len(begins) == len(set(begins)) == 2  # text encoder and decoder


def mapped_kb(folder: Path) -> dict[str, int]:
    """What of each entry lies in this process, by its name."""
    found, name = dict[str, int](), ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            name = Path(line.split()[-1]).name if str(folder) in line else ""
        elif name and line.startswith("Rss:"):
            found[name.split("-")[0]] = int(line.split()[1])
    return found


def test_a_worker_settles_once_its_first_pictures_are_out(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it delays them, no bit changes, and the weights lie in no memory twice."""
    quiet = threading.Event()
    monkeypatch.setattr(model_openvino, "_quiet", lambda model: quiet.wait(60) and model())
    said = settings(backend="openvino", device="cpu", dtype="float32", model=str(toy), data_dir=tmp_path, threads=1)
    found = open_backend(said)
    stages, denoiser = found.stages, found.denoiser
    first, before = drawn(stages, denoiser, MIX), denoiser._plain["unet"]
    assert not list(tmp_path.rglob("*.blob"))
    quiet.set()
    settled()
    parts = {"text_encoder", "unet", "vae"} | ({"unet_usual"} if denoiser._usual else set())
    assert parts <= {path.name.split("-")[0] for path in tmp_path.rglob("*.blob")}
    assert denoiser._plain["unet"] is not before
    assert mapped_kb(tmp_path) == dict.fromkeys(parts - {"text_encoder", "vae"}, 0)
    assert all(np.array_equal(a, b) for a, b in zip(first, drawn(stages, denoiser, MIX), strict=True))


def test_what_could_not_be_written_stays_as_it_is(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()  # no folder
    monkeypatch.setattr(model_openvino, "QUIET_S", 0.0)
    denoiser = open_backend(settings(backend="openvino", device="cpu", model=str(toy), data_dir=tmp_path, threads=1)).denoiser
    before = denoiser._plain["unet"]
    settled()
    assert denoiser._plain["unet"] is before


def test_a_worker_that_is_always_asked_settles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_openvino, "LATEST_S", 0.1)
    busy = SimpleNamespace(asked_at=float("inf"))
    assert model_openvino._quiet(lambda: busy) is busy


def test_a_model_that_leaves_is_let_go_at_once(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_openvino, "QUIET_S", 600.0)
    monkeypatch.setattr(model_openvino, "LATEST_S", 600.0)
    found = open_backend(settings(backend="openvino", device="cpu", model=str(toy), data_dir=tmp_path, threads=1))
    left = weakref.ref(found.denoiser)
    del found
    gc.collect()
    settled()
    assert left() is None
    assert not list(tmp_path.rglob("*.blob"))


ENDS = """
import sys
from workers import model_openvino
from workers.model import open_backend
from workers.settings import WorkerSettings
model_openvino.QUIET_S = model_openvino.LATEST_S = 600
open_backend(WorkerSettings(redis_url="redis://localhost", backend="openvino", model=sys.argv[1], data_dir=sys.argv[2], threads=1))
"""


def test_a_worker_that_ends_does_not_settle_first(toy: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", ENDS, str(toy), str(tmp_path)], check=True, timeout=120)
    assert not list(tmp_path.rglob("*.blob"))


def test_a_stream_that_fails_leaves_none_at_work(toy: Path) -> None:
    """The next call would find it busy, and a picture that is well would fail."""
    _, denoiser = opened(toy, streams=2)
    requests: list[Any] = denoiser._plain["unet"]
    at_work: set[int] = set()

    class Stream:
        def __init__(self, place: int) -> None:
            self._place = place
            self.output_tensors = requests[place].output_tensors

        def start_async(self, given: dict[str, np.ndarray]) -> None:
            if self._place in at_work:
                raise RuntimeError("Infer Request is busy")
            at_work.add(self._place)

        def wait(self) -> None:
            at_work.discard(self._place)
            if self._place == 0:
                raise RuntimeError("no memory")

    denoiser._plain["unet"] = [Stream(0), Stream(1)]
    asked = np.zeros((2, 4, 16, 16), np.float32), np.zeros(2, np.float32), np.zeros((2, 32, 192), np.float32)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            denoiser(*asked)
        assert not at_work
