"""What the signs in a prompt mean, in A1111's syntax. Standard library only: the gateway reads prompts as workers do.

(word) weighs 1.1 times, [word] a 1.1th, (word:1.3) 1.3 times, one inside another multiplies; a backslash makes a bracket a sign like
others, BREAK begins a new chunk, and what follows # is a remark. Documented in docs/prompts.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Syntax = Literal["plain", "a1111"]
SYNTAXES: tuple[Syntax, ...] = ("plain", "a1111")

FACTOR = 1.1
MOST = 100.0  # of a weight, either way
DEEPEST = 64  # brackets that are open at once: more of a kind would weigh more than that

SIGN = re.compile(r"\\(?P<literal>[()\[\]\\]?)|(?P<open>[(\[])|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<close>[)\]])")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
REMARK = re.compile(r"#[^\n]*(?:\n|$)")
LEFT = {")": "(", "]": "["}
EDITED = re.compile(r"\||:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*$")  # what brackets hold that change the prompt on the way
COMPOSED = re.compile(r"\bAND\b")
NETWORK = re.compile(r"<(?P<kind>\w+):(?P<rest>[^>]+)>")


class PromptError(ValueError):
    """The prompt cannot be read; the message says why, without a word of it."""


class PromptUnsupported(PromptError):
    """It means something in A1111 that is not done here."""


Worn = tuple[tuple[str, float], ...]  # LoRAs by name with their weights, in the order of their names


@dataclass(frozen=True, slots=True)
class Reading:
    """How a prompt is read. `clip_skip` names the layer of the text encoder whose states are taken: 1 is the last, 2 the one before."""

    syntax: Syntax = "plain"
    clip_skip: int = 1
    loras: Worn = ()
    embeddings: tuple[str, ...] = ()  # names in the text that stand for learned vectors


PLAIN = Reading()


@dataclass(frozen=True, slots=True)
class Part:
    """Text of one weight."""

    text: str
    weight: float = 1.0


Section = tuple[Part, ...]  # what stands between two BREAKs; neighbours differ in weight


def read(prompt: str) -> tuple[Section, ...]:
    """The parts of a prompt in A1111's syntax, by section. Raises PromptError."""
    _, prompt = worn_in(prompt)
    if COMPOSED.search(prompt):
        raise PromptUnsupported("AND composes several prompts in A1111, which is not done here; write it in small letters")
    scan = _Scan(REMARK.sub("\n", prompt))
    sections: list[list[Part]] = [[]]
    for text, weight in scan.runs:
        parts = sections[-1]
        if text is None:
            sections.append([])
        elif not -MOST <= weight <= MOST:
            raise PromptError(f"a weight is beyond {MOST:g}")
        elif parts and parts[-1].weight == weight:
            parts[-1] = Part(parts[-1].text + text, weight)
        else:
            parts.append(Part(text, weight))
    return tuple(map(tuple, sections))


def worn_in(prompt: str) -> tuple[Worn, str]:
    """The LoRAs that a prompt in A1111's syntax names, and the prompt without them. Raises PromptError."""
    found: dict[str, float] = {}
    for tag in NETWORK.finditer(prompt):
        name, *weights = tag["rest"].split(":")
        if tag["kind"] != "lora":
            raise PromptUnsupported(f"<{tag['kind']}:…> names a network of a kind that is not done here; <lora:name:1> is")
        if len(weights) > 1:
            raise PromptUnsupported("a LoRA has one weight here, for U-Net and text encoder alike, as in <lora:name:0.8>")
        if found.setdefault(name, weight := _number(weights[0]) if weights else 1.0) != weight:
            raise PromptError("a LoRA is named twice, with two weights")
    return tuple(sorted(found.items())), NETWORK.sub("", prompt)


def spans(text: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """The text in parts: what stands between names, with an empty one, and each name that it holds as a word of its own. Case does not
    matter; of two names that begin at one place the longer one is meant.
    """
    longest = sorted(names, key=len, reverse=True)
    if not longest:
        return [(text, "")]
    known = {name.lower(): name for name in longest}
    found, end = [], 0
    for match in re.finditer(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", text, re.IGNORECASE):
        if (name := known.get(match[0].lower())) is not None:
            found += [(text[end : match.start()], ""), (match[0], name)]
            end = match.end()
    return [part for part in (*found, (text[end:], "")) if part[0]]


def words(prompt: str, syntax: Syntax) -> str:
    """The text without what is no word of it. Raises PromptError."""
    if syntax == "plain":
        return prompt
    return " ".join("".join(part.text for part in section) for section in read(prompt))


class _Scan:
    """One walk over a prompt: runs of text with their weights; a BREAK is a run of None."""

    def __init__(self, prompt: str) -> None:
        self.runs: list[tuple[str | None, float]] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}  # the runs at which brackets that are open began
        self._inside = [""]  # the text of each open bracket, without what brackets in it hold, to see whether it edits
        end = 0
        for sign in SIGN.finditer(prompt):
            self._text(prompt[end : sign.start()])
            self._take(sign)
            end = sign.end()
        self._text(prompt[end:])
        for kind, starts in self._open.items():
            for start in starts:
                self._weigh(start, FACTOR if kind == "(" else 1 / FACTOR)

    def _take(self, sign: re.Match[str]) -> None:
        if (literal := sign["literal"]) is not None:
            self._add(literal)
        elif kind := sign["open"]:
            self._open[kind].append(len(self.runs))
            self._inside.append("")
            if len(self._inside) > DEEPEST:
                raise PromptError(f"more than {DEEPEST} brackets are open at once")
        elif (weight := sign["weight"]) and self._open["("]:
            self._weigh(self._close("("), _number(weight))
        elif (kind := LEFT.get(sign["close"] or "", "")) and self._open[kind]:
            if kind == "[" and EDITED.search(self._inside[-1]):
                raise PromptUnsupported(
                    "[from:to:when] and [one|other] change the prompt while it is drawn, which is not done here; "
                    "a backslash before the bracket makes it a sign like others"
                )
            self._weigh(self._close(kind), FACTOR if kind == "(" else 1 / FACTOR)
        else:
            self._text(sign[0])

    def _close(self, kind: str) -> int:
        if len(self._inside) > 1:
            self._inside.pop()
        return self._open[kind].pop()

    def _text(self, text: str) -> None:
        self._inside[-1] += text
        for i, piece in enumerate(BREAK.split(text)):
            if i:
                self.runs.append((None, 1.0))
            if piece:
                self.runs.append((piece, 1.0))

    def _add(self, literal: str) -> None:
        self._inside[-1] += "\\"  # something, but no bar and no number
        if literal:
            self.runs.append((literal, 1.0))

    def _weigh(self, start: int, factor: float) -> None:
        self.runs[start:] = [(text, weight * factor) for text, weight in self.runs[start:]]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise PromptError("a weight is no number; it is written as in (word:1.3) or <lora:name:0.8>") from None
