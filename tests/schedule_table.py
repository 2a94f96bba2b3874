"""The table of schedules in docs/schedules.md, made from the registry: `python -m tests.schedule_table` writes it anew."""

from __future__ import annotations

from pathlib import Path

from pipelines.card import OptionInfo
from pipelines.schedule_list import SCHEDULES

PAGE = Path(__file__).parent.parent / "docs" / "schedules.md"
HEAD = "| id | levels for n steps | options: default (range) |\n|---|---|---|\n"


def table() -> str:
    return HEAD + "".join(f"| `{id}` | {one.about}{_notes(id)} | {_options(one.options)} |\n" for id, one in SCHEDULES.items())


def written() -> str:
    """The page with the table that the registry makes."""
    before, _, rest = PAGE.read_text().partition(HEAD)
    after = rest.splitlines(keepends=True)
    while after and after[0].startswith("|"):
        after.pop(0)
    return before + table() + "".join(after)


def _notes(id: str) -> str:
    most = f"; at most {SCHEDULES[id].most} steps" if SCHEDULES[id].most else ""
    return most + ("; it ends above zero" if SCHEDULES[id].ends_open else "")


def _options(options: dict[str, OptionInfo]) -> str:
    return ", ".join(f"`{name}` {_option(option)}" for name, option in options.items())


def _option(option: OptionInfo) -> str:
    if option.falling:
        return "(from the ladder's end to 0)"
    return " or ".join(option.choices) if option.choices else f"{option.default:g} ({option.minimum:g} to {option.maximum:g})"


if __name__ == "__main__":
    PAGE.write_text(written())
