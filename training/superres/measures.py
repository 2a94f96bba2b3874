"""How near a picture is to the true one, as super-resolution is judged here: fixed once, for every table.

PSNR is of each picture over all pixels and channels of RGB (`training.measures.psnr`), SSIM of each channel, both averaged over pictures;
nothing is cropped, no luma is taken, pictures are rounded to 8 bits first.
"""

from __future__ import annotations

import numpy as np
import torch

from training.lpips import Lpips

WINDOW, DEVIATION = 11, 1.5
C1, C2 = 0.01**2, 0.03**2  # of pictures in 0..1


def gaussian(side: int) -> np.ndarray:
    """[side - 10, side]: the means of a line under the window, where it lies inside."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / DEVIATION) ** 2)
    matrix = np.zeros((side - WINDOW + 1, side))
    for row in range(len(matrix)):
        matrix[row, row : row + WINDOW] = weights / weights.sum()
    return matrix.astype(np.float32)


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004, equation 13) of each pair of pictures [n, h, w, 3] uint8: the mean over the
    places of an 11 x 11 Gaussian window of deviation 1.5 and over channels.
    """
    x, y = (p.transpose(0, 3, 1, 2).astype(np.float32) / 255 for p in (a, b))
    high, wide = gaussian(x.shape[2]).T, gaussian(x.shape[3]).T

    def mean(values: np.ndarray) -> np.ndarray:  # two large products are much faster than many small ones
        across = np.ascontiguousarray((values.reshape(-1, len(wide)) @ wide).reshape(*values.shape[:3], -1).swapaxes(2, 3))
        return (across.reshape(-1, len(high)) @ high).reshape(*across.shape[:3], -1)

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    index = (2 * mx * my + C1) * (2 * both + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return index.mean((1, 2, 3), dtype=np.float64)


def lpips(measure: Lpips, a: np.ndarray, b: np.ndarray, block: int = 100) -> np.ndarray:
    """LPIPS of each pair of pictures [n, h, w, 3] uint8. The network needs 35 pixels: smaller pictures are doubled, pixel by pixel."""
    found = [measure(_seen(a[i : i + block]), _seen(b[i : i + block])) for i in range(0, len(a), block)]
    return torch.cat(found).numpy()


def _seen(pixels: np.ndarray) -> torch.Tensor:
    if pixels.shape[1] < 64:
        pixels = pixels.repeat(2, 1).repeat(2, 2)
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
