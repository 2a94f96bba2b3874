"""A text encoder of torch that reads learned vectors in the place of some of its tokens, for a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pipelines.embeddings import Vectors


@contextmanager
def spoken(encoder: Any, given: Mapping[int, Vectors]) -> Iterator[None]:
    """`given`: vectors [E] by place."""
    if not given:
        yield
        return
    vectors = {place: torch.from_numpy(vector) for place, vector in given.items()}

    def put(_module: torch.nn.Module, _inputs: Any, states: torch.Tensor) -> torch.Tensor:
        states = states.clone()  # [1, L, E]
        for place, vector in vectors.items():
            states[0, place] = vector.to(states)
        return states

    hook = encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()
