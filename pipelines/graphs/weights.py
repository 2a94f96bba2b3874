"""Weights of a diffusers folder as numpy arrays: safetensors only, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import deserialize

from pipelines.weight_files import weight_files

Tensor = NDArray[Any]

TYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I64": np.int64, "I32": np.int32}


def _quarter() -> NDArray[np.float16]:
    """E4M3 without infinities: sign, 4 bits of exponent from 2^-7, 3 of fraction (arXiv 2209.05433)."""
    byte = np.arange(256)
    exponent, fraction = byte >> 3 & 15, byte & 7
    value = np.where(exponent, (8 + fraction) * 2.0 ** (exponent - 10), fraction * 2.0**-9)
    return np.where(byte & 127 == 127, np.nan, np.where(byte & 128, -value, value)).astype(np.float16)


EIGHT_BITS = {"F8_E4M3": _quarter(), "F8_E5M2": (np.arange(256, dtype=np.uint16) << 8).view(np.float16)}  # of each byte


class Weights:
    """The tensors of one part of a checkpoint, by name. Each is read when it is asked for."""

    def __init__(self, source: Path) -> None:
        """Of a folder, or of one file. Raises CheckpointError where the folder holds no safetensors of the usual names."""
        self._data: dict[str, Any] = {}
        for path in [source] if source.is_file() else weight_files(source):
            self._data.update(deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def __getitem__(self, name: str) -> Tensor:
        """Raises KeyError for a name that is not there."""
        info = self._data[name]
        if info["dtype"] == "BF16":  # the upper half of a float32
            upper = np.frombuffer(info["data"], np.uint16).astype(np.uint32) << 16
            return upper.view(np.float32).reshape(info["shape"])
        if info["dtype"] in EIGHT_BITS:
            return EIGHT_BITS[info["dtype"]][np.frombuffer(info["data"], np.uint8)].reshape(info["shape"])
        return np.frombuffer(info["data"], TYPES[info["dtype"]]).reshape(info["shape"])


class Changed(Weights):
    """The same with something added to some of them."""

    def __init__(self, source: Path, deltas: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__(source)
        self._deltas = deltas

    def __getitem__(self, name: str) -> Tensor:
        values = super().__getitem__(name)
        return values.astype(np.float32) + self._deltas[name] if name in self._deltas else values
