"""Checkpoints as bytes: the images of one job in flight, as numpy's own archive without pickle."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np

from pipelines.engine.sample import Saved

FORMAT = 1


def dump(images: Mapping[int, Saved]) -> bytes:
    """Image index -> state, as one archive. About 4 bytes per number: 4 KiB a register at 128 px, 64 KiB at 512 px."""
    arrays: dict[str, np.ndarray] = {"format": np.array([FORMAT])}
    for index, saved in images.items():
        arrays[f"{index}.where"] = np.array([saved.row, saved.rows, *saved.live], dtype=np.int64)
        arrays[f"{index}.registers"] = saved.registers
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def load(data: bytes) -> dict[int, Saved]:
    """The inverse of `dump`. Raises ValueError for what is no checkpoint of this format."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            if archive["format"].tolist() != [FORMAT]:
                raise ValueError("the checkpoint has another format")
            indices = [int(name.removesuffix(".where")) for name in archive.files if name.endswith(".where")]
            return {i: _saved(archive[f"{i}.where"].tolist(), archive[f"{i}.registers"]) for i in indices}
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError("the checkpoint cannot be read") from error


def _saved(where: list[int], registers: np.ndarray) -> Saved:
    row, rows, *live = where
    return Saved(row, rows, tuple(live), registers.astype(np.float32, copy=False))
