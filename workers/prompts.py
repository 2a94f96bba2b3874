"""Prompts that were encoded lately, of all models: the same one is encoded once."""

from __future__ import annotations

from collections import OrderedDict

from pipelines.conditioning import Text
from pipelines.planning import Stages
from pipelines.prompts import Reading

CACHED_TOKENS = 20_000  # of prompts that are kept encoded


class Prompts:
    """`encodings` counts those that were not there."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str | None, Reading], Text] = OrderedDict()
        self.encodings = 0

    def encode(self, stages: Stages, prompt: str | None, reading: Reading) -> Text:
        key = stages.card.id, prompt, reading
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        self.encodings += 1
        self._kept[key] = stages.encode(prompt, reading)
        while len(self._kept) > 1 and sum(len(text.states) for text in self._kept.values()) > CACHED_TOKENS:
            self._kept.popitem(last=False)
        return self._kept[key]

    def forget(self, model: str) -> None:
        for key in [key for key in self._kept if key[0] == model]:
            del self._kept[key]
