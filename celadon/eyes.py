"""The commands that show what happens: `celadon explain`, `celadon plot schedule`, `celadon plot process`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

plot = typer.Typer(help="Draw schedules, and a picture dissolving and forming.", no_args_is_help=True)

Model = Annotated[str, typer.Option(envvar="CELADON_MODEL", help="Folder or hub id. \\[the model that comes along]", show_default=False)]
Sampler = Annotated[str, typer.Option(help="Id, or its name in A1111, ComfyUI or diffusers. \\[the model's]", show_default=False)]
Schedule = Annotated[str, typer.Option(help="Id, or its name elsewhere. \\[the model's]", show_default=False)]
Steps = Annotated[int | None, typer.Option(min=1, help="How many steps. \\[the model's]", show_default=False)]
SamplerOption = Annotated[list[str], typer.Option("--sampler-option", help="Such as eta=0.5; may be repeated.", show_default=False)]
ScheduleOption = Annotated[list[str], typer.Option("--schedule-option", help="Such as rho=5; may be repeated.", show_default=False)]
Strength = Annotated[float, typer.Option(min=0, max=1, help="Of image-to-image: the last steps of so many.")]
Start = Annotated[float, typer.Option(min=0, max=1, help="Begin after this share of the steps.")]
End = Annotated[float, typer.Option(min=0, max=1, help="End after this share of the steps.")]


def explain(
    sampler: Sampler = "",
    schedule: Schedule = "",
    steps: Steps = None,
    sampler_option: SamplerOption = [],  # noqa: B006 - typer copies it
    schedule_option: ScheduleOption = [],  # noqa: B006
    strength: Strength = 1.0,
    start: Start = 0.0,
    end: End = 1.0,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    model: Model = "",
) -> None:
    """Print the table of a sampler on a schedule, row by row: what the model is asked, and what becomes of x and of the memories."""
    from celadon import explain as command
    from celadon.pairs import Pairs, refusing

    with refusing():
        pair = Pairs.of(model).pair(sampler, schedule, steps, sampler_option, schedule_option, **_part(strength, start, end))
        command.run(pair, Console(), as_json=json)


def _part(strength: float, start: float, end: float) -> dict[str, float]:
    """Those that are not the whole."""
    whole = {"strength": 1.0, "start": 0.0, "end": 1.0}
    return {name: value for name, value in {"strength": strength, "start": start, "end": end}.items() if value != whole[name]}


@plot.command("schedule")
def plot_schedule(
    schedules: Annotated[
        list[str], typer.Argument(help="Ids or other names. [karras, exponential, simple, cosine]", show_default=False)
    ] = [],  # noqa: B006
    output: Annotated[str, typer.Option("--output", "-o", help="SVG file; - writes to standard output.")] = "schedules.svg",
    steps: Annotated[
        int | None, typer.Option(min=1, help="How many steps. [20, or as many as given sigmas say]", show_default=False)
    ] = None,
    schedule_option: Annotated[
        list[str], typer.Option("--schedule-option", help="Such as karras.rho=5, or rho=5 for all; may be repeated.", show_default=False)
    ] = [],  # noqa: B006
    sampler: Annotated[str, typer.Option(help="As this sampler takes them.")] = "euler",
    strength: Strength = 1.0,
    start: Start = 0.0,
    end: End = 1.0,
    model: Model = "",
) -> None:
    """Draw levels and logSNR over the steps, in SVG. `GET /schedules/{id}.svg` of the service draws them with default options."""
    from celadon import plots
    from celadon.pairs import Pairs, refusing

    with refusing():
        names = schedules or ["karras", "exponential", "simple", "cosine"]
        plots.schedules(Pairs.of(model), names, steps, sampler, schedule_option, output, **_part(strength, start, end))


@plot.command("process")
def plot_process(
    prompt: Annotated[str, typer.Argument(help="What is drawn.")] = "a red apple",
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, JPEG or WebP file.")] = Path("process.png"),
    picture: Annotated[Path | None, typer.Option(help="What dissolves. \\[the picture that was drawn]", show_default=False)] = None,
    sampler: Sampler = "",
    schedule: Schedule = "",
    steps: Annotated[int, typer.Option(min=2, max=50, help="How many steps; one column each.")] = 8,
    guidance: Annotated[float | None, typer.Option(min=0, help="How strictly the prompt is followed.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 7,
    model: Model = "",
) -> None:
    """Draw a picture dissolving into noise (q) and one forming out of it (p), level by level."""
    from celadon import plots
    from celadon.pairs import Pairs, refusing

    with refusing():
        pair = Pairs.of(model).pair(sampler, schedule, steps, [], [])
        plots.process(pair, prompt, picture, guidance, seed, output)
