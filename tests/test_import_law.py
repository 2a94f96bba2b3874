"""The laws of the house: who may import whom, what the gateway never loads, how long functions and files may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("service", "jobs", "pipelines", "workers", "celadon", "training", "benchmarks", "tests")
BORDER = frozenset(  # standard library only; everybody may know them
    {
        "pipelines.params", "pipelines.prompts", "pipelines.card", "pipelines.infotext",
        "pipelines.names", "pipelines.name_tables", "pipelines.name_diffusers",
    }
)  # fmt: skip

# Whose modules may be imported, besides one's own and the border. Benchmarks and tests may import everything.
ALLOWED = {
    "pipelines": frozenset(),
    "jobs": frozenset(),
    "service": frozenset({"jobs"}),
    "workers": frozenset({"jobs", "pipelines"}),
    "training": frozenset({"pipelines"}),
    "celadon": frozenset(),
}
# What `celadon` may import inside a function only, so that each command loads what it needs and no more.
INSIDE_COMMANDS = frozenset({"service", "jobs", "pipelines", "workers"})

# Other people's packages that a part of the house must not see, at any depth.
FORBIDDEN = {
    "service": {"torch", "numpy", "diffusers", "transformers", "PIL", "scipy"},
    "jobs": {"torch", "numpy", "diffusers", "transformers", "PIL", "scipy", "fastapi", "starlette", "uvicorn", "httpx2"},
    "pipelines": {"redis", "fastapi", "starlette", "uvicorn", "httpx2"},
    "workers": {"fastapi", "starlette", "uvicorn"},
}

LONGEST_FUNCTION = 60
LONGEST_FILE = 400
LICENSED = {"training": 200}  # a training loop is read from top to bottom


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of ours: dotted name and file."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Each imported dotted name, whether it is imported when the module is, and its line.

    `from jobs import job` gives both `jobs` and `jobs.job`, since either may be meant. Imports for type checkers alone
    count as made inside a function: they load nothing.
    """
    tree = ast.parse(path.read_text())
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) not in lazy, node.lineno


MODULES = dict(modules())


def is_border(name: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in BORDER)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_flow_one_way(package: str) -> None:
    broken = []
    for module, path in MODULES.items():
        if module.partition(".")[0] != package:
            continue
        for name, at_import, line in imports(path):
            target = name.partition(".")[0]
            if target not in PACKAGES or target == package or target in ALLOWED[package] or is_border(name):
                continue
            if package == "celadon" and target in INSIDE_COMMANDS and not at_import:
                continue
            broken.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not broken, "\n".join(broken)


def test_what_the_engine_asks_does_not_know_it() -> None:
    """Denoisers, tables and loading lie below the engine; `process` is a caller of it, as a worker is."""
    knows = {name for name, path in MODULES.items() for to, _, _ in imports(path) if f"{to}.".startswith("pipelines.engine.")}
    assert {name for name in knows if name.startswith("pipelines.") and not name.startswith("pipelines.engine.")} == {"pipelines.process"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_foreign_packages_stay_outside(package: str) -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in MODULES.items()
        if module.partition(".")[0] == package
        for name, _, line in imports(path)
        if name.partition(".")[0] in FORBIDDEN[package]
    ]
    assert not broken, "\n".join(broken)


def test_the_border_is_standard_library_only() -> None:
    for module in BORDER:
        for name, _, line in imports(MODULES[module]):
            top = name.partition(".")[0]
            assert top in sys.stdlib_module_names or is_border(name), f"{module}:{line} imports {name}"


def test_dialects_know_neither_each_other_nor_redis() -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in MODULES.items()
        if module.startswith("service.api.")
        for name, _, line in imports(path)
        if name.startswith("service.api.") or name.partition(".")[0] == "redis"
    ]
    assert not broken, "\n".join(broken)


def test_every_init_is_empty_but_that_of_the_client() -> None:
    full = [str(path.relative_to(ROOT)) for path in MODULES.values() if path.name == "__init__.py" and path.read_text().strip()]
    assert full == ["celadon/__init__.py"]  # users import from it: docs/architecture.md


def test_importing_the_client_s_package_loads_nothing_until_a_client_is_asked_for() -> None:
    script = """
import sys, typing
before = set(sys.modules)
import celadon
assert set(sys.modules) - before <= {"celadon", "__future__"}, set(sys.modules) - before
from celadon import AsyncClient, Client
assert Client is sys.modules["celadon.client"].Client and AsyncClient is sys.modules["celadon.async_client"].AsyncClient
from celadon import jobs
assert jobs.__name__ == "celadon.jobs"
assert not hasattr(celadon, "Clients") and sorted(celadon.__all__) == ["AsyncClient", "Client"]
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stderr


def test_the_gateway_loads_no_model_code() -> None:
    script = "import service.app, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=50)
    loaded = set(run.stdout.split())
    assert {"service", "jobs", "fastapi"} <= loaded
    assert not loaded & {"torch", "numpy", "diffusers", "transformers", "PIL", "scipy", "workers", "celadon", "training"}


def test_the_command_line_is_light() -> None:
    script = "import celadon.__main__, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=50)
    assert not set(run.stdout.split()) & {"torch", "numpy", "fastapi", "pydantic", "redis", "service", "jobs", "workers"}


def test_functions_and_files_stay_short() -> None:
    broken = []
    for module, path in MODULES.items():
        text = path.read_text()
        lines = len(text.splitlines())
        if lines > LONGEST_FILE:
            broken.append(f"{path.relative_to(ROOT)} has {lines} lines; {LONGEST_FILE} is the limit")
        limit = LICENSED.get(module.partition(".")[0], LONGEST_FUNCTION)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > limit:
                    broken.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines; {limit} is the limit")
    assert not broken, "\n".join(broken)


def test_no_value_is_replaced_before_anybody_reads_it() -> None:
    """Constants of a module have one value, and no statement undoes the one before it: what merging two changes may leave behind."""
    broken = []
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        constants = [ast.unparse(t) for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
        broken += [f"{module}: {name} has two values" for name, count in Counter(constants).items() if count > 1]
        for body in (getattr(node, "body", None) for node in ast.walk(tree)):
            for first, second in pairwise(body if isinstance(body, list) else []):
                if isinstance(first, ast.Assign) and isinstance(second, ast.Assign):
                    name = ast.unparse(first.targets[0])
                    parts, read = ({ast.unparse(node) for node in ast.walk(tree)} for tree in (first.targets[0], second.value))
                    if name == ast.unparse(second.targets[0]) and not parts & read - {"self"}:
                        broken.append(f"{path.relative_to(ROOT)}:{second.lineno} {name} is replaced at once")
    assert not broken, "\n".join(broken)


def test_scheduler_is_only_the_word_for_that_class_of_diffusers() -> None:
    """Ours are sampler, schedule and batcher: the word means a sampler to some libraries and a schedule to others."""
    broken = []
    for module, path in MODULES.items():
        if module.partition(".")[0] in ("tests", "benchmarks", "training"):
            continue  # they talk to diffusers
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "name", None) or getattr(node, "id", None) or getattr(node, "arg", None)
            if isinstance(name, str) and "scheduler" in name.lower() and not name.endswith("Scheduler"):
                broken.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {name}")
    assert not broken, "\n".join(broken)
