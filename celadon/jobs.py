"""`celadon jobs`: look at the jobs of a service, at its dead letters, and queue those again. It talks HTTP, like `celadon generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from celadon import generate
from celadon.client import Client, Unreachable

PROMPT_CHARS = 32
COLORS = {"queued": "yellow", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "dim"}


def client_of(url: str) -> Client:
    """A client of the service at `url`, else of the one that runs here. Raises StartRefused, Unreachable."""
    if found := url or generate.running():
        return Client(found, api_key=generate.api_key())
    raise Unreachable("no service is running here: start one with `celadon up`, or set CELADON_URL")


def show_list(client: Client, console: Console, *, status: str | None, limit: int) -> None:
    """The newest `limit` jobs, newest first; only those of that status, if one is given. Raises CeladonError."""
    table = _table("id", "status", "done", "class", "priority", "created", "seconds left", "prompt")
    for job in _pages(client, status, limit):
        table.add_row(*_row(job))
    console.print(table if table.row_count else "[dim]no jobs[/]")


def show_dead(client: Client, console: Console, *, limit: int) -> None:
    """The newest `limit` dead letters, each with what its workers died of. Raises CeladonError."""
    table = _table("id", "attempts", "given up", "lost with", "prompt")
    for job in _pages(client, "dead", limit):
        lost = "\n".join(f"{_clock(loss['at'])} {escape(loss['worker'])} (attempt {loss['attempt']})" for loss in job["losses"])
        table.add_row(job["id"], str(len(job["losses"])), _clock(job["finished_at"]), lost, _prompt(job))
    console.print(table if table.row_count else "[dim]no dead letters[/]")


def show(client: Client, console: Console, job_id: str) -> None:
    """Everything about one job. Raises CeladonError."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(client.read(_path(job_id))):
        table.add_row(name, value)
    console.print(table)


def retry(client: Client, console: Console, job_ids: Sequence[str]) -> None:
    """Queue these dead letters again, each as a new job. Raises CeladonError at the first that cannot be."""
    for job_id in job_ids:
        job = client.retry(job_id)
        console.print(f"[green]✓[/] {escape(job_id)} is {job.status} again, as {job.id}", highlight=False, soft_wrap=True)


def _pages(client: Client, status: str | None, limit: int) -> list[Mapping[str, Any]]:
    """Jobs of as many pages as are needed."""
    found: list[Mapping[str, Any]] = []
    cursor: str | None = None
    while len(found) < limit:
        asked = {"status": status, "limit": min(limit - len(found), 100), "cursor": cursor}
        page = client.read(f"/jobs?{urlencode({name: value for name, value in asked.items() if value is not None})}")
        found += page["jobs"]
        cursor = page["cursor"]
        if not cursor:
            break
    return found


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
    for name in columns:
        whole = name == "id"  # an id that is cut short is of no use
        table.add_column(name, no_wrap=whole, min_width=32 if whole else None)
    return table


def _row(job: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        job["id"],
        _status(job),
        _progress(job),
        job["service_class"],
        str(job["priority"]),
        _clock(job["created_at"]),
        "" if job["eta_s"] is None else f"{job['eta_s']:.1f}",
        _prompt(job),
    )


def _facts(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What there is to say of a job; what is empty is left out."""
    error, webhook = job["error"], job["webhook"]
    said = {
        "id": job["id"],
        "status": _status(job) + (" [dim](cancel wished)[/]" if job["cancel_requested"] and not job["finished_at"] else ""),
        "done": _progress(job),
        "class": job["service_class"],
        "priority": str(job["priority"]),
        "deadline": _clock(job["deadline_at"]),
        "position": "" if job["position"] is None else str(job["position"]),
        "seconds left": "" if job["eta_s"] is None else f"{job['eta_s']:.1f}",
        "created": _clock(job["created_at"]),
        "started": _clock(job["started_at"]),
        "finished": _clock(job["finished_at"]),
        "error": f"{escape(error['message'])} ({error['code']})" if error else "",
        "webhook": f"{escape(webhook['url'])} ({', '.join(webhook['events'])})" if webhook else "",
        **{f"lost {number}": f"{_clock(loss['at'])} {escape(loss['worker'])}" for number, loss in enumerate(job["losses"], 1)},
        **{f"warning {number}": escape(warning["message"]) for number, warning in enumerate(job["warnings"], 1)},
        **{name: escape(str(value)) for name, value in job["params"].items() if value not in ("", {}, None)},
        **{f"image {number}": escape(image["url"]) for number, image in enumerate(job["images"], 1)},
    }
    return [(name, value) for name, value in said.items() if value]


def _status(job: Mapping[str, Any]) -> str:
    return f"[{COLORS.get(job['status'], 'default')}]{job['status']}[/]"


def _progress(job: Mapping[str, Any]) -> str:
    return f"{job['progress']['steps_done']}/{job['progress']['steps_total']}"


def _prompt(job: Mapping[str, Any]) -> str:
    prompt = " ".join(job["params"]["prompt"].split())
    return escape(prompt if len(prompt) <= PROMPT_CHARS else f"{prompt[: PROMPT_CHARS - 1]}…")


def _clock(moment: str | None) -> str:
    """An RFC 3339 time in the time zone of this machine."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
