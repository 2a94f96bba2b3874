"""Textual inversion files, read without torch: words whose vectors were learned for a model's text encoders. Safetensors only.

diffusers and A1111 write one tensor (named as the word, or `emb_params`), files for SDXL one of each encoder (`clip_l`, `clip_g`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.card import EmbeddingInfo
from pipelines.checkpoint_error import CheckpointError
from pipelines.graphs.weights import Weights
from pipelines.prompt_chunks import Pieces, Units
from pipelines.prompts import spans
from pipelines.weight_files import PICKLES, check_finite, read_header

OF_TWO = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
TYPES = ("F32", "F16", "BF16")
MOST_BYTES = 64 << 20

Vectors = NDArray[np.float32]  # [n, E]


class EmbeddingError(ValueError):
    """The file holds no embedding for this model; the message says why."""


@dataclass(frozen=True, slots=True)
class Learned:
    """Embeddings that act in a prompt, as further ids behind the `size` ones of a vocabulary."""

    size: int
    places: Mapping[str, range]  # by name, within `vectors`
    vectors: Vectors

    def units(self, pieces: Pieces) -> Units:
        """Like `pieces`, but a text's tokens in the parts that stay together: an embedding's vectors are one."""

        def of(text: str) -> list[list[int]]:
            found: list[list[int]] = []
            for part, name in spans(text, self.places):
                found += [[self.size + k for k in self.places[name]]] if name else [[id] for id in pieces(part)]
            return found

        return of

    def given(self, ids: Sequence[int]) -> dict[int, Vectors]:
        """The vectors [E] that stand for tokens, by place."""
        return {place: self.vectors[id - self.size] for place, id in enumerate(ids) if id >= self.size}

    def known(self, ids: Sequence[int], instead: int) -> list[int]:
        """The ids with one of the vocabulary's in the place of each vector."""
        return [instead if id >= self.size else id for id in ids]


class Embeddings:
    """The files of a folder, by name: file names without their ending, whose case does not matter."""

    def __init__(self, folder: Path | None, widths: Mapping[str, int], room: int) -> None:
        """`widths` of the vectors that the model's text encoders read, by part; `room` is how many tokens they read at once."""
        self._widths, self._room = dict(widths), room
        self._paths: dict[str, Path] = {}
        found = [self._take(path) for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", *PICKLES)] if folder else []
        self.infos = tuple(sorted(found, key=lambda info: info.name))

    def learned(self, part: str, names: Sequence[str], size: int) -> Learned:
        """What `names` mean to one of the encoders, whose vocabulary has `size` tokens. Raises EmbeddingError."""
        vectors, places, end = [np.zeros((0, self._widths[part]), np.float32)], dict[str, range](), 0
        for name in names:
            if name not in self._paths:
                raise EmbeddingError(f"this worker has no embedding {name}")
            vectors.append(self._read(self._paths[name])[part])
            places[name] = range(end, end := end + len(vectors[-1]))
        return Learned(size, places, np.concatenate(vectors))

    def _take(self, path: Path) -> EmbeddingInfo:
        name = path.stem
        try:
            if path.suffix in PICKLES:
                raise EmbeddingError(f"a {path.suffix} file is a pickle, which runs code where it is read")
            if name.lower() in map(str.lower, self._paths):
                raise EmbeddingError("another file has that name, but for small and capital letters")
            found = self._read(path)
        except EmbeddingError as error:
            return EmbeddingInfo(name, refused=str(error))
        self._paths[name] = path
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return EmbeddingInfo(name, digest, len(next(iter(found.values()))), sum(self._widths.values()))

    def _read(self, path: Path) -> dict[str, Vectors]:
        """Its vectors by part. Raises EmbeddingError."""
        try:
            if path.stat().st_size > MOST_BYTES:
                raise EmbeddingError("it is far too large for an embedding")
            said = read_header(path)
            if any(tensor.dtype not in TYPES for tensor in said.values()):
                raise EmbeddingError(f"it holds other numbers than {', '.join(TYPES)}")
            keys = self._keys(list(said))
            check_finite(path)
            weights = Weights(path)
        except (CheckpointError, OSError) as error:
            raise EmbeddingError("it cannot be read as safetensors, or holds what are no numbers") from error
        found = {part: self._checked(np.atleast_2d(weights[key].astype(np.float32)), self._widths[part]) for part, key in keys.items()}
        if len(set(map(len, found.values()))) != 1:
            raise EmbeddingError("it has more vectors for one text encoder than for the other")
        return found

    def _keys(self, names: list[str]) -> dict[str, str]:
        """The tensor of each part."""
        if set(names) == set(OF_TWO.values()):
            if len(self._widths) == 1:
                raise EmbeddingError("it is for two text encoders, as SDXL has them; this model has one")
            return OF_TWO
        if len(names) != 1:
            raise EmbeddingError("it holds other tensors than an embedding")
        if len(self._widths) > 1:
            raise EmbeddingError("it is for one text encoder; this model has two")
        return dict.fromkeys(self._widths, names[0])

    def _checked(self, vectors: Vectors, width: int) -> Vectors:
        if vectors.ndim != 2 or not len(vectors):
            raise EmbeddingError("its tensor is no list of vectors")
        if vectors.shape[1] != width:
            raise EmbeddingError(f"it is of another model: its vectors have {vectors.shape[1]} numbers, this model's {width}")
        if len(vectors) > self._room:
            raise EmbeddingError(f"it has {len(vectors)} vectors; the model reads {self._room} tokens at once")
        return vectors
