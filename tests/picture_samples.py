"""Pictures as files and data URLs, for tests of the doors."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def sample_picture(width: int = 64, height: int = 64, seed: int = 0) -> np.ndarray:
    """[H, W, 3], smooth."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(x * 3 + seed) % 256, y * 2 % 256, np.full_like(x, 40 * (seed % 6))], axis=-1).astype(np.uint8)


def sample_mask(width: int = 64, height: int = 64) -> np.ndarray:
    """[H, W]: the right half is drawn."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    return mask


def as_file(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def as_url(array: np.ndarray, kind: str = "PNG", *, more: bytes = b"", **options: Any) -> str:
    """`more` stands behind the picture."""
    return f"data:image/{kind.lower()};base64," + base64.b64encode(as_file(array, kind, **options) + more).decode()
