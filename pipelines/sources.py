"""What a checkpoint is named by -> a folder in diffusers layout: the folder itself, a hub id, or a single file that is converted once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from pipelines.checkpoint_error import CheckpointError
from pipelines.original_layout import release_of
from pipelines.weight_files import PICKLES, WHY_NOT_PICKLES, read_header

HUB_FILES = ["*.json", "*/*.json", "*/*.txt", "*/*.safetensors", "celadon.json"]
CONVERSION = 1  # raised when single files are converted in another way


def local(source: str | Path, cache: Path | None = None) -> tuple[Path, str]:
    """The checkpoint's folder, and the name it goes by. Single files are converted into `cache`. Raises CheckpointError."""
    path = Path(source)
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(f"{path.name}: {WHY_NOT_PICKLES}", "pickle")
    if path.suffix == ".safetensors":
        return _converted(path, cache), slug(path.stem)
    if path.is_dir():
        if not (path / "model_index.json").exists():
            raise CheckpointError(f"{path.name} holds no model_index.json: it is not a checkpoint in diffusers layout", "not_diffusers")
        return path, slug(path.resolve().name)
    if str(source).count("/") != 1 or str(source).startswith((".", "/")):
        wanted = "name an existing folder in diffusers layout, a .safetensors file, or a hub id such as owner/name"
        raise CheckpointError(f"no folder {path.name}: {wanted}", "not_found")
    return _from_hub(str(source)), slug(path.name)


def slug(name: str) -> str:
    """A name as ids of models are: the queue keeps colons and the like for itself."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _from_hub(name: str) -> Path:
    """Fetched once into the hub's own cache, and found there without a network."""
    from huggingface_hub import snapshot_download  # here, since most models are folders

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:  # errors of HTTP are OSErrors, those of names ValueErrors
        why = "it is not in the hub's cache, and the hub cannot be asked, has no such model, or keeps it from us"
        raise CheckpointError(f"{name}: {why} ({type(error).__name__})", "not_cached") from error


def _converted(path: Path, cache: Path | None) -> Path:
    """What was converted of this very file before, or the work of a process that may load torch."""
    if not path.is_file():
        raise CheckpointError(f"no file {path.name}", "not_found")
    release_of(path.name, {name: tensor.shape for name, tensor in read_header(path).items()})
    if cache is None:
        raise CheckpointError(f"{path.name} is a single file: workers convert it", "not_diffusers")
    out = cache / "converted" / _mark(path) / slug(path.stem)
    if out.is_dir():
        return out
    if not importlib.util.find_spec("torch"):
        raise CheckpointError(f"{path.name} is a single file, and converting it needs torch: pip install celadon[gpu]", "needs_torch")
    done = subprocess.run([sys.executable, "-m", "pipelines.single_file", str(path), str(out)], capture_output=True, text=True)
    if done.returncode and not out.is_dir():  # another worker may have been sooner
        raise _refusal(path, done.stderr)
    return out


def _mark(path: Path) -> str:
    """Sixteen digits that change with the file, and with the configs beside it."""
    beside = sorted(p for p in path.with_suffix("").rglob("*") if p.is_file())
    seen = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in (path, *beside)]
    return hashlib.sha256(json.dumps([CONVERSION, seen]).encode()).hexdigest()[:16]


def _refusal(path: Path, told: str) -> CheckpointError:
    """What the process said on its last line, or that it broke."""
    try:
        said = json.loads(told.strip().splitlines()[-1])
        return CheckpointError(said["message"], said["code"])
    except (ValueError, KeyError, TypeError, IndexError):
        return CheckpointError(f"{path.name} could not be converted: its tensors are not those of the original layout", "weights_misfit")
