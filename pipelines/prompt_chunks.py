"""From the parts of a prompt to what a text encoder is given: chunks of its whole length, and what their weights do to its states.

A chunk is as long as the encoder reads, start and end included (77 tokens for CLIP, so 75 of the prompt). One that would end within
BACKTRACK tokens behind a comma ends at the comma instead. As A1111 does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pipelines.prompts import Section

Array = Any
Pieces = Callable[[str], list[int]]  # text -> ids of its tokens, none before or behind
Units = Callable[[str], list[list[int]]]  # the same in parts that are not cut

BACKTRACK = 20
ACCIDENTAL = 0.01  # of the deviation: a smaller mean says nothing, and what brings it back would be any number


@dataclass(frozen=True, slots=True)
class Marks:
    """What must be known of a tokenizer: tokens of its own, and how many the encoder reads."""

    start: int
    end: int
    pad: int
    comma: int | None
    length: int


@dataclass(slots=True)
class Chunk:
    """Ids and weights, without start, end and padding until it is `closed`."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def closed(self, marks: Marks) -> Chunk:
        """Of the encoder's length."""
        padding = marks.length - 2 - len(self.ids)
        ids = [marks.start, *self.ids, *[marks.end] * padding, marks.end]
        if marks.pad != marks.end:
            first = ids.index(marks.end) + 1
            ids[first:] = [marks.pad] * (marks.length - first)
        return Chunk(ids, [1.0, *self.weights, *[1.0] * (padding + 1)])


def chunks(sections: Iterable[Section], units: Units, marks: Marks) -> list[Chunk]:
    """At least one, closed. A BREAK ends a chunk even where it is empty."""
    done: list[Chunk] = []
    filling = _Filling(marks, done)
    for i, section in enumerate(sections):
        if i:
            filling.end()
        for part in section:
            for unit in units(part.text):
                filling.add(unit, part.weight)
    if filling.chunk.ids or not done:
        filling.end()
    return [chunk.closed(marks) for chunk in done]


class _Filling:
    """The chunk that is being filled."""

    def __init__(self, marks: Marks, done: list[Chunk]) -> None:
        self._marks, self._done, self._room = marks, done, marks.length - 2
        self.chunk, self._comma = Chunk(), -1  # where its last comma is

    def add(self, unit: list[int], weight: float) -> None:
        chunk, behind = self.chunk, self._comma + 1
        if unit == [self._marks.comma]:
            self._comma = len(chunk.ids)
        elif len(chunk.ids) == self._room and behind and len(chunk.ids) - self._comma <= BACKTRACK:
            rest = Chunk(chunk.ids[behind:], chunk.weights[behind:])
            self.chunk = Chunk(chunk.ids[:behind], chunk.weights[:behind])
            self.end()
            self.chunk = rest
        if len(self.chunk.ids) + len(unit) > self._room:
            self.end()
        self.chunk.ids += unit
        self.chunk.weights += [weight] * len(unit)

    def end(self) -> None:
        self._done.append(self.chunk)
        self.chunk, self._comma = Chunk(), -1


def one_chunk(units: Iterable[list[int]], marks: Marks) -> Chunk:
    """One chunk, closed, of a text without signs: what is too long is left out."""
    ids = [id for unit in units for id in unit][: marks.length - 2]
    return Chunk(ids, [1.0] * len(ids)).closed(marks)


def weighted(states: Array, weights: Array) -> Array:
    """States [L, E] times the weights [L] of their tokens, with the mean that they had, where they have one; of numpy or torch."""
    scaled, mean = states * weights[:, None], states.mean()
    return scaled * (mean / scaled.mean()) if abs(mean) > ACCIDENTAL * states.std() else scaled
