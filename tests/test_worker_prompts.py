"""Prompts that a worker keeps encoded."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipelines.conditioning import Text
from pipelines.prompts import PLAIN
from workers.prompts import CACHED_TOKENS, Prompts


class Encoder:
    """Stages of a model that note what they encode, each into so many tokens."""

    def __init__(self, model: str, tokens: int = 32) -> None:
        self.card, self.asked, self._tokens = SimpleNamespace(id=model), list[str | None](), tokens

    def encode(self, prompt: str | None, reading: Any = PLAIN) -> Text:
        self.asked.append(prompt)
        return Text(np.zeros((self._tokens, 8), np.float32))


def test_the_same_prompt_is_encoded_once_and_another_reading_or_model_by_itself() -> None:
    prompts: Any = Prompts()
    first, second = Encoder("first"), Encoder("second")
    kept = [prompts.encode(first, "a cat", PLAIN) for _ in range(16)]
    assert first.asked == ["a cat"] and all(text is kept[0] for text in kept)
    prompts.encode(first, "a cat", replace(PLAIN, clip_skip=2))
    prompts.encode(second, "a cat", PLAIN)
    assert first.asked == ["a cat"] * 2 and second.asked == ["a cat"] and prompts.encodings == 3
    prompts.forget("first")
    for stages in (first, second):
        prompts.encode(stages, "a cat", PLAIN)
    assert len(first.asked) == 3 and len(second.asked) == 1


def test_the_one_used_longest_ago_goes() -> None:
    prompts: Any = Prompts()
    stages = Encoder("long", CACHED_TOKENS // 2)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        prompts.encode(stages, prompt, PLAIN)
    assert stages.asked == ["a", "b", "c", "b"]
