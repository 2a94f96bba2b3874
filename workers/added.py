"""Models with names of their own: `models.json` in the data folder, {name: source}."""

from __future__ import annotations

import json
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
