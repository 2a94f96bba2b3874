"""What the documents say is what the code does: dependencies, settings, versions, commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from pydantic_settings import BaseSettings

import bootstrap
from service.settings import Settings
from workers.settings import DEFAULT_MODEL, WorkerSettings

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

OF_CUDA = ("nvidia-", "cuda-", "triton")  # pinned by torch itself, in those builds that have them


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [requirement for one in lists for requirement in map(Requirement, one) if requirement.name != PROJECT["name"]]


def pins() -> dict[str, Version]:
    """Package -> version of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines), "pins only: no paths, no options"
    return {canonical(line.partition("==")[0]): Version(line.partition("==")[2]) for line in lines}


def rows(page: str) -> dict[str, list[str]]:
    """First cell -> further cells of every table row of a page, each of which is there once."""
    found = {}
    for line, below in pairwise([*(ROOT / "docs" / page).read_text().splitlines(), ""]):
        if line.startswith("|") and not line.startswith("|---"):
            first, *rest = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
            assert first not in found or below.startswith("|---"), f"{page} tells of {first} twice"
            found[first] = rest
    return found


def test_every_dependency_has_its_reason() -> None:
    told = rows("dependencies.md")
    told.pop("package")
    assert set(told) == {requirement.name for requirement in requirements()}
    assert all(reason for (reason,) in told.values())


def test_constraints_hold_every_dependency_within_its_range() -> None:
    pinned = pins()
    assert canonical(PROJECT["name"]) not in pinned
    for requirement in requirements():
        version = pinned.get(canonical(requirement.name))
        assert version, f"{requirement.name} is missing in constraints.txt"
        assert requirement.specifier.contains(version), f"constraints.txt pins {version} against {requirement}"


def test_constraints_hold_the_whole_closure() -> None:
    """Follow what the installed packages ask for: a package that is pulled in without a pin may move under the tests."""
    pinned, todo, seen = pins(), [(r, extra) for r in requirements() for extra in ("", *r.extras)], set()
    while todo:
        requirement, extra = todo.pop()
        name = canonical(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        assert name in pinned, f"{name} is missing in constraints.txt"
        for text in metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.name.startswith(OF_CUDA):
                continue
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                todo += [(wanted, inner) for inner in ("", *wanted.extras)]
    if sys.version_info[:2] == (3, 11) and sys.platform == "linux":  # where the pins were made; others ask for less
        assert {name for name, _ in seen} | set(bootstrap.ORACLES) == set(pinned), "constraints.txt pins what nothing asks for"


def test_the_pins_are_what_is_installed() -> None:
    for name, version in pins().items():
        assert Version(metadata.version(name)).public == version.public, f"{name} is not installed as constraints.txt says"


def default(settings: type[BaseSettings], field: str) -> str:
    value = settings.model_fields[field].default
    if value == str(DEFAULT_MODEL):
        return str(DEFAULT_MODEL.relative_to(ROOT))
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_every_setting_is_documented_with_its_default() -> None:
    told = {name: cells[0] for name, cells in rows("configuration.md").items() if name != "variable"}
    gateway = {f"CELADON_{field.upper()}": default(Settings, field) for field in Settings.model_fields}
    worker = {f"CELADON_{field.upper()}": default(WorkerSettings, field) for field in WorkerSettings.model_fields if field != "redis_url"}
    shared = gateway.keys() & worker.keys()
    assert {name: gateway[name] for name in shared} == {name: worker[name] for name in shared}, "one variable, two defaults"
    assert told == gateway | worker | {"CELADON_URL": "", "CELADON_WORKERS": "1", "CELADON_API_KEY": ""}


def test_the_changelog_knows_this_version() -> None:
    assert re.search(rf"^#+ \[?{re.escape(PROJECT['version'])}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_make_help_names_every_command() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)
    assert phony
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    assert all(f"make {target} " in said for target in phony[1].split())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_between_documents_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link and not link.startswith("mailto:")]
    broken = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not broken


def test_every_fault_names_a_test_that_exists() -> None:
    """`file: test` in the last column of the fault table."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    faults = re.findall(r"^\|(?!---)(.*)\|$", page.split("## What breaks")[1].split("\n## ")[0], re.MULTILINE)[1:]
    assert len(faults) > 10
    for fault in faults:
        named = re.findall(r"`(\w+): (\w+)`", fault.rpartition("|")[2])
        assert named, f"no test shows it: {fault}"
        for file, test in named:
            assert re.search(rf"^(async )?def {test}\(", (ROOT / "tests" / f"{file}.py").read_text(), re.MULTILINE), f"{file} has no {test}"


def test_what_a_deep_queue_costs_is_told_as_it_was_measured() -> None:
    rows = (ROOT / "benchmarks" / "QUEUE.md").read_text().split("## Cost of a call by depth", 1)[1]
    measured = re.search(r"^\| claim \| (\d+), .* \| (\d+), \d+ \| ([\d.]+) \|$", rows, re.MULTILINE)
    assert measured
    few, many, ratio = measured.groups()
    times = f"{float(ratio):.1f} times"
    assert f"A claim costs {times}" in (page := (ROOT / "docs" / "reliability.md").read_text()) and f"({few} and {many} µs" in page
    assert f"a claim takes {times} what it takes with a thousand" in (ROOT / "docs" / "queue.md").read_text()


def test_celadon_commands_in_the_documents_exist() -> None:
    said = subprocess.run([sys.executable, "-m", "celadon", "--help"], capture_output=True, text=True, check=True, timeout=30).stdout
    for page in ("README.md", "CONTRIBUTING.md"):
        for command in re.findall(r"(?:^|\s|`)(?<!from )(?:\.venv/bin/)?celadon ([a-z]+)\b", _code(page)):
            assert re.search(rf"│ {command}\b", said), f"{page} names `celadon {command}`"


def test_make_commands_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"\bmake ([a-z-]+)", _code(page))) <= targets


def _code(page: str) -> str:
    """The blocks and spans of code in a page."""
    text = (ROOT / page).read_text()
    return "\n".join(re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text))
