"""Modules of torch that wear LoRAs for a call: their weights are exchanged, and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from pipelines.loras import KEPT, Kept, Loras
from pipelines.prompts import Worn

Changes = list[tuple[torch.nn.Parameter, torch.Tensor]]


class Wardrobe:
    """The LoRAs of a folder for the parts of a model. Without any a part is what it was, to the bit."""

    def __init__(self, folder: Path | None, modules: Mapping[str, torch.nn.Module]) -> None:
        self._weights = {part: dict(module.named_parameters()) for part, module in modules.items()}
        self.loras = Loras(folder, {part: {name: tuple(p.shape) for name, p in of.items()} for part, of in self._weights.items()})
        self._kept = {part: Kept(partial(self._changed, part), KEPT) for part in modules}

    @contextmanager
    def wearing(self, part: str, worn: Worn) -> Iterator[None]:
        """Raises LoraError."""
        changes = self._kept[part].get(worn) if worn else []
        before = [weight.data for weight, _ in changes]
        for weight, changed in changes:
            weight.data = changed
        try:
            yield
        finally:
            for (weight, _), was in zip(changes, before, strict=True):
                weight.data = was

    def _changed(self, part: str, worn: Worn) -> Changes:
        weights, deltas = self._weights[part], self.loras.deltas(part, worn)
        return [(weights[name], _plus(weights[name].data, torch.from_numpy(delta))) for name, delta in deltas.items()]


def _plus(weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return (weight.float() + delta.to(weight.device)).to(weight.dtype)
