"""The options of `celadon generate`, as typer reads them. A bracket that opens is escaped: help texts are rich's markup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Prompt = Annotated[str, typer.Argument(help="What the picture shows.", show_default=False)]
Output = Annotated[str, typer.Option("--output", "-o", help="File or folder; - writes to standard output.")]
Negative = Annotated[str | None, typer.Option(help="What it should not show.", show_default=False)]
Syntax = Annotated[
    str | None, typer.Option("--prompt-syntax", help="a1111 knows (weights:1.3), \\[less] and BREAK. \\[plain]", show_default=False)
]
Pixels = Annotated[int | None, typer.Option(help="Pixels.", show_default=False)]
Steps = Annotated[int | None, typer.Option(help="More steps, finer and slower.", show_default=False)]
CacheInterval = Annotated[
    int | None, typer.Option(help="Ask the deep layers at every n-th evaluation alone: sooner, a little different.", show_default=False)
]
Guidance = Annotated[float | None, typer.Option(help="How strictly the prompt is followed; 1 is off.", show_default=False)]
Sampler = Annotated[str | None, typer.Option(help="The solver, for example ddim or dpmpp_2m.", show_default=False)]
Schedule = Annotated[str | None, typer.Option(help="The noise levels, for example karras.", show_default=False)]
GuidanceOption = Annotated[
    list[str], typer.Option("--guidance-option", help="Such as variant=apg or end=0.8; may be repeated.", show_default=False)
]
Seed = Annotated[int | None, typer.Option(help="The same seed draws the same picture.", show_default=False)]
Images = Annotated[int | None, typer.Option("--num-images", "-n", help="How many pictures.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="Which of the service's models.", show_default=False)]
Format = Annotated[str | None, typer.Option("--format", help="png, jpeg or webp. \\[the output's suffix, else png]", show_default=False)]
PICTURES = "From a picture, and larger"


def _file(help: str) -> typer.models.OptionInfo:
    info: typer.models.OptionInfo = typer.Option(help=help, exists=True, dir_okay=False, show_default=False, rich_help_panel=PICTURES)
    return info


Image = Annotated[Path | None, _file("The picture to begin with: PNG, JPEG or WebP.")]
Mask = Annotated[Path | None, _file("Of the same size: what is white is drawn anew.")]
Padding = Annotated[
    int | None,
    typer.Option(help="Draw the masked region alone, with so many pixels around it.", show_default=False, rich_help_panel=PICTURES),
]
Strength = Annotated[
    float | None, typer.Option(help="How much of the picture is drawn anew, up to 1.", show_default=False, rich_help_panel=PICTURES)
]
Upscale = Annotated[
    float | None,
    typer.Option(
        help="So many times larger: by the model's own network, or in a second pass.", show_default=False, rich_help_panel=PICTURES
    ),
]
