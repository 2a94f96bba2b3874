"""The pencil style: the 3D render of a thing, redrawn in graphite. A filter, so every thing has such a drawing."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

PAPER, GRAPHITE = 250.0, 45.0  # grey values
EDGE_BLUR = 4.5  # pixels at 256: how wide a change of tone still counts as a line
SHADE = 0.30  # of the tone that is kept as soft shading


def pencil_drawing(image: Image.Image) -> Image.Image:
    """RGBA render -> RGBA drawing of the same size: dark contours, light shading, paper inside the silhouette."""
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float64)  # [h, w, 4]
    alpha = pixels[..., 3] / 255
    scale = max(image.size) / 256
    tone = (pixels[..., :3] @ np.array([0.299, 0.587, 0.114]) / 255) * alpha + (1 - alpha)  # on white
    lines = _contours(tone, EDGE_BLUR * scale) + _contours(1 - alpha, 3.5 * scale)
    shading = SHADE * (1 - tone) ** 1.5
    ink = np.clip(lines + shading, 0, 1)
    grey = PAPER + (GRAPHITE - PAPER) * ink
    drawn = np.stack([grey, grey, grey, pixels[..., 3]], axis=-1)
    return Image.fromarray(drawn.round().astype(np.uint8), "RGBA")


def _contours(tone: np.ndarray, sigma: float) -> np.ndarray:
    """How much darker than its surroundings, and how steep: 0..1 ink along edges."""
    steep = ndimage.gaussian_gradient_magnitude(tone, sigma / 2) * sigma
    darker = np.clip(ndimage.gaussian_filter(tone, sigma) - tone, 0, 1)
    return np.clip(2.2 * steep + 1.5 * darker - 0.06, 0, 1)
