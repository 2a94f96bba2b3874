"""`python -m workers.clean_picture PIXELS`: a picture of a stranger comes in (stdin) and goes out as a plain PNG (stdout).

A process of its own, with little memory and little time, since decoders are where hostile files strike; the gateway loads no such code. The
first line of the answer is JSON: `width`, `height` and `transparent`, and the PNG behind it; or `refused`, one of the words of REFUSALS.
Pixels are turned as the camera says; everything but pixels is left out.
"""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import warnings
import zlib

from PIL import Image, ImageOps

MEMORY_BYTES = 1 << 30
CPU_S = 30
PIECE = 1 << 20
OPAQUE = 255
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's type of colour
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
REFUSALS = ("unreadable", "truncated", "moves", "too_large")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    about, png = clean(sys.stdin.buffer.read(), int(sys.argv[1]))
    sys.stdout.buffer.write(json.dumps(about).encode() + b"\n" + png)
    sys.stdout.buffer.flush()


def clean(data: bytes, most_pixels: int) -> tuple[dict[str, object], bytes]:
    """What to say, and the PNG."""
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = most_pixels
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if picture.width * picture.height > most_pixels:
            return {"refused": "too_large"}, b""
        if getattr(picture, "n_frames", 1) > 1:
            return {"refused": "moves"}, b""
        picture.load()
        if picture.format == "PNG" and png_rows(data) < rows_of(data):
            return {"refused": "truncated"}, b""  # Pillow would take what is missing for black
        plain = _plain(ImageOps.exif_transpose(picture))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return {"refused": "too_large"}, b""
    except OSError as error:
        return {"refused": "truncated" if "truncated" in str(error) else "unreadable"}, b""
    except (SyntaxError, ValueError, MemoryError, ArithmeticError, LookupError, TypeError, struct.error, zlib.error):
        return {"refused": "unreadable"}, b""  # Pillow's readers raise all of these on broken files
    written = io.BytesIO()
    plain.save(written, "PNG", compress_level=3)
    return {"width": plain.width, "height": plain.height, "transparent": plain.mode == "RGBA"}, written.getvalue()


def rows_of(png: bytes) -> int:
    """How many bytes its rows have, before compression (PNG, third edition, section 7 and 8)."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", png, 16)
    total = 0
    for left, top, right, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        total += rows * (1 + -(-columns * depth * CHANNELS[colour] // 8)) if columns > 0 and rows > 0 else 0
    return total


def png_rows(png: bytes) -> int:
    """How many there are. Raises zlib.error, struct.error."""
    unpack, at, total = zlib.decompressobj(), 8, 0
    while at < len(png):
        size, name = struct.unpack_from(">I4s", png, at)
        piece = png[at + 8 : at + 8 + size] if name == b"IDAT" else b""
        while piece:
            total += len(unpack.decompress(piece, PIECE))
            piece = unpack.unconsumed_tail
        at += 12 + size
    return total + len(unpack.flush())


def _plain(picture: Image.Image) -> Image.Image:
    """Eight bits, RGB, or RGBA where anything is transparent, without anything else."""
    if picture.mode.startswith("I"):  # sixteen bits, which conversion would cut off instead of scaling
        picture = picture.point(lambda value: value * (1 / 256)).convert("L")
    transparent = "A" in picture.getbands() or "transparency" in picture.info
    pixels = picture.convert("RGBA" if transparent else "RGB")
    if transparent and pixels.getchannel("A").histogram()[OPAQUE] == pixels.width * pixels.height:
        pixels = pixels.convert("RGB")
    return Image.frombytes(pixels.mode, pixels.size, pixels.tobytes())


if __name__ == "__main__":
    main()
