"""The text chunks of a PNG, read without decoding the picture (PNG specification, 3rd edition, 11.3.3)."""

from __future__ import annotations

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST = 1_000_000  # bytes of all texts, unpacked


def texts(data: bytes) -> dict[str, str]:
    """Keyword -> text of tEXt, zTXt and iTXt. Raises ValueError for what is no PNG, is cut short, or has texts of more than a megabyte."""
    if not data.startswith(SIGNATURE):
        raise ValueError("it is no PNG")
    found: dict[str, str] = {}
    at, left = len(SIGNATURE), MOST
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        if len(body) < length or len(data) < at + 12 + length:
            raise ValueError("it is cut short")
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, _, rest = body.partition(b"\0")
            found[keyword.decode("latin-1")] = text = _text(kind, rest)
            left -= len(text)
            if left < 0:
                raise ValueError("its texts are too long")
        if kind == b"IEND":
            return found
        at += 12 + length
    raise ValueError("it is cut short")


def _text(kind: bytes, rest: bytes) -> str:
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _unpacked(rest[1:]).decode("latin-1")
    *_, text = rest[2:].split(b"\0", 2)  # language, translated keyword, text
    return (_unpacked(text) if rest[:1] == b"\1" else text).decode("utf-8", "replace")


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MOST)
    except zlib.error as error:
        raise ValueError("a text of it cannot be unpacked") from error
    if unpacker.unconsumed_tail:
        raise ValueError("a text of it is too long")
    return text
