"""`celadon watermark`: what a picture says unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

NONE, UNREADABLE = 1, 2  # exit statuses

File = Annotated[Path, typer.Argument(help="A picture.", show_default=False)]


def watermark(file: File) -> None:
    """Print the invisible watermark of a picture, as CELADON_WATERMARK put it there; exit status 1 where none is found.

    A picture that was resized may take some seconds. docs/safety.md says what a mark survives.
    """
    import numpy as np
    from PIL import Image

    from workers.watermark import Watermark

    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _fail(f"{file} cannot be read as a picture: {error}", UNREADABLE) from error
    text = Watermark().find(pixels)
    if text is None:
        raise _fail("no watermark found: there is none, or it did not survive", NONE)
    print(text)


def _fail(message: str, status: int) -> typer.Exit:
    Console(stderr=True).print(f"[red]✗[/] {escape(message)}", highlight=False, soft_wrap=True)
    return typer.Exit(status)
