"""Calls of a torch U-Net that are recorded once and replayed: CUDA graphs, so that a thousand kernels cost one launch.

A graph holds addresses. What a call is given lies in buffers that stay where they are: rows are copied in as samples join and overwritten
as they leave, and calls are padded to a bucket of rows. There is one graph for each (latent shape, text length, bucket), all in one pool of
memory, which works because only one of them runs at a time and its answer lies outside. A graph is kept only if it answers as the plain
call does, bit for bit, so that which way a call goes is never seen in a picture. What cannot be recorded goes the plain way.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from pipelines.controls import Shown
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.memory import lacks_memory
from pipelines.prompts import Worn

Array = Any
Place = tuple[tuple[int, ...], int]  # a latent's (C, h, w) and the text's length
Key = tuple[tuple[int, ...], int, int]  # and the bucket

MOST = 32  # graphs; those replayed lately stay
WORTH = 16  # calls of a kind that has none, after which it is worth a second of recording
COUNTED = 256  # kinds whose calls are counted; clients choose sizes
WARM_UPS = 3  # calls before a recording, in which libraries and compilers make what they need


class Recorder(Protocol):
    """How work on tensors that stay where they are is recorded."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does it again. Raises RuntimeError where it cannot be recorded."""
        ...

    @property
    def held(self) -> int:
        """Bytes that all recordings hold together."""
        ...


