"""`celadon batch`: a file of prompts, their pictures in a folder. Run again, it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from celadon.client import ApiError, Client, Image
from celadon.pictures import SUFFIXES

NOTE = ".celadon-batch.json"  # in the folder: which batch its pictures are of
LOOK_S = 1.0  # between two looks at the batch
PAGE = 200  # lines of the results that are asked for at once
TOLD = 20  # lines without pictures that are named
OPEN = frozenset({"queued", "running"})
PASSING = frozenset({"queue_full", "client_queue_full", "rate_limited"})  # what time alone mends, and soon


def run(client: Client, file: Path, folder: Path, options: Mapping[str, Any], console: Console) -> bool:
    """Send the file, follow the batch, save its pictures; whether every line has its own. Raises CeladonError, OSError."""
    body = with_options(file.read_bytes(), options, plain=file.suffix == ".txt")
    folder.mkdir(parents=True, exist_ok=True)
    batch = _send(client, body, _key(folder, body), console)
    saved = Saved(client, folder)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("lines"), TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"), console=console,
    ) as bar:  # fmt: skip
        task = bar.add_task(f"[bold]{escape(file.name)}[/]", total=sum(batch["counts"].values()), eta="")
        while True:
            ended = batch["status"] == "ended"
            saved.fetch(batch["id"])
            done = sum(batch["counts"][what] for what in ("succeeded", "failed", "canceled", "refused"))
            bar.update(task, completed=done, eta=f"{batch['eta_s']:.0f} s left" if batch["eta_s"] else "")
            if ended:
                break
            time.sleep(LOOK_S)
            again = batch["status"] == "incomplete"  # the service was killed while it took the lines
            batch = _send(client, body, _key(folder, body), console) if again else client.batch(batch["id"])
    for line in saved.told():
        console.print(f"[red]✗[/] {escape(line)}", highlight=False, soft_wrap=True)
    return not saved.without


def cancel(client: Client, folder: Path) -> Mapping[str, Any]:
    """Take what is left of the folder's batch out of the queue; the batch afterwards. Raises CeladonError, OSError."""
    return client.cancel_batch(json.loads((folder / NOTE).read_text())["id"])


@dataclass(slots=True)
class Saved:
    """What of the results lies in the folder; `without` are the lines that will have no picture, and why."""

    client: Client
    folder: Path
    first: int = 1  # line that was open when it was looked at last
    without: dict[int, str] = field(default_factory=dict)

    def fetch(self, batch_id: str) -> None:
        """Save every picture that is done and not there yet, from the first open line on: jobs end roughly in their order."""
        begin, still_open = self.first, list[int]()
        while page := self.client.batch_results(batch_id, begin, PAGE):
            for line in page:
                if line["status"] in OPEN:
                    still_open.append(line["line"])
                else:
                    self._take(line)
            begin = page[-1]["line"] + 1
            if all(line["status"] in OPEN for line in page):
                break
        self.first = still_open[0] if still_open else begin

    def told(self) -> Iterator[str]:
        """A sentence for each line without pictures, as far as they are few."""
        for line in sorted(self.without)[:TOLD]:
            yield f"line {line}: {self.without[line]}"
        if len(self.without) > TOLD:
            yield f"and {len(self.without) - TOLD} more lines"

    def _take(self, line: Mapping[str, Any]) -> None:
        number = line["line"]
        images = [Image(**{name: image[name] for name in Image.__slots__}) for image in line["images"]]
        for index, image in enumerate(images, 1):
            stem = f"{number:05d}-{index}" if len(images) > 1 else f"{number:05d}"
            path = self.folder / f"{stem}{SUFFIXES[image.media_type]}"
            if not path.exists():
                part = path.with_suffix(".part")
                self.client.download(image, part)
                part.replace(path)  # what has its name is whole
        if not images and not any(self.folder.glob(f"{number:05d}[.-]*")):
            error = line["error"]
            self.without[number] = f"{line['status']}: {error['message']} ({error['code']})" if error else line["status"]


def with_options(body: bytes, options: Mapping[str, Any], *, plain: bool) -> bytes:
    """The lines as they are sent, under their numbers; `options` stand beneath the file's own defaults. A plain file holds prompts."""
    lines = body.decode("utf-8-sig").split("\n")
    if plain:
        lines = [json.dumps(line.strip()) if line.strip() else "" for line in lines]
    if options:
        known = False  # whether the file has a line of defaults
        for number, line in enumerate(lines):
            if line.strip():
                lines[number], known = _on(line, options, known)
    return "\n".join(lines).encode()


def _on(line: str, options: Mapping[str, Any], known: bool) -> tuple[str, bool]:
    try:
        said = json.loads(line)
    except ValueError:  # the service says what is wrong with it
        return line, known
    if isinstance(said, dict) and said.keys() == {"defaults"} and isinstance(said["defaults"], dict):
        return json.dumps({"defaults": {**options, **said["defaults"]}}), True
    if known or not isinstance(said, (dict, str)):
        return line, known
    return json.dumps({**options, **(said if isinstance(said, dict) else {"prompt": said})}), False


def _send(client: Client, body: bytes, key: tuple[str, Path], console: Console) -> Mapping[str, Any]:
    """Find what was submitted before, or submit; a full queue is waited for."""
    if found := _found(client, key[1]):
        return found
    while True:
        try:
            batch = client.submit_batch(body, idempotency_key=key[0])
            break
        except ApiError as error:
            if error.code not in PASSING or not error.retry_after_s:
                raise
            console.print(f"{escape(error.message)} Trying again in {error.retry_after_s:g} s.", highlight=False)
            time.sleep(error.retry_after_s)
    _write(key[1], {**json.loads(key[1].read_text()), "id": batch["id"], "url": client.url})
    return batch


def _found(client: Client, note: Path) -> Mapping[str, Any] | None:
    """The batch that the note names, if it is known and lacks no lines. Its key is forgotten after a day, and a batch may take longer."""
    id_ = json.loads(note.read_text()).get("id")
    try:
        batch = client.batch(id_) if id_ else None
    except ApiError as error:
        if error.status not in (404, 410):
            raise
        return None
    return None if batch and batch["status"] == "incomplete" else batch


def _key(folder: Path, body: bytes) -> tuple[str, Path]:
    """The key under which these lines are sent from this folder, and the note that keeps it; written before anything is sent."""
    note, digest = folder / NOTE, hashlib.sha256(body).hexdigest()
    kept = json.loads(note.read_text()) if note.exists() else {}
    if kept.get("digest") != digest:
        kept = {"digest": digest, "key": uuid.uuid4().hex}
        _write(note, kept)
    return kept["key"], note


def _write(note: Path, kept: Mapping[str, str]) -> None:
    """Whole, or not at all: without its key a batch would be drawn a second time."""
    part = note.with_suffix(".part")
    part.write_text(json.dumps(kept))
    part.replace(note)
