"""`celadon watermark`: what pictures say unseen."""

from __future__ import annotations

import io
import os
import stat
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from PIL.Image import Image

NONE, UNREADABLE = 1, 2  # exit statuses
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # none whose reader starts other programs
MOST_PIXELS = 1 << 25  # 33 million: a gigabyte while they are read
MOST_BYTES = 1 << 28  # from stdin, which is held whole
STDIN = "-"

Files = Annotated[list[str], typer.Argument(help="Pictures; - is one that comes by stdin.", show_default=False)]


class Unreadable(ValueError):
    """No picture, or none that is looked at; the message says why."""


def watermark(files: Files) -> None:
    """Print the invisible watermark of pictures, as CELADON_WATERMARK put it there.

    Of several files, one line each, the file's name first. A picture that was marked by two services says both, the plainer one first.
    Exit status 0 where all have one, 1 where none is found in any of them, 2 where any cannot be read as a picture; the others are told
    all the same. A picture that was resized may take some seconds. docs/safety.md says what a mark survives.
    """
    import numpy as np

    from workers.watermark import Watermark

    reader, status = Watermark(), 0
    for file in files:
        name = "stdin" if file == STDIN else file
        try:
            texts = next((texts for image in _ways(file) if (texts := reader.find(np.asarray(image)))), [])
        except Unreadable as error:
            _say(f"{name} cannot be read as a picture: {error}")
            status = UNREADABLE
            continue
        for text in texts:
            print(f"{name}: {text}" if len(files) > 1 else text)
        if not texts:
            _say(f"no watermark found{f' in {name}' if len(files) > 1 else ''}: there is none, or it did not survive")
            status = max(status, NONE)
    if status:
        raise typer.Exit(status)


def _ways(file: str) -> list[Image]:
    """The picture as it is shown, and where a camera's or viewer's note turns it, as it is stored, too: the note may be younger than the
    mark. Raises Unreadable.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with warnings.catch_warnings(), _opened(file) as source:
        warnings.simplefilter("ignore")  # what Pillow warns of is a picture all the same, or too large here
        try:
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Unreadable(f"it has {image.width} x {image.height} pixels; {MOST_PIXELS} are looked at")
                shown = ImageOps.exif_transpose(image).convert("RGB")
                stored = image.convert("RGB")
        except Unreadable:
            raise
        except Image.DecompressionBombError:
            raise Unreadable(f"it has more pixels than the {MOST_PIXELS} that are looked at") from None
        except UnidentifiedImageError:
            raise Unreadable(f"it is none of {', '.join(FORMATS)}") from None
        except Exception as error:  # Pillow's readers raise whatever they stumble upon in broken files
            raise Unreadable(str(error) or type(error).__name__) from error
    turned = shown.size != stored.size or shown.tobytes() != stored.tobytes()
    return [shown, stored] if turned else [shown]


def _opened(file: str) -> BinaryIO:
    """Never waits for a pipe or device that is named. Raises Unreadable."""
    if file == STDIN:
        return _from_stdin()
    try:
        number = os.open(Path(file), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise Unreadable(getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise Unreadable("it is no file")
    return os.fdopen(number, "rb")


def _from_stdin() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise Unreadable("stdin is a terminal; send it a picture")
    data = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise Unreadable(f"it has more than the {MOST_BYTES} bytes that are taken")
    return io.BytesIO(data)


def _say(message: str) -> None:
    Console(stderr=True).print(f"[red]✗[/] {escape(message)}", highlight=False, soft_wrap=True)