class CudaRecorder:
    """CUDA graphs with one pool of memory, captured on a stream of their own and replayed on the caller's."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool, self._stream = device, torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        main, graph = torch.cuda.current_stream(self._device), torch.cuda.CUDAGraph()
        try:
            self._stream.wait_stream(main)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    work()
            main.wait_stream(self._stream)
            # thread_local: another thread may do what it likes meanwhile
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.set_stream(main)  # a capture that fails leaves its own in place
        replay: Callable[[], None] = graph.replay
        return replay

    @property
    def held(self) -> int:
        segments = torch.cuda.memory_snapshot()
        return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) == tuple(self._pool))


class PlainRecorder:
    """The slow twin: what was recorded is done again, kernel by kernel, over the same tensors."""

    held = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        for _ in range(WARM_UPS):
            work()
        return work


@dataclass(frozen=True, slots=True, eq=False)
class Buffers:
    """What the calls of one place are given and answer, for as many rows as the largest bucket. Rows beyond those of a call are left as
    they are: a row never sees another.
    """

    x: torch.Tensor  # [B, C, h, w], the U-Net's dtype
    timestep: torch.Tensor  # [B] float32
    context: torch.Tensor  # [B, L, E], the U-Net's dtype
    told: torch.Tensor | None  # [B, V] float32
    out: torch.Tensor  # [B, C', h, w] float32

    def fill(self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, told: torch.Tensor | None) -> None:
        for there, given in ((self.x, x), (self.timestep, timestep), (self.context, context), (self.told, told)):
            if there is not None and given is not None:
                there[: len(given)].copy_(given, non_blocking=True)

    def run(self, bucket: int, unet: Callable[..., torch.Tensor]) -> None:
        told = None if self.told is None else self.told[:bucket]
        self.out[:bucket].copy_(unet(self.x[:bucket], self.timestep[:bucket], self.context[:bucket], told))


class Replay:
    """A denoiser like the plain one, which it asks where there is no recording. `tell(event, **facts)` hears of recordings, and of each
    reason for the plain way once.
    """

    def __init__(self, plain: TorchDenoiser, recorder: Recorder, tell: Callable[..., object], *, most: int = MOST) -> None:
        self._plain, self._recorder, self._tell, self._most = plain, recorder, tell, most
        self.xp, self.device = plain.xp, plain.device
        self._buckets: tuple[int, ...] = ()  # none before the warm-up: until then all calls are plain
        self._graphs: OrderedDict[Key, Callable[[], None]] = OrderedDict()
        self._buffers: dict[Place, Buffers] = {}
        self._asked: Counter[Key] = Counter()
        self._worth, self._closed = WORTH, False
        self._too_large: set[Key] = set()
        self.plainly: Counter[str] = Counter()  # calls by the reason why they were not replayed

    @contextmanager
    def warming(self, sizes: Sequence[int]) -> Iterator[None]:
        """From here on calls are padded to these rows; within, each kind of call is recorded when it comes first."""
        self._buckets, self._worth = tuple(sorted(sizes)), 1
        try:
            yield
        finally:
            self._worth = WORTH
        self._tell("graphs", graphs=len(self._graphs), megabytes=round(self._recorder.held / 1e6))

    @torch.inference_mode()
    def __call__(
        self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None, *,
        worn: Worn = (), control: Shown | None = None,
    ) -> Array:  # fmt: skip
        key = tuple(x.shape[1:]), context.shape[1], self._bucket(len(x))
        why = self._why_not(len(x), marks, worn, control) or self._why_no_graph(key, (x, timestep, context, told))
        if why:
            self._count(why)
            return self._plain(x, timestep, context, marks, told, worn=worn, control=control)
        self._graphs.move_to_end(key)
        buffers = self._buffers[key[:2]]
        buffers.fill(*self._plain.given(x, timestep, context, told))
        self._graphs[key]()
        return self._plain.answer(buffers.out[: len(x)].clone())

    def remember(
        self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None, *, worn: Worn = ()
    ) -> tuple[Array, Array]:
        self._count("deep layers")
        return self._plain.remember(x, timestep, context, marks, told, worn=worn)

    def recall(self, x: Array, timestep: Array, context: Array, deep: Array, told: Array | None = None, *, worn: Worn = ()) -> Array:
        self._count("deep layers")
        return self._plain.recall(x, timestep, context, deep, told, worn=worn)

    def upload(self, array: Array) -> Array:
        return self._plain.upload(array)

    def _bucket(self, rows: int) -> int:
        return next((size for size in self._buckets if size >= rows), 0)

    def _why_not(self, rows: int, marks: Sequence[str], worn: Worn, control: Shown | None) -> str:
        """Why no call of this kind is replayed; empty where one is."""
        if not self._buckets:
            return "before the warm-up"
        if any(marks):
            return "disturbed rows"  # other code in the attention
        if worn:
            return "LoRAs"  # other weights, which lie elsewhere
        if control is not None:
            return "ControlNet"
        return "" if self._bucket(rows) else "more rows than the largest bucket"

    def _why_no_graph(self, key: Key, call: tuple[Array, Array, Array, Array | None]) -> str:
        """The same of this one, which is recorded if it is worth it."""
        if key in self._graphs:
            return ""
        if self._closed:
            return "recording is closed"
        if key in self._too_large:
            return "no memory for a recording"
        self._asked[key] += 1
        if self._asked[key] < self._worth:
            if len(self._asked) > COUNTED:
                self._asked.clear()
            return "not asked often"
        del self._asked[key]
        try:
            self._record(key, call)
        except RuntimeError as error:  # torch's lack of memory is one; a capture that ends in vain may hide it
            self._tell("not_recorded", **_facts(key), reason=str(error).partition("\n")[0])
            if not any(lacks_memory(e) for e in (error, error.__context__) if e):
                self._closed = True  # what it is holds for the next one too
                return "recording is closed"
            self._too_large = {key} | (self._too_large if len(self._too_large) < COUNTED else set())
            return "no memory for a recording"
        return ""

    def _record(self, key: Key, call: tuple[Array, Array, Array, Array | None]) -> None:
        """From now on there is a graph of this kind, and no more of them than there may be. Raises RuntimeError."""
        given = self._plain.given(*call)
        buffers = self._buffers.get(key[:2]) or self._made(*given)
        work = partial(buffers.run, key[2], self._plain.evaluate)
        buffers.fill(*given)
        again = self._recorder.record(work)
        work()
        wanted = buffers.out[: key[2]].clone()
        buffers.out.zero_()
        again()
        if not torch.allclose(buffers.out[: key[2]], wanted, rtol=0, atol=0, equal_nan=True):
            raise RuntimeError("a replay answers other bits than the plain call")
        self._graphs[key], self._buffers[key[:2]] = again, buffers
        if len(self._graphs) > self._most:  # the recording waited for the device, so the oldest is not under way
            self._graphs.popitem(last=False)
        kept = {key[:2] for key in self._graphs}
        self._buffers = {place: of for place, of in self._buffers.items() if place in kept}
        self._tell("recorded", **_facts(key))

    def _made(self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, told: torch.Tensor | None) -> Buffers:
        """Of zeros: whatever lies in rows that fill up, it is finite."""

        def zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
            return like.new_zeros((self._buckets[-1], *(shape or like.shape[1:])))

        out = zeros(x, self._plain.channels, *x.shape[2:]).float()
        return Buffers(zeros(x), zeros(timestep), zeros(context), None if told is None else zeros(told), out)

    def _count(self, why: str) -> None:
        self.plainly[why] += 1
        if self.plainly[why] == 1 and self._buckets:
            self._tell("not_replayed", reason=why)


def _facts(key: Key) -> dict[str, Any]:
    shape, tokens, rows = key
    return {"latent": shape, "tokens": tokens, "rows": rows}
