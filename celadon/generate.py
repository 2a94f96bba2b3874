"""`celadon generate`: one prompt, its pictures, saved."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from celadon import data_dir as data_dirs
from celadon import pictures
from celadon.client import Client, Unreachable, connection
from celadon.settings import of_gateway
from celadon.supervisor import GUARD, StartRefused

MODEL_S = 120.0  # a temporary service has loaded its model within this


def run(prompt: str, output: str, params: Mapping[str, Any], url: str, console: Console) -> None:
    """Draw, save, and print each file's name. Raises CeladonError, StartRefused, OSError."""
    wanted = dict(params)
    check_output(output, wanted)
    if not wanted.get("output_format") and (suffix := Path(output).suffix.lower()) in pictures.FORMATS:
        wanted["output_format"] = pictures.FORMATS[suffix]
    with service(url, console) as client:
        job = pictures.draw(client, console, prompt, **uploaded(client, wanted))
        if output == "-":
            for image in job.images:
                sys.stdout.buffer.write(client.download(image))
            return
        for image, path in zip(job.images, pictures.files(output, job, prompt), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download(image, path)
            print(path)


def uploaded(client: Client, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The same with keys in place of files, one level deep as well. Raises CeladonError, OSError."""
    keys = {name: client.upload(value)["key"] for name, value in wanted.items() if isinstance(value, Path)}
    inside = {name: uploaded(client, value) for name, value in wanted.items() if isinstance(value, dict)}
    return dict(wanted) | keys | inside


def check_output(output: str, wanted: Mapping[str, Any]) -> None:
    """Before anything is drawn. Raises StartRefused."""
    target = Path(output)
    if output == "-" and (wanted.get("num_images") or 1) > 1:
        raise StartRefused("-o - takes one picture; name a folder for several")
    if target.suffix and target.suffix.lower() not in pictures.FORMATS and not target.is_dir() and not output.endswith("/"):
        raise StartRefused(f"-o {output}: pictures are {', '.join(sorted(pictures.FORMATS))}, or name a folder")


@contextlib.contextmanager
def service(url: str, console: Console) -> Iterator[Client]:
    """A client of the service at `url`, else of one that runs here, else of one started for the moment."""
    with contextlib.ExitStack() as stack:
        found = url or running() or stack.enter_context(temporary(console))
        yield stack.enter_context(Client(found, api_key=api_key()))


def api_key() -> str:
    """What the commands show to a service that wants a key; by environment, since arguments can be read by others."""
    return os.environ.get("CELADON_API_KEY", "")


def running() -> str | None:
    """Where a service of this machine answers: the one on our data folder, or one on the usual port."""
    settings = of_gateway()
    noted = data_dirs.read_service(settings.data_dir)
    for url in [noted.url] if noted else [f"http://127.0.0.1:{settings.port}"]:
        if is_celadon(url):
            return url
    return None


def is_celadon(url: str) -> bool:
    """Whether a Celadon gateway answers there, and not just anything."""
    with httpx2.Client(**connection(url, "", timeout_s=3)) as http, contextlib.suppress(Exception):  # one look: no answer is one, too
        return bool(http.get("/openapi.json").json()["info"]["title"] == "Celadon")
    return False


@contextlib.contextmanager
def temporary(console: Console) -> Iterator[str]:
    """Start a whole service in a temporary folder, and stop it at the end. Raises StartRefused."""
    console.print("No service is running here: starting one for this picture. [dim]`celadon up` keeps one running.[/]")
    with tempfile.TemporaryDirectory(prefix="celadon-") as folder, tempfile.TemporaryFile() as log:
        data_dir = Path(folder)
        command = [sys.executable, "-I", "-S", str(GUARD), "SIGTERM", str(os.getpid())]
        command += [sys.executable, "-P", "-m", "celadon", "up", "--host", "127.0.0.1", "--port", "0", "--data-dir", folder]
        environment = os.environ | {"CELADON_KEYS": "none"}  # it is ours alone, and nobody has made a key of it
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            with console.status("loading the model"):
                url = _wait(process, data_dir)
            if url is None:
                log.seek(0)
                raise StartRefused(f"the service did not start:\n{log.read().decode(errors='replace').strip()}")
            yield url
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], data_dir: Path) -> str | None:
    """The URL of a service under way, once it takes jobs; None if it ended or took too long."""
    until = time.monotonic() + MODEL_S
    while process.poll() is None and time.monotonic() < until:
        noted = data_dirs.read_service(data_dir)
        if noted:
            with Client(noted.url) as client, contextlib.suppress(Unreachable):
                if client.ready():
                    return noted.url
        time.sleep(0.1)
    return None
