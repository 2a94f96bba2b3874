"""docs/api.md has every route as the OpenAPI document has it, and its lines of shell do what they say, literally, at a real gateway."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import api_docs
from pipelines.checkpoint_folder import describe
from tests.live_gateway import Live, running
from tests.quick_worker import drawing
from workers.settings import DEFAULT_MODEL

PAGE = api_docs.PAGE.read_text()
TOLD = api_docs.document()
ROUTES = {f"{method} {path}": api_docs.curl(method, path, operation, TOLD) for method, path, operation in api_docs.operations(TOLD)}
NOT_OK = {  # of a job that ended well, without webhooks
    "POST /jobs/{id}/retry": 409,
    "POST /webhooks/deliveries/{id}/redeliver": 404,
}


def test_the_page_has_the_routes_of_the_document() -> None:
    assert api_docs.written() == PAGE, f"run `{api_docs.COMMAND}`"
    assert {f"`{route}`" for route in ROUTES} == set(re.findall(r"^### (`[A-Z]+ /.*`)$", PAGE, re.MULTILINE))


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("data")
    card = describe(DEFAULT_MODEL).card
    with running(valkey, folder, card) as live, drawing(valkey, folder, card.id):
        yield live


@pytest.fixture(scope="module")
def shell(gateway: Live, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment that the page's own preparation leaves."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / ".curlrc").write_text('write-out = "%{stderr}%{http_code}"\nnoproxy = "*"\n')
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.partition("## Every route")[2], re.DOTALL)
    preparation = blocks[0].replace("CELADON=http://localhost:7860", f"CELADON={gateway.url}")
    assert preparation != blocks[0]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PWD": str(folder)}
    names = ("CELADON", "JOB", "MODEL", "IMAGE", "BATCH", "DELIVERY", "UPLOAD")
    script = f"set -eu\n{preparation}\nfor name in {' '.join(names)}; do printf '%s\\n' \"${{!name}}\"; done"
    run = subprocess.run(["bash", "-c", script], env=environment, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    return environment | dict(zip(names, run.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("route", sorted(ROUTES, key=lambda route: route.startswith("DELETE")))  # what erases comes last
def test_the_line_of_each_route_works_as_it_stands(route: str, shell: dict[str, str]) -> None:
    line = ROUTES[route]
    assert f"### `{route}`\n" in PAGE and line in PAGE.partition(f"### `{route}`\n")[2].partition("\n### ")[0]
    run = subprocess.run(["bash", "-c", line], env=shell, cwd=shell["HOME"], capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr
    status = int(run.stderr.decode()[-3:])
    method, _, path = route.partition(" ")
    answer = TOLD["paths"][path][method.lower()]["responses"][str(status)]  # a KeyError: a status that is not documented
    assert status == NOT_OK.get(route, status) and (status < 300) == (route not in NOT_OK), run.stdout
    check_body(line, answer, run.stdout, Path(shell["HOME"]))


def check_body(line: str, answer: dict[str, Any], body: bytes, folder: Path) -> None:
    if named := re.search(r" -o (\S+)$", line):
        assert (folder / named[1]).read_bytes()[:4] in (b"PK\x03\x04", b"\x89PNG", b"<svg")
    elif "application/json" in answer.get("content", {}):
        json.loads(body)


def test_a_status_that_is_wrong_would_be_seen(shell: dict[str, str]) -> None:
    run = subprocess.run(["bash", "-c", 'curl -s "$CELADON/nowhere"'], env=shell, capture_output=True, text=True, check=True, timeout=60)
    assert run.stderr.endswith("404")
