"""Models with names of their own: `models.json` in the data folder, {name: source}."""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE = "models.json"


def read_added(data_dir: Path) -> dict[str, str]:
    """Name -> source. Raises ValueError where the file is not what was written."""
    path = data_dir / FILE
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{FILE} holds no names and sources")
    return found


def write_added(data_dir: Path, names: dict[str, str]) -> None:
    """In one piece: workers that start meanwhile read the old names or the new ones."""
    data_dir.mkdir(parents=True, exist_ok=True)
    part = data_dir / f"{FILE}.{os.getpid()}"
    part.write_text(json.dumps(names, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, data_dir / FILE)
