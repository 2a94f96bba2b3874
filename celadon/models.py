"""`celadon models`: what checkpoints are, whether they run here, and names for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pipelines.checkpoint_folder import Described
    from workers.settings import WorkerSettings

REFUSED = 1  # exit status
app = typer.Typer(help="Look at checkpoints, and give them names that workers serve.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="A folder in diffusers layout, a .safetensors file, or a hub id.", show_default=False)]


@app.command()
def check(source: Source, json_: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say what a checkpoint is and what runs it, or why it is refused (exit status 1). Its weights are not loaded."""
    told = _told(source)
    if json_:
        print(json.dumps(told, indent=2))
    elif "refused" not in told:
        table = Table.grid(padding=(0, 2))
        for name, value in told.items():
            table.add_row(f"[dim]{escape(name)}[/]", escape(", ".join(value) if isinstance(value, list) else str(value)))
        Console().print(table)
    _stop_if_refused(told, silent=json_)


@app.command()
def add(
    source: Source, name: Annotated[str, typer.Option(help="What requests call it; its own name if left out.", show_default=False)] = ""
) -> None:
    """Check a checkpoint and give it a name. Workers that start from then on serve it, beside what they have."""
    from pipelines.sources import slug
    from workers.added import read_added, write_added

    told = _told(source)
    _stop_if_refused(told)
    wanted = name or str(told["name"])
    if wanted != slug(wanted):
        _say(f"a name holds letters, digits, and . _ - inside: {slug(wanted)}, for example")
        raise typer.Exit(2)
    settings = _settings()
    added = read_added(settings.data_dir)
    place = str(Path(source).resolve()) if Path(source).exists() else source
    if added.get(wanted, place) != place:
        _say(f"{wanted} is another checkpoint here: give a --name, or remove that one first")
        raise typer.Exit(2)
    write_added(settings.data_dir, added | {wanted: place})
    print(wanted)
    if settings.models and wanted not in settings.sources:
        _say(f"CELADON_MODELS names what workers serve, and not {wanted}")


@app.command(name="list")
def list_() -> None:
    """What a worker with these settings serves, and what of it would be refused."""

    table = Table("name", "source", "draws", "runs on", box=None)
    for name, source in _settings().sources.items():
        told = _told(source)
        shown = str(told.get("name", source)) if name == source else name
        size = "" if "refused" in told else str(told["size"])
        table.add_row(
            *map(escape, (shown, source, size, f"refused: {told['refused']}" if "refused" in told else ", ".join(told["runs on"])))
        )
    Console().print(table)


@app.command()
def remove(name: Annotated[str, typer.Argument(help="As `celadon models list` has it.", show_default=False)]) -> None:
    """Forget a name. The checkpoint stays where it is."""
    from workers.added import read_added, write_added

    folder = _settings().data_dir
    added = read_added(folder)
    if name not in added:
        _say(f"no name {name} was added")
        raise typer.Exit(2)
    write_added(folder, {one: source for one, source in added.items() if one != name})


def _stop_if_refused(told: Mapping[str, str | list[str]], *, silent: bool = False) -> None:
    if "refused" in told:
        if not silent:
            _say(f"refused ({told['refused']}): {told['why']}")
        raise typer.Exit(REFUSED)


def _settings() -> WorkerSettings:
    """Those of a worker that started now; it talks to no Redis here."""
    from celadon.settings import of_worker
    from celadon.supervisor import StartRefused

    try:
        settings = of_worker(redis_url="redis://localhost")
        _ = settings.sources
    except (StartRefused, ValueError) as error:
        _say(str(error))
        raise typer.Exit(2) from error
    return settings


def _told(source: str) -> dict[str, str | list[str]]:
    """What `check` says; `refused` with a code and `why` where it cannot run."""
    from pipelines.checkpoint_error import CheckpointError
    from pipelines.checkpoint_folder import describe

    settings = _settings()
    try:
        said = describe(source, Path(settings.solvers) if settings.solvers else None, settings.caches)
    except CheckpointError as error:
        return {"refused": error.code, "why": str(error)}
    card = said.card
    return {
        "name": card.id, "title": card.title, "size": f"{card.width}x{card.height}", "largest": f"{card.max_width}x{card.max_height}",
        "predicts": card.prediction_type, "kinds": list(card.kinds), "parameters": f"{said.parameters / 1e6:.0f} million",
        "weights": f"{_bytes(said.folder) / 2**20:.0f} MiB", "hash": card.hash, "runs on": _backends(said),
    }  # fmt: skip


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _backends(said: Described) -> list[str]:
    """Those that could open it; whether this machine has them is what `celadon doctor` tells."""
    try:
        from pipelines.graphs import unet, vae

        unet.check(said.configs["unet"])
        vae.check(said.configs["vae"])
    except (ImportError, ValueError):  # ValueError: there is no graph of it
        return ["torch"]
    return ["OpenVINO", "torch"]


def _say(message: str) -> None:
    Console(stderr=True).print(f"[red]✗[/] {escape(message)}", highlight=False, soft_wrap=True)
