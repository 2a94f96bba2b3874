"""Recorded U-Net calls: what lies in their buffers, which calls are replayed and which not and why; on a GPU, that a graph answers as the
plain call does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import array_api_compat.torch
import numpy as np
import pytest
import torch

from pipelines.controls import Shown
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.loading import Checkpoint, load
from pipelines.replay import WARM_UPS, WORTH, CudaRecorder, PlainRecorder, Replay
from tests import checkpoints
from tests.test_torch_devices import jobs, sample_of
from workers import model_torch
from workers.model import open_model
from workers.model_torch import why_no_graphs
from workers.settings import WorkerSettings

SHAPE = (4, 6, 8)


class OnTorch(TorchDenoiser):
    """As on a GPU: registers and rows are torch's tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.xp, self.device = array_api_compat.torch, self._torch_device


class Told(list[tuple[str, dict[str, Any]]]):
    def __call__(self, event: str, **facts: Any) -> None:
        self.append((event, facts))

    def reasons(self, event: str = "not_replayed") -> list[str]:
        return [facts["reason"] for name, facts in self if name == event]


class Counting(PlainRecorder):
    """Counts recordings and replays."""

    def __init__(self) -> None:
        self.recordings, self.replays = 0, 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        again, self.recordings = super().record(work), self.recordings + 1

        def replay() -> None:
            self.replays += 1
            again()

        return replay


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return checkpoints.write(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load(folder, device=torch.device("cpu"), dtype=torch.float32)


def plain_of(checkpoint: Checkpoint, kind: type[TorchDenoiser] = TorchDenoiser) -> TorchDenoiser:
    return kind(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype, told=checkpoint.told)


def call(checkpoint: Checkpoint, rows: int, *, seed: int = 0, length: int = 7, shape: tuple[int, int, int] = SHAPE) -> list[Any]:
    """x, timestep, context, marks and what the model is told of so many rows."""
    rng = np.random.default_rng(seed)
    arrays = (rng.standard_normal((rows, *of), dtype=np.float32) for of in (shape, (length, checkpoint.unet.config.cross_attention_dim)))
    x, context = arrays
    told = [rng.random((rows, checkpoint.told.width), dtype=np.float32)] if checkpoint.told.width else []
    return [x, np.linspace(900, 100, rows, dtype=np.float32), context, (), *told]


def warmed(checkpoint: Checkpoint, sizes: tuple[int, ...], recorder: PlainRecorder | None = None, tell: Told | None = None) -> Replay:
    """Knows these sizes, and has recorded nothing yet."""
    replay = Replay(plain_of(checkpoint), recorder or PlainRecorder(), Told() if tell is None else tell)
    with replay.warming(sizes):
        pass
    return replay


@pytest.mark.parametrize("kind", [TorchDenoiser, OnTorch])
def test_a_replayed_call_answers_as_the_plain_one(checkpoint: Checkpoint, kind: type[TorchDenoiser]) -> None:
    """To the bit, at the rows of a bucket; the rows that fill up are whatever earlier calls left."""
    recorder, plain = Counting(), plain_of(checkpoint, kind)
    replay = Replay(plain, recorder, Told())
    with replay.warming((4, 8)):
        for rows in (8, 4):
            replay(*call(checkpoint, rows))
    for seed, rows in enumerate((4, 8, 3, 4), start=1):
        x, t, context, _, *told = call(checkpoint, rows, seed=seed)
        filled = 4 if rows == 3 else rows
        given = [np.concatenate([a, a[:1]]) if rows == 3 else a for a in (x, t, context, *told)]
        wanted = plain(*given[:3], (), *given[3:])
        found = replay(x, t, context, (), *told)
        assert type(found) is type(wanted) and len(wanted) == filled
        assert np.array_equal(np.asarray(found), np.asarray(wanted)[:rows])
    assert (recorder.recordings, recorder.replays) == (2, 2 + 2 + 4), "each recording is tried twice: in its check, and by the call"
    assert not replay.plainly


def test_an_answer_is_the_callers_own(checkpoint: Checkpoint) -> None:
    """The next replay overwrites the buffers."""
    replay = warmed(checkpoint, (2,))
    for _ in range(WORTH):
        first = replay(*call(checkpoint, 2))
    kept = first.copy()
    replay(*call(checkpoint, 2, seed=1))
    assert np.array_equal(first, kept)


def test_samples_join_and_leave_and_nothing_is_allocated_anew(checkpoint: Checkpoint) -> None:
    replay = warmed(checkpoint, (2, 4))
    places = set()
    for number in range(4 * WORTH):
        replay(*call(checkpoint, 1 + number % 4, seed=number))
        places |= {tuple(b.data_ptr() for b in (of.x, of.timestep, of.context, of.out)) for of in replay._buffers.values()}
    assert len(places) == 1 and len(replay._graphs) == 2, "both buckets work in the same buffers"


def test_why_a_call_is_not_replayed(checkpoint: Checkpoint) -> None:
    """Each reason is told once; the answer is the plain one."""
    plain, tell = plain_of(checkpoint), Told()
    replay = Replay(plain, PlainRecorder(), tell)
    x, t, context, _, *told = call(checkpoint, 2)
    replay(x, t, context, (), *told)
    assert replay.plainly == {"before the warm-up": 1} and not tell
    with replay.warming((2,)):
        replay(x, t, context, (), *told)
    for _ in range(2):
        marked = replay(x, t, context, ("", "pag"), *told)
        assert np.array_equal(marked, plain(x, t, context, ("", "pag"), *told))
        out, deep = replay.remember(x, t, context, (), *told)
        assert np.array_equal(out, plain(x, t, context, (), *told))
        assert np.array_equal(replay.recall(x, t, context, deep, *told), plain.recall(x, t, context, deep, *told))
        replay(*call(checkpoint, 3))
    assert tell.reasons() == ["disturbed rows", "deep layers", "more rows than the largest bucket"]
    assert replay._why_not(2, (), (("of", 1.0),), None) == "LoRAs"  # type: ignore[arg-type]
    assert replay._why_not(2, (), (), Shown("edges", x, t)) == "ControlNet"
    assert replay._why_not(2, ("", ""), (), None) == ""


def test_a_size_is_recorded_once_it_is_asked_often(checkpoint: Checkpoint) -> None:
    recorder, tell = Counting(), Told()
    replay = warmed(checkpoint, (2,), recorder, tell=tell)
    for _ in range(WORTH - 1):
        replay(*call(checkpoint, 2))
    assert recorder.recordings == 0 and replay.plainly == {"not asked often": WORTH - 1}
    replay(*call(checkpoint, 2))
    replay(*call(checkpoint, 2, shape=(4, 8, 8)))
    assert recorder.recordings == 1 and replay.plainly["not asked often"] == WORTH
    assert ("recorded", {"latent": SHAPE, "tokens": 7, "rows": 2}) in tell


def test_graphs_are_bounded_and_the_one_replayed_longest_ago_goes(checkpoint: Checkpoint) -> None:
    recorder = Counting()
    replay = Replay(plain_of(checkpoint), recorder, Told(), most=2)
    with replay.warming((2,)):
        for length in (5, 6, 5, 7):
            replay(*call(checkpoint, 2, length=length))
    assert [key[1] for key in replay._graphs] == [5, 7] and {place[1] for place in replay._buffers} == {5, 7}
    replay(*call(checkpoint, 2, length=6))
    assert recorder.recordings == 3 and replay.plainly == {"not asked often": 1}


class Failing(PlainRecorder):
    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 MiB")


class Otherwise(PlainRecorder):
    """What it records does nothing."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class Broken(PlainRecorder):
    """A capture that ends in vain after memory was missing, or for another reason."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        try:
            raise self.cause
        finally:
            raise RuntimeError("capture failed")


@pytest.mark.parametrize(("recorder", "reason"), [(Otherwise(), "other bits"), (Broken(ValueError("a synchronisation")), "capture failed")])
def test_where_a_recording_fails_calls_go_on_plainly_and_no_other_is_tried(checkpoint: Checkpoint, recorder: Any, reason: str) -> None:
    tell, plain = Told(), plain_of(checkpoint)
    replay = Replay(plain, recorder, tell)
    with replay.warming((2, 4)):
        for rows in (4, 2):
            assert np.array_equal(replay(*call(checkpoint, rows)), plain(*call(checkpoint, rows)))
    assert len(tell.reasons("not_recorded")) == 1 and reason in tell.reasons("not_recorded")[0]
    assert replay.plainly == {"recording is closed": 2} and not replay._graphs


@pytest.mark.parametrize("recorder", [Failing(), Broken(torch.OutOfMemoryError())])
def test_where_memory_is_missing_others_are_tried_still(checkpoint: Checkpoint, recorder: Any) -> None:
    tell = Told()
    replay = Replay(plain_of(checkpoint), recorder, tell)
    with replay.warming((2, 4)):
        for rows in (4, 2, 4):
            replay(*call(checkpoint, rows))
    assert len(tell.reasons("not_recorded")) == 2 and replay.plainly == {"no memory for a recording": 3}


def drawn(engine: Engine, samples: list[Any]) -> list[np.ndarray]:
    for sample in samples:
        engine.add(sample)
    found: dict[str, Any] = {}
    while engine.busy:
        found |= {event.sample_id: np.asarray(event.latents) for event in engine.step(0.0) if isinstance(event, Finished)}
    return [found[sample.id] for sample in samples]


def test_mixed_jobs_through_replayed_calls_are_those_of_plain_ones(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Alone and in a crowd, to the bit, with all registers in torch as on a GPU."""
    folder = checkpoints.write(tmp_path_factory.mktemp("models") / "sd1", "sd1")
    checkpoint, recorder = load(folder, device=torch.device("cpu"), dtype=torch.float32), Counting()
    samples = [sample_of(model_torch.TorchStages(checkpoint), job, str(i), tensors=True) for i, job in enumerate(jobs())]
    wanted = drawn(Engine(plain_of(checkpoint, OnTorch), rows=4), samples)
    replay = Replay(plain_of(checkpoint, OnTorch), recorder, Told())
    with replay.warming((4,)):
        assert all(map(np.array_equal, drawn(Engine(replay, rows=4), samples), wanted))
    assert recorder.replays > recorder.recordings == 1 and not replay.plainly
    for sample, latents in zip(samples, wanted, strict=True):
        assert np.array_equal(drawn(Engine(replay, rows=4), [sample])[0], latents)


def settings_of(folder: Path, **said: Any) -> WorkerSettings:
    return WorkerSettings(redis_url="redis://localhost", model=str(folder), device="cpu", backend="torch", dtype="float32", **said)


@pytest.mark.parametrize(("rows", "sizes"), [(0, None), (4, [4])])
def test_a_worker_records_every_bucket_before_it_is_ready(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int, sizes: list[int] | None
) -> None:
    """With the stand-in for a GPU's recorder."""
    tell, recorder = Told(), Counting()
    monkeypatch.setattr(model_torch, "why_no_graphs", lambda *_: "")
    monkeypatch.setattr(model_torch, "CudaRecorder", lambda _: recorder)
    monkeypatch.setattr(model_torch.log, "info", tell)
    monkeypatch.setattr("workers.warm.log.info", tell)
    model = open_model(settings_of(folder, data_dir=tmp_path, max_rows=6, rows=rows))
    count = int(model.backend.rpartition(" ")[2]) if "rows any" not in model.backend else 0
    sizes = sizes or ([count] if count else [6, 4, 3, 2, 1])
    assert [facts["rows"] for event, facts in tell if event == "recorded"] == sizes
    assert [facts["done"] for event, facts in tell if event == "warming_up"] == [*range(1, len(sizes) + 1)]
    told = {"model": model.stages.card.id, "graphs": len(sizes), "megabytes": 0}
    assert ", graphs, rows" in model.backend and ("graphs", told) in tell


def test_where_nothing_is_recorded(folder: Path) -> None:
    gpu = torch.device("cuda")
    assert why_no_graphs(settings_of(folder), torch.device("cpu")) == "no GPU"
    assert why_no_graphs(settings_of(folder), gpu) == ""
    assert why_no_graphs(settings_of(folder, graphs="off"), gpu) == "CELADON_GRAPHS"
    assert why_no_graphs(settings_of(folder, offload="model"), gpu) == "CELADON_OFFLOAD"


class Cuda:
    """Writes down what is asked of torch.cuda, and captures with torch's own context."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, breaks: bool = False) -> None:
        self.done, self.now, cuda = list[str](), "main", self

        class Stream(str):
            def wait_stream(self, other: str) -> None:
                cuda.done.append(f"{self} waits for {other}")

        class Within:
            def __init__(self, stream: str) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                self.before, cuda.now = cuda.now, self.stream

            def __exit__(self, *_: object) -> None:
                cuda.now = self.before

        class Graph:
            def capture_begin(self, pool: object, capture_error_mode: str, **_: object) -> None:
                cuda.done.append(f"capture on {cuda.now} into {pool}, {capture_error_mode}")

            def capture_end(self) -> None:
                cuda.done.append("captured")
                if breaks:
                    raise RuntimeError("operation not permitted when stream is capturing")

            def replay(self) -> None:
                cuda.done.append(f"replay on {cuda.now}")

        told = {
            "Stream": lambda _: Stream("side"), "current_stream": lambda _: Stream(cuda.now), "CUDAGraph": Graph, "stream": Within,
            "graph_pool_handle": lambda: (0, 7), "set_stream": lambda stream: setattr(cuda, "now", stream),
            "synchronize": lambda: cuda.done.append("synchronize"), "empty_cache": lambda: None,
            "memory_snapshot": lambda: [{"segment_pool_id": (0, of), "total_size": size} for of, size in ((0, 1), (7, 20), (7, 300))],
        }  # fmt: skip
        for name, value in told.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)


def test_how_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """After calls on the same stream, into the one pool, in order with the caller's stream, on which it is replayed."""
    cuda = Cuda(monkeypatch)
    recorder = CudaRecorder(torch.device("cuda"))
    again = recorder.record(lambda: cuda.done.append(f"work on {cuda.now}"))
    again()
    assert cuda.done == [
        "side waits for main", *["work on side"] * WARM_UPS, "main waits for side", "synchronize",
        "capture on side into (0, 7), thread_local", "work on side", "captured", "replay on main",
    ]  # fmt: skip
    assert recorder.held == 320


def test_a_capture_that_breaks_leaves_the_callers_stream_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own context does not, where ending the capture raises."""
    cuda = Cuda(monkeypatch, breaks=True)
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaRecorder(torch.device("cuda")).record(lambda: None)
    assert cuda.done[-1] == "captured" and cuda.now == "main"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_answers_as_the_plain_call_and_holds_no_more_from_call_to_call(folder: Path, dtype: torch.dtype) -> None:
    checkpoint = load(folder, device=torch.device("cuda"), dtype=dtype)
    plain, tell = plain_of(checkpoint), Told()
    replay = Replay(plain, CudaRecorder(checkpoint.device), tell)
    with replay.warming((2, 8)):
        for rows in (8, 2):
            replay(*call(checkpoint, rows))
    assert [event for event, _ in tell] == ["recorded", "recorded", "graphs"] and tell[-1][1]["graphs"] == 2
    assert CudaRecorder(checkpoint.device).held == 0 < replay._recorder.held
    held = []
    for seed in range(50):
        for rows in (2, 8):
            given = call(checkpoint, rows, seed=seed)
            assert torch.equal(replay(*given), plain(*given))
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[2:] == [held[2]] * 48 and not replay.plainly


@pytest.mark.gpu
def test_a_capture_that_fails_leaves_stream_and_device_as_they_were(folder: Path) -> None:
    """A copy to the host waits for the device, which a capture cannot."""
    device = torch.device("cuda")
    ones, main = torch.ones(4, device=device), torch.cuda.current_stream(device)
    recorder = CudaRecorder(device)
    with pytest.raises(RuntimeError):
        recorder.record(lambda: ones.mul_(float(ones.sum())))  # type: ignore[arg-type]
    assert torch.cuda.current_stream(device) == main
    out = torch.zeros(4, device=device)
    again = recorder.record(lambda: out.add_(1) and None)  # type: ignore[arg-type, func-returns-value]
    before = out.clone()
    again()
    assert torch.equal(out, before + 1)
