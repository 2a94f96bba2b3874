"""Work beside the U-Net on a GPU: texts and pictures on streams of their own, and what is fetched to the host without waiting.

A lane begins when the caller's stream has come to where its work was given, and the caller's goes on meanwhile. `Here` is the slow twin.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from numpy.typing import NDArray


class Fetched(Protocol):
    """Tensors on their way to the host."""

    @property
    def ready(self) -> bool: ...

    def arrays(self) -> list[NDArray[Any]]:
        """Waits for them."""
        ...


class Lane(Protocol):
    """Where work is put."""

    def at(self, *given: torch.Tensor) -> AbstractContextManager[None]:
        """Within, work goes there. It reads `given`, which the caller may forget at once."""
        ...

    def back(self, made: torch.Tensor) -> torch.Tensor:
        """What was made there, to be used here: this stream waits for it, the host does not."""
        ...

    def fetch(self, *made: torch.Tensor) -> Fetched:
        """What was made there, on its way to the host. To be called within."""
        ...


class Stream:
    """A CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    @contextmanager
    def at(self, *given: torch.Tensor) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        for tensor in given:  # its memory is not given to others before this stream has read it
            tensor.record_stream(self._stream)

    def back(self, made: torch.Tensor) -> torch.Tensor:
        here = torch.cuda.current_stream(self._device)
        here.wait_stream(self._stream)
        made.record_stream(here)
        return made

    def fetch(self, *made: torch.Tensor) -> Fetched:
        return _Pinned(self._stream, *made)


class _Pinned:
    """In pinned memory, behind an event."""

    def __init__(self, stream: torch.cuda.Stream, *made: torch.Tensor) -> None:
        self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in made]
        self._event = torch.cuda.Event(blocking=True)  # who waits for it sleeps
        self._event.record(stream)

    @property
    def ready(self) -> bool:
        return bool(self._event.query())

    def arrays(self) -> list[NDArray[Any]]:
        self._event.synchronize()
        return [tensor.numpy() for tensor in self._host]


class Here:
    """The caller's stream; what is fetched is there at once."""

    @contextmanager
    def at(self, *given: torch.Tensor) -> Iterator[None]:
        yield

    def back(self, made: torch.Tensor) -> torch.Tensor:
        return made

    def fetch(self, *made: torch.Tensor) -> Fetched:
        return _There([tensor.cpu().numpy() for tensor in made])


class _There:
    ready = True

    def __init__(self, arrays: list[NDArray[Any]]) -> None:
        self._arrays = arrays

    def arrays(self) -> list[NDArray[Any]]:
        return self._arrays
