"""Files of weights looked at without loading them: what a safetensors file says it holds, and whether that can be. No torch.

The header is a number of bytes (8, little-endian) and so much JSON: {name: {dtype, shape, data_offsets}}. Nothing in it is trusted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.checkpoint_error import CheckpointError

PICKLES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})
WHY_NOT_PICKLES = (
    "pickled weights run any code that their author put into them, so only safetensors are read: convert it where you trust it"
)
HEADER_BYTES = 100_000_000  # as the safetensors library itself has it
JSON_BYTES = 16_000_000  # of configs, of which the largest are lists of words and of shards
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8,
        "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8}  # fmt: skip
EXPONENTS: Mapping[str, tuple[Any, int]] = {  # all of these bits set: infinite, or no number
    "F64": (np.uint64, 0x7FF0 << 48), "F32": (np.uint32, 0x7F80 << 16), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80),
}  # fmt: skip
PIECE = 1 << 24
END_BYTES = 1 << 20
NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # diffusers' and transformers'
OWN = {"unet": NAMES[:1], "vae": NAMES[:1], "text_encoder": NAMES[1:], "text_encoder_2": NAMES[1:]}  # neither library reads the other's


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a file says of one tensor; `begin` is its place in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    bytes: int


def weight_files(folder: Path) -> list[Path]:
    """The files of the part of a checkpoint in that folder. Raises CheckpointError where there are none that are read here."""
    for name in OWN.get(folder.name, NAMES):
        if (shards := _shards(folder / f"{name}.index.json")) is not None:
            return [folder / shard for shard in sorted(set(shards.values()))]
        if (folder / name).exists():
            return [folder / name]
    if any(path.suffix in PICKLES for path in folder.glob("*")):
        raise CheckpointError(f"{folder.name}: {WHY_NOT_PICKLES}", "pickle")
    raise CheckpointError(f"{folder.name} holds no safetensors of its weights", "weights_missing")


def _shards(index: Path) -> dict[str, str] | None:
    """The file of each tensor, where there are several files."""
    if not index.exists():
        return None
    try:
        shards = {tensor: str(name) for tensor, name in read_object(index)["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index.name} cannot be read", "weights_unreadable") from error
    for name in set(shards.values()):
        if Path(name).name != name or not (index.parent / name).exists():
            raise CheckpointError(f"{index.name} names a file that is not beside it", "weights_missing")
    return shards


def read_text(path: Path) -> str:
    """Raises ValueError where it is no text of a size that is read, FileNotFoundError where there is no file."""
    if not path.is_file():
        if path.exists():
            raise ValueError("it is no file")  # pipes and devices would be read for ever
        raise FileNotFoundError(path)
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"it has more than {JSON_BYTES} bytes")
    return path.read_text(encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ValueError where there is none, FileNotFoundError where there is no file."""
    try:
        data = json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("its brackets are too deep") from error
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    return data


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """What the files of a part hold, by name. Raises CheckpointError where they cannot hold what they say."""
    found = {name: tensor for path in weight_files(folder) for name, tensor in read_header(path).items()}
    shards = next((said for name in OWN.get(folder.name, NAMES) if (said := _shards(folder / f"{name}.index.json")) is not None), found)
    return {name: tensor for name, tensor in found.items() if name in shards}


def numbers_in(folder: Path) -> int:
    """How many numbers the weights of a part are. Raises CheckpointError where its files cannot hold what they say."""
    return sum(math.prod(tensor.shape) for tensor in tensors_in(folder).values())


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name. Raises CheckpointError where what it says of itself cannot be."""
    if not path.is_file():
        raise CheckpointError(f"{path.name} is no file", "weights_unreadable")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{path.name} ends before its header does, or is no safetensors file", "weights_truncated")
        if length > HEADER_BYTES:
            raise CheckpointError(f"{path.name} has a header of {length} bytes; at most {HEADER_BYTES} are read", "weights_unreadable")
        text = file.read(length)
    try:
        said = json.loads(text, object_pairs_hook=_once)
        found = {name: _tensor(entry, 8 + length) for name, entry in said.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the header of {path.name} cannot be read", "weights_unreadable") from error
    _check_places(path, found, 8 + length, size)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two tensors of one name is meant, each reader would decide on its own."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor(entry: Mapping[str, Any], first: int) -> Tensor:
    begin, end = entry["data_offsets"]
    tensor = Tensor(entry["dtype"], tuple(entry["shape"]), first + begin, end - begin)
    if not all(type(n) is int and n >= 0 for n in (*tensor.shape, begin, end)) or tensor.dtype not in BITS:
        raise ValueError("no tensor")
    return tensor


def _check_places(path: Path, tensors: Mapping[str, Tensor], first: int, size: int) -> None:
    """Each tensor right behind the one before, of the size that its shape asks for, and the last one to the end of the file."""
    place = first
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.bytes)):
        if tensor.begin != place or 8 * tensor.bytes != math.prod(tensor.shape) * BITS[tensor.dtype]:
            raise CheckpointError(f"{path.name} names places or sizes that do not belong to its tensors", "weights_unreadable")
        place += tensor.bytes
    if place > size:
        raise CheckpointError(f"{path.name} is cut: it says {place} bytes and has {size}", "weights_truncated")
    if place < size:
        raise CheckpointError(f"{path.name} goes on behind its last tensor", "weights_unreadable")


def fingerprint(paths: Iterable[Path]) -> str:
    """Sixteen digits of some files: of the first and the last megabyte of each, and of its size."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(file.read(END_BYTES))
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - END_BYTES))
            digest.update(file.read() + str(size).encode())
    return digest.hexdigest()[:16]


def check_finite(path: Path) -> None:
    """Raises CheckpointError where a weight is infinite or no number. Reads the whole file."""
    for name, tensor in read_header(path).items():
        if tensor.dtype in EXPONENTS and not all(_finite(path, tensor)):
            message = f"{name} of {path.name} holds weights that are no numbers: no picture could come of it"
            raise CheckpointError(message, "weights_not_finite")


def _finite(path: Path, tensor: Tensor) -> Iterator[bool]:
    kind, bits = EXPONENTS[tensor.dtype]
    with path.open("rb") as file:
        file.seek(tensor.begin)
        for start in range(0, tensor.bytes, PIECE):
            numbers = np.frombuffer(file.read(min(PIECE, tensor.bytes - start)), kind)
            yield not bool(((numbers & kind(bits)) == kind(bits)).any())
