"""The outermost level of a diffusers U-Net by itself, for torch: DeepCache (Ma et al., arXiv 2312.00858).

What the last of the blocks that go up is given by the deeper ones changes little from step to step, so it is remembered, and on the
steps between only the first block down, the last block up and what lies around them are asked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Told = TypeVar("Told")
Answer = TypeVar("Answer")
DEEP = "hidden_states"  # diffusers' name of what a block is given


@contextmanager
def listening(unet: Any) -> Iterator[list[torch.Tensor]]:
    """A list of what the deep layers say in the calls within, each [R, C', h, w]."""
    heard: list[torch.Tensor] = []
    hook = unet.up_blocks[-1].register_forward_pre_hook(lambda block, args, named: heard.append(named[DEEP]), with_kwargs=True)
    try:
        yield heard
    finally:
        hook.remove()


@contextmanager
def over(unet: Any, deep: torch.Tensor) -> Iterator[None]:
    """Within, the U-Net is its outermost level, with `deep` [R, C', h, w] in the place of what the deep layers would say."""
    whole, first, last = dict(unet._modules), copy.copy(unet.down_blocks[0]), unet.up_blocks[-1]
    first._modules = first._modules | {"downsamplers": None}  # of the copy alone
    hook = last.register_forward_pre_hook(lambda block, args, named: (args, named | {DEEP: deep}), with_kwargs=True)
    unet._modules |= {"down_blocks": torch.nn.ModuleList([first]), "mid_block": None, "up_blocks": torch.nn.ModuleList([last])}
    try:
        yield
    finally:
        hook.remove()
        unet._modules |= whole


class Cache:
    """The plain twin of the engine's memory: one image, one call at a time. An interval of 1 remembers nothing."""

    def __init__(self, unet: Any, interval: int) -> None:
        self._unet, self._interval = unet, interval
        self._row = -1
        self._said: dict[str, torch.Tensor] = {}  # by role, since the last row at which the deep layers were asked

    def at(self, row: int, role: str, ask: Callable[[Told], Answer], told: Told) -> Answer:
        """`ask(told)` at a row of the table, with the deep layers or without."""
        if row % self._interval == 0 and self._row != row:
            self._said, self._row = {}, row
        if role in self._said:
            with over(self._unet, self._said[role]):
                return ask(told)
        with listening(self._unet) as heard:
            answer = ask(told)
        self._said[role] = heard[0]
        return answer
