"""Files that are no pictures, or more than one, or larger than they seem: made here, so that none lies in the repository."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, PngImagePlugin

from picture_samples import as_file, sample_picture

PIXELS = sample_picture(48, 32)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, body: bytes, *more: bytes) -> bytes:
    """RGB, with these compressed rows."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def bomb() -> bytes:
    """400 megapixels of nothing in some hundred kilobytes."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * 20_000)) for _ in range(200))
    return png_of(20_000, 20_000, rows + packer.flush())


def text_bomb() -> bytes:
    """A comment of 200 megabytes once it is unpacked."""
    return png_of(1, 1, zlib.compress(bytes(4)), png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)))


def moving(kind: str) -> bytes:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def two_in_one() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "MPO", save_all=True, append_images=[Image.fromarray(PIXELS)])
    return buffer.getvalue()


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def cut(kind: str, part: float) -> Callable[[], bytes]:
    def make() -> bytes:
        data = as_file(PIXELS, kind)
        return data[: int(len(data) * part)]

    return make


def with_tail(kind: str, tail: bytes) -> Callable[[], bytes]:
    return lambda: as_file(PIXELS, kind) + tail


ZIP = b"PK\x05\x06" + bytes(18)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'

HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("invalid_picture", lambda: b""),
    "text": ("invalid_picture", lambda: b"hello"),
    "html": ("invalid_picture", lambda: b"<!doctype html><script>alert(1)</script>"),
    "svg": ("invalid_picture", lambda: SVG),
    "gif": ("invalid_picture", lambda: as_file(PIXELS, "GIF")),
    "bmp": ("invalid_picture", lambda: as_file(PIXELS, "BMP")),
    "tiff": ("invalid_picture", lambda: as_file(PIXELS, "TIFF")),
    "zip": ("invalid_picture", lambda: ZIP),
    "a png's first bytes": ("invalid_picture", lambda: b"\x89PNG\r\n\x1a\n"),
    "a png of no size": ("invalid_picture", lambda: png_of(0, 5, zlib.compress(b""))),
    "a png whose check sum is wrong": ("invalid_picture", lambda: damaged(as_file(PIXELS), 60)),
    "a png whose head lies": ("invalid_picture", lambda: damaged(as_file(PIXELS), 18)),
    "a png of too few rows": ("picture_truncated", lambda: png_of(64, 64, zlib.compress(bytes(193 * 5)))),
    "a png whose rows are noise": ("invalid_picture", lambda: png_of(64, 64, b"\x00" * 400)),
    "a png cut": ("picture_truncated", cut("PNG", 0.6)),
    "a jpeg cut": ("picture_truncated", cut("JPEG", 0.9)),
    "a webp cut": ("picture_truncated", cut("WEBP", 0.6)),
    "a png that is a zip too": ("picture_trailing_data", with_tail("PNG", ZIP)),
    "a jpeg that is a zip too": ("picture_trailing_data", with_tail("JPEG", ZIP)),
    "a webp that is a zip too": ("picture_trailing_data", with_tail("WEBP", ZIP)),
    "a jpeg with html behind it": ("picture_trailing_data", with_tail("JPEG", b"<script>alert(1)</script>")),
    "a jpeg of two pictures": ("picture_trailing_data", two_in_one),
    "a png that moves": ("picture_moves", lambda: moving("PNG")),
    "a webp that moves": ("picture_moves", lambda: moving("WEBP")),
    "a bomb of pixels": ("picture_too_large", bomb),
    "one pixel high": ("picture_too_large", lambda: png_of(20_000_000, 1, zlib.compress(bytes(9)))),
    "a bomb of text": ("invalid_picture", text_bomb),
}


def with_everything() -> bytes:
    """A JPEG as a camera makes it: lying on its side, with Exif, a place, a comment and a colour profile."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    exif[0x010F] = "a camera's maker"
    exif.get_ifd(0x8825)[1] = "N"
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", quality=95, exif=exif, comment=b"a secret place", icc_profile=b"profile" * 20)
    return buffer.getvalue()


def png_with_text() -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "a secret place")
    notes.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=notes, dpi=(300, 300))
    return buffer.getvalue()


def of_modes() -> dict[str, tuple[bytes, np.ndarray]]:
    """Pictures of every kind of pixel, and the RGB or RGBA that they show."""
    grey, grid = PIXELS[..., 0], Image.fromarray(PIXELS)
    clear = np.dstack([PIXELS, np.where(grey > 100, 255, 7).astype(np.uint8)])
    palette = grid.quantize(16)
    masked = Image.fromarray(grey)
    masked.info["transparency"] = int(grey[0, 0])
    made: dict[str, tuple[Image.Image, np.ndarray]] = {
        "RGB": (grid, PIXELS),
        "RGBA": (Image.fromarray(clear), clear),
        "L": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "LA": (Image.fromarray(clear).convert("LA"), np.asarray(Image.fromarray(clear).convert("LA").convert("RGBA"))),
        "P": (palette, np.asarray(palette.convert("RGB"))),
        "1": (Image.fromarray(grey).convert("1"), np.asarray(Image.fromarray(grey).convert("1").convert("RGB"))),
        "I;16": (Image.fromarray(grey.astype(np.uint16) * 257), np.dstack([grey] * 3)),
    }
    found = {}
    for name, (image, shown) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        found[name] = buffer.getvalue(), shown
    buffer = io.BytesIO()
    masked.save(buffer, "PNG", transparency=int(grey[0, 0]))
    found["L and one clear grey"] = buffer.getvalue(), np.dstack([grey] * 3 + [np.where(grey == grey[0, 0], 0, 255).astype(np.uint8)])
    return found
