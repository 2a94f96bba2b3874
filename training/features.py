"""Features of pictures: the pooled activations of EfficientNet-Lite0, trained on ImageNet by others.

Distances in them are not those of the Inception network, so a Frechet distance of these features is never called FID.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from training.packages import efficientnet_weights

# One row a stage: blocks, stride of the first block (Tan and Le 2019, table 1; "lite" has no squeeze, and ReLU6 for swish).
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
STRIDES = tuple(stride if i == 0 else 1 for count, stride in STAGES for i in range(count))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPSILON = 1e-3
Features = Callable[[np.ndarray], np.ndarray]


def same_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
    """A convolution with the padding "same" of TensorFlow: what is odd goes to the right and the bottom."""
    side = weight.shape[-1]
    if stride == 1:
        return F.conv2d(x, weight, bias, 1, side // 2, 1, groups)
    height, width = (max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[-2:])
    x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
    return F.conv2d(x, weight, bias, stride, 0, 1, groups)


def folded(weights: dict[str, torch.Tensor], conv: str, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel and bias of a convolution and the batch normalisation that follows it."""
    mean, var, gain, bias = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    factor = gain / (var + EPSILON).sqrt()
    return weights[f"{conv}.weight"] * factor.view(-1, 1, 1, 1), bias - mean * factor


class EfficientNet:
    """Call with pictures [n, h, w, 3] uint8: features [n, 1280] float32."""

    def __init__(self, weights: dict[str, torch.Tensor], device: str = "cpu", batch: int = 16) -> None:
        self.device, self.batch = device, batch
        self.layers: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[folded(weights, "_conv_stem", "_bn0")]]
        for index in range(len(STRIDES)):
            at = f"_blocks.{index}."
            pairs = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
            self.layers.append([folded(weights, at + c, at + n) for c, n in pairs if f"{at}{c}.weight" in weights])
        self.layers.append([folded(weights, "_conv_head", "_bn1")])
        self.layers = [[(w.to(device), b.to(device)) for w, b in layer] for layer in self.layers]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w], normalised -> [n, 1280]."""
        (stem,), *blocks, (head,) = self.layers
        x = F.relu6(same_conv(x, *stem, 2))
        for (*expand, deep, project), stride in zip(blocks, STRIDES, strict=True):
            start = x
            for layer in expand:
                x = F.relu6(same_conv(x, *layer))
            x = F.relu6(same_conv(x, *deep, stride, groups=x.shape[1]))
            x = same_conv(x, *project)
            x = x + start if stride == 1 and x.shape == start.shape else x
        return F.relu6(same_conv(x, *head)).mean((2, 3))

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (MEAN, STD))
        found = []
        for start in range(0, len(pictures), self.batch):
            x = torch.from_numpy(np.array(pictures[start : start + self.batch])).to(self.device).permute(0, 3, 1, 2).float() / 255
            found.append(self.forward(((x - mean) / std).contiguous(memory_format=torch.channels_last)).float().cpu().numpy())
        return np.concatenate(found)


def load_features(root: Path, device: str = "cpu") -> EfficientNet:
    """With the published weights, fetched if need be."""
    return EfficientNet(efficientnet_weights(root), device)
