"""What a watermark says: text to the places of its seven patterns, with a check, and back. Standard library only."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

SYMBOLS, BITS = 7, 12  # how many places, and what one of them says
TEXT_BYTES, CHECK_BITS = 8, 20  # together 84 bits


def fits(text: str) -> bool:
    """Whether it can be said: one to eight bytes in UTF-8, nothing that does not print."""
    return 0 < len(text.encode()) <= TEXT_BYTES and text.isprintable()


def places_of(text: str) -> list[int]:
    """Seven numbers below 4,096. Raises ValueError where the text does not fit."""
    if not fits(text):
        raise ValueError(f"a watermark is a text of 1 to {TEXT_BYTES} bytes that prints")
    data = text.encode().ljust(TEXT_BYTES, b"\0")
    number = int.from_bytes(data, "big") << CHECK_BITS | _check(data)
    return [number >> BITS * i & (1 << BITS) - 1 for i in range(SYMBOLS)]


def text_of(places: Sequence[int]) -> str | None:
    """None where the check says that these are noise: of a million random ones, one is taken for a text."""
    number = sum(place << BITS * i for i, place in enumerate(places))
    data = (number >> CHECK_BITS).to_bytes(TEXT_BYTES, "big")
    if _check(data) != number & (1 << CHECK_BITS) - 1:
        return None
    text = data.rstrip(b"\0").decode(errors="replace")
    return text if fits(text) else None


def _check(data: bytes) -> int:
    return zlib.crc32(data) & (1 << CHECK_BITS) - 1
