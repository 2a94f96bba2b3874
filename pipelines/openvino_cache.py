"""Compiled models in a folder, so that the next start reads no weights and compiles nothing."""

from __future__ import annotations

import contextlib
import mmap
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipelines.graphs.runtime import openvino

PART_SUFFIX, WRITTEN_S = ".part", 3600.0  # of an entry while it is written, which takes less than so many seconds


class Cache:
    """Entries are files that are mapped: weights are pages that workers of one machine share and the system may drop. One lives as long as
    the models that were taken from it, which do not hold the pages themselves.
    """

    def __init__(self, core: openvino.Core) -> None:
        self._core, self._pages = core, dict[Path, tuple[mmap.mmap, openvino.Tensor]]()
        self._put_off: list[tuple[Path, openvino.CompiledModel]] | None = None

    def take(self, path: Path, hints: Mapping[str, str]) -> openvino.CompiledModel | None:
        """None where there is no entry. What is torn, of another processor or version, or cannot be read goes, and what was noted of it."""
        try:
            pages = self._pages[path] if path in self._pages else _mapped(path)
            found = self._core.import_model(pages[1], "CPU", hints)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError):
            for file in (path, path.with_suffix(".json")):
                with contextlib.suppress(OSError):  # a folder that is only read: made anew at each start
                    file.unlink(missing_ok=True)
            return None
        self._pages[path] = pages
        return found

    def keep(self, path: Path, hints: Mapping[str, str], compiled: openvino.CompiledModel) -> openvino.CompiledModel:
        """Write an entry, and give the model back as it is taken from there: the same, with nothing of its weights in memory twice.
        Between `put_off` and `write` it stays as it is.
        """
        if self._put_off is not None:
            self._put_off.append((path, compiled))
            return compiled
        return (self.take(path, hints) if _write(path, compiled) else None) or compiled

    def put_off(self) -> None:
        """Write nothing until `write`: at a start, everything else comes first."""
        self._put_off = []

    def write(self) -> bool:
        """What was put off. Whether there was something, and all of it is on disk now."""
        waiting, self._put_off = self._put_off or [], None
        return all([_write(path, compiled) for path, compiled in waiting]) and bool(waiting)

    def drop_pages(self) -> None:
        """Out of this process, until they are asked for: what OpenVINO made of the weights for its kernels is what it computes with."""
        for pages, _ in list(self._pages.values()):
            if hasattr(mmap, "MADV_DONTNEED"):
                pages.madvise(mmap.MADV_DONTNEED)


def _mapped(path: Path) -> tuple[mmap.mmap, openvino.Tensor]:
    """A file as OpenVINO's own memory. Raises OSError, or ValueError where it is empty."""
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # a tensor must be writable; nothing is written
    return pages, openvino.Tensor(np.frombuffer(pages, np.uint8), shared_memory=True)


def _write(path: Path, compiled: openvino.CompiledModel) -> bool:
    """Whole or not at all; a full disk costs the cache, not the worker. Its name while it is written is nobody else's: in containers that
    share a folder, workers have the same process id.
    """
    part = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{PART_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for torn in path.parent.glob(f"{path.stem}.*{PART_SUFFIX}"):  # of workers that were killed
            if torn.stat().st_mtime < time.time() - WRITTEN_S:
                torn.unlink()
        part.write_bytes(compiled.export_model().getvalue())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        return False
    return True
