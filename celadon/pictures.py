"""From a prompt to pictures, with a progress bar: what `celadon generate` and the first prompt of `celadon up` share."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from celadon.client import Client, Generation

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def draw(client: Client, console: Console, prompt: str, **params: Any) -> Generation:
    """Submit the prompt and follow it to its end under a progress bar. Cancels it on Ctrl-C. Raises CeladonError."""
    key = uuid.uuid4().hex
    try:
        job = _follow(client, console, prompt, client.submit(prompt, idempotency_key=key, **params))
    except KeyboardInterrupt:
        # It may have come while the answer was on its way. The same key gives the same job, so its id can be asked again.
        client.cancel(client.submit(prompt, idempotency_key=key, **params).id)
        raise
    for warning in job.warnings:
        console.print(f"[yellow]![/] {escape(warning)}", highlight=False)
    return job


def _follow(client: Client, console: Console, prompt: str, job: Generation) -> Generation:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps")
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(f"[bold]{_short(prompt)}[/]", total=job.steps_total)
        job = client.wait(job.id, on_progress=lambda done, total: bar.update(task, completed=done, total=total))
        bar.update(task, completed=job.steps_total, total=job.steps_total)
    return job


def files(output: str, job: Generation, prompt: str) -> Iterator[Path]:
    """Where each picture of the job goes: `output` itself, numbered if there are several; a name of its own in a folder."""
    target = Path(output or ".")
    in_folder = not output or output.endswith("/") or target.is_dir()
    for number, image in enumerate(job.images, 1):
        suffix = SUFFIXES[image.media_type]
        if in_folder:
            yield target / f"{_slug(prompt)}-{image.seed}{suffix}"
        elif len(job.images) == 1:
            yield target
        else:
            yield target.with_stem(f"{target.stem}-{number}")


def _short(prompt: str, length: int = 40) -> str:
    return escape(prompt if len(prompt) <= length else f"{prompt[: length - 1]}…")


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "picture"
