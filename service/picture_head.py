"""What the first bytes of a picture say: format, size, transparency. Nothing is decoded here: a worker does, and says so where it cannot.

PNG (W3C, third edition), JPEG (ITU T.81, Exif 2.32 for the orientation), WebP (RFC 9649).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PNG = b"\x89PNG\r\n\x1a\n"
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn of JPEG
ORIENTATION, LYING = 0x0112, range(5, 9)  # of Exif: rows are columns


class Moves(ValueError):
    """It has more than one frame."""


@dataclass(frozen=True, slots=True)
class Head:
    """Pixels as they are to be seen. `extension` names the format."""

    extension: str  # png, jpg, webp
    width: int
    height: int
    transparent: bool  # has an alpha channel, or may have one


def head(data: bytes) -> Head:
    """Raises ValueError for what is no PNG, JPEG or WebP, or moves."""
    try:
        found = _png(data) or _jpeg(data) or _webp(data)
    except (struct.error, IndexError):
        found = None
    if found is None or not (found.width and found.height):
        raise ValueError("it is no PNG, JPEG or WebP")
    return found


def _png(data: bytes) -> Head | None:
    if not data.startswith(PNG):
        return None
    size, name, width, height, _, colour = struct.unpack_from(">I4sIIBB", data, len(PNG))
    if (size, name) != (13, b"IHDR"):
        return None
    chunks = set[bytes]()
    at = len(PNG)
    while at + 8 <= len(data) and name != b"IDAT":
        size, name = struct.unpack_from(">I4s", data, at)
        chunks.add(name)
        at += 12 + size
    if b"acTL" in chunks:
        raise Moves("it moves; one frame is taken")
    return Head("png", width, height, colour in (4, 6) or b"tRNS" in chunks)


def _jpeg(data: bytes) -> Head | None:
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    at, turned = 2, False
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        (size,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            turned = _orientation(data[at + 10 : at + 2 + size]) in LYING
        if marker in FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Head("jpg", height, width, False) if turned else Head("jpg", width, height, False)
        at += 2 + size
    return None


def _orientation(tiff: bytes) -> int:
    """1 where none is told."""
    try:
        order = "<" if tiff[:2] == b"II" else ">"
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == ORIENTATION:
                return int(value)
    except struct.error:
        return 1
    return 1


def _webp(data: bytes) -> Head | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Head("webp", width & 0x3FFF, height & 0x3FFF, False)
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return Head("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1))
    if kind == b"VP8X" and len(data) >= 30:
        if data[20] & 0x02:
            raise Moves("it moves; one frame is taken")
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return Head("webp", width, height, bool(data[20] & 0x10))
    return None
