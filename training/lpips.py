"""LPIPS, the distance of two pictures as people see it (Zhang et al. 2018, arXiv 1801.03924, equation 1), version 0.1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from training.packages import lpips_arrays

# One row a convolution: pooling before it (side, stride; 0 = none), stride, padding, and whether its output is compared.
ALEXNET = ((0, 0, 4, 2, True), (3, 2, 1, 2, True), (3, 2, 1, 1, True), (0, 0, 1, 1, True), (0, 0, 1, 1, True))
VGG16 = tuple(
    (2 if i in (2, 4, 7, 10) else 0, 2, 1, 1, i in (1, 3, 6, 9, 12))  # the last of each block is compared, and then pooled
    for i in range(13)
)
LAYERS = {"alexnet": ALEXNET, "vgg16": VGG16}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet, for pictures in -1..1


class Lpips:
    """Call with two batches of pictures [n, 3, h, w] in -1..1 (h, w >= 35): their distances [n], 0 = equal."""

    def __init__(self, arrays: dict[str, dict], net: str = "alexnet", device: str = "cpu") -> None:
        (body,) = (part for name, part in arrays.items() if name.lower().startswith(net))
        self.layers = LAYERS[net]
        self.device = device
        self.kernels = [self._tensor(body[f"Conv_{i}"]["kernel"]).permute(3, 2, 0, 1).contiguous() for i in range(len(self.layers))]
        self.biases = [self._tensor(body[f"Conv_{i}"]["bias"]) for i in range(len(self.layers))]
        compared = sum(layer[-1] for layer in self.layers)
        self.heads = [self._tensor(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).reshape(1, -1, 1, 1) for i in range(compared)]

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.asarray(values), device=self.device)

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The compared activations, each of length 1 along the channels."""
        shift, scale = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        x = (x - shift) / scale
        found = []
        for (side, step, stride, padding, compared), kernel, bias in zip(self.layers, self.kernels, self.biases, strict=True):
            x = F.max_pool2d(x, side, step) if side else x
            x = F.relu(F.conv2d(x, kernel, bias, stride, padding))
            if compared:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.features(a.to(self.device)), self.features(b.to(self.device)), self.heads, strict=True)
        return sum((head * (x - y).square()).sum(1).mean((1, 2)) for x, y, head in pairs).cpu()


def load_lpips(root: Path, net: str = "alexnet", device: str = "cpu") -> Lpips:
    """With the published weights, fetched if need be."""
    return Lpips(lpips_arrays(root, net), net, device)
