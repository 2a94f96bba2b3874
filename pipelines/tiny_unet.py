"""TinyUNet in torch: the network of `pipelines.superres`. It works at the small picture's size and below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipelines.checkpoint_error import CheckpointError
from pipelines.superres import FREQUENCIES


@dataclass(frozen=True)
class Shape:
    state: int = 12  # channels of the noisy residual; 0 = a plain network of the small picture alone
    width: int = 40
    deep: int = 24  # channels at half the size; 0 = no such level
    blocks: tuple[int, int, int] = (2, 1, 2)  # before it, at it, after it


DEFAULT = Shape()


class Block(nn.Module):
    """Two convolutions around a skip. Begins as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(2 * FREQUENCIES, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x) + self.time(time)[:, :, None, None]))


def features(time: torch.Tensor) -> torch.Tensor:
    """[B] in 0..1 -> [B, 32]."""
    angles = torch.pi * time[:, None] * torch.logspace(-1, 5, FREQUENCIES, 2, device=time.device)
    return torch.cat([angles.sin(), angles.cos()], 1)


class TinyUNet(nn.Module):
    """(state [B, 12, h, w], low [B, 3, h, w] in 0..1, time [B]) -> [B, 12, h, w]; h and w even."""

    def __init__(self, shape: Shape = DEFAULT) -> None:
        super().__init__()
        self.shape = shape
        before, deep, after = shape.blocks
        self.enter = nn.Conv2d(shape.state + 3, shape.width, 3, padding=1)
        self.before = nn.ModuleList(Block(shape.width) for _ in range(before))
        if shape.deep:
            self.down = nn.Conv2d(shape.width, shape.deep, 2, stride=2)
            self.deep = nn.ModuleList(Block(shape.deep) for _ in range(deep))
            self.up = nn.ConvTranspose2d(shape.deep, shape.width, 2, stride=2)
        self.after = nn.ModuleList(Block(shape.width) for _ in range(after))
        self.leave = nn.Conv2d(shape.width, 12, 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, state: torch.Tensor, low: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        told, low = features(time), 2 * low - 1
        x = self.enter(torch.cat([state, low], 1) if self.shape.state else low)
        for block in self.before:
            x = block(x, told)
        if self.shape.deep:
            y = self.down(x)
            for block in self.deep:
                y = block(y, told)
            x = x + self.up(y)
        for block in self.after:
            x = block(x, told)
        return self.leave(x)


def load_network(
    folder: Path, config: Mapping[str, Any], device: torch.device
) -> Callable[[NDArray[np.float32], NDArray[np.float32], float], NDArray[np.float32]]:
    """The network of a folder, as `pipelines.superres` calls it with numpy arrays. Raises CheckpointError where the weights do not fit."""
    try:
        net = TinyUNet(Shape(**config["shape"])).to(device).eval()
        net.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    except (TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the weights of {folder.name} are not those that its config describes", "weights_misfit") from error

    def network(x: NDArray[np.float32], low: NDArray[np.float32], time: float) -> NDArray[np.float32]:
        with torch.inference_mode():
            state, small = (torch.from_numpy(np.ascontiguousarray(a, np.float32)).to(device) for a in (x, low))
            return net(state, small, torch.full((len(x),), time, device=device)).cpu().numpy()

    return network
