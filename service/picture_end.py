"""Where a picture's file ends: a picture with something behind it may be something else as well, to whoever reads it from there.

PNG (W3C, third edition), JPEG (ITU T.81, B.1.1), WebP (RFC 9649). As in `picture_head`, nothing is decoded.
"""

from __future__ import annotations

import struct

from service.picture_head import PNG

RESTART = range(0xD0, 0xD8)
END, SCAN = 0xD9, 0xDA


def end(data: bytes, extension: str) -> int | None:
    """The offset behind the last byte that belongs to the picture; None where the file ends before the picture does."""
    try:
        return {"png": _png, "jpg": _jpeg, "webp": _webp}[extension](data)
    except (struct.error, IndexError):
        return None


def _png(data: bytes) -> int | None:
    at = len(PNG)
    while True:
        size, name = struct.unpack_from(">I4s", data, at)
        at += 12 + int(size)
        if at > len(data):
            return None
        if name == b"IEND":
            return at


def _jpeg(data: bytes) -> int | None:
    at = 2
    while True:
        while data[at + 1] == 0xFF:  # fill
            at += 1
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        at += 2
        if marker == END:
            return at
        at += struct.unpack_from(">H", data, at)[0]
        if marker == SCAN:
            at = _behind_scan(data, at)


def _behind_scan(data: bytes, at: int) -> int:
    """The next marker that is none of the scan's own. Raises IndexError where there is none."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise IndexError
        following = data[at + 1]
        if following and following not in RESTART and following != 0xFF:
            return at
        at += 1 if following == 0xFF else 2


def _webp(data: bytes) -> int | None:
    (size,) = struct.unpack_from("<I", data, 4)
    at = 8 + size + size % 2
    return at if at <= len(data) else None
