"""`celadon models`: what is checked, named, listed and forgotten, as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.toy import write_toy
from workers.settings import DEFAULT_MODEL

TOY_SIZE = "128x128"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("models") / "toy")


def models(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    variables = {"CELADON_DATA_DIR": str(folder), "COLUMNS": "200"} | settings
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CELADON_")} | variables
    command = [sys.executable, "-m", "celadon", "models", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=55)


def test_a_checkpoint_is_looked_at(tmp_path: Path, toy: Path) -> None:
    shown = models(tmp_path, "check", str(toy))
    assert shown.returncode == 0 and "OpenVINO, torch" in shown.stdout and "text_to_image" in shown.stdout, shown.stderr
    told = json.loads(models(tmp_path, "check", str(DEFAULT_MODEL), "--json").stdout)
    assert (told["name"], told["size"], told["runs on"]) == ("celadon-mini", TOY_SIZE, ["OpenVINO", "torch"])


def test_what_is_refused_says_why(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(b"any code")
    refused = models(tmp_path, "check", str(tmp_path / "old.ckpt"))
    assert refused.returncode == 1 and "refused (pickle)" in refused.stderr and "run any code" in refused.stderr
    told = json.loads(models(tmp_path, "check", str(tmp_path / "old.ckpt"), "--json").stdout)
    assert told["refused"] == "pickle"
    assert models(tmp_path, "add", str(tmp_path / "nothing")).returncode == 1
    assert not (tmp_path / "models.json").exists()


def test_names_are_added_listed_and_forgotten(tmp_path: Path, toy: Path) -> None:
    added = models(tmp_path, "add", str(toy), "--name", "small")
    assert (added.returncode, added.stdout.strip()) == (0, "small"), added.stderr
    assert json.loads((tmp_path / "models.json").read_text()) == {"small": str(toy)}
    assert models(tmp_path, "add", str(toy), "--name", "small").returncode == 0
    other = models(tmp_path, "add", str(DEFAULT_MODEL), "--name", "small")
    assert other.returncode == 2 and "another checkpoint" in other.stderr
    assert models(tmp_path, "add", str(toy), "--name", "a b").returncode == 2
    names = [line.split()[0] for line in models(tmp_path, "list").stdout.splitlines()[1:]]
    assert names == ["celadon-mini", "small"]
    assert models(tmp_path, "remove", "small").returncode == 0
    assert models(tmp_path, "remove", "small").returncode == 2
    wrong = models(tmp_path, "list", CELADON_SLOTS="none")
    assert wrong.returncode == 2 and wrong.stderr.startswith("✗ CELADON_SLOTS")
    assert json.loads((tmp_path / "models.json").read_text()) == {}
