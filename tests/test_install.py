"""The set-up on machines that lack something: one line says what, and the line mends it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bootstrap

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `make install` looks at, in a folder without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "bootstrap.py"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=30)


def test_without_a_python_make_says_how_to_get_one(clone: Path) -> None:
    run = make(clone, "install", "PYTHON=")
    assert run.returncode != 0
    assert "Python 3.11 or newer is missing" in run.stderr
    assert "sudo apt install python3.11 python3.11-venv" in run.stderr
    assert not (clone / ".venv").exists()


def test_a_failed_installation_is_tried_again(clone: Path) -> None:
    """Whatever happens half-way, `make install` does not take it for done."""
    run = make(clone, "install", "PYTHON=false", "EXTRA=cpu")
    assert run.returncode != 0
    assert "bootstrap.py" not in run.stdout  # it says what went wrong, not what it ran
    assert not (clone / ".venv" / ".installed-cpu").exists()


def test_debian_without_venv_is_told_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(SystemExit, match=rf"sudo apt install python3\.{sys.version_info[1]}-venv"):
        bootstrap.check_python()


def test_an_old_python_is_told_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"Python 3\.9 is too old"):
        bootstrap.check_python()


def test_a_broken_environment_is_seen(tmp_path: Path) -> None:
    assert bootstrap.works(sys.executable)
    assert not bootstrap.works(str(tmp_path / "python"))
    (tmp_path / "python").write_text("no program")
    (tmp_path / "python").chmod(0o755)
    assert not bootstrap.works(str(tmp_path / "python"))


def test_the_installation_is_not_repeated(clone: Path) -> None:
    stamp = clone / ".venv" / ".installed-cpu"
    stamp.parent.mkdir()
    stamp.touch()
    run = make(clone, "install", "PYTHON=false", "EXTRA=cpu")
    assert run.returncode == 0, run.stderr
    assert "Celadon is installed" in run.stdout


def test_quotes_in_a_prompt_are_no_shell_code(clone: Path) -> None:
    """`make run` hands the prompt on as it is."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / ".installed-cpu").touch()
    program = clone / ".venv" / "bin" / "celadon"
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    program.chmod(0o755)
    prompt = "a \"red\" 'apple'; echo $HOME `id` \\ #"
    environment = {"PROMPT": prompt, "PATH": "/usr/bin:/bin"}
    run = subprocess.run(["make", "run", "EXTRA=cpu"], cwd=clone, env=environment, capture_output=True, text=True)
    assert run.stdout == f"up|--first-prompt|{prompt}|", run.stderr
