"""The torch backend: a diffusers U-Net, call by call; `pipelines.replay` records such calls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import array_api_compat.numpy
import array_api_compat.torch
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import outermost
from pipelines.conditioning import Told
from pipelines.controls import Shown
from pipelines.controls_torch import ControlNets
from pipelines.loras_torch import Wardrobe
from pipelines.perturbation import disturbed
from pipelines.prompts import Worn

Array = Any


class TorchDenoiser:
    """A diffusers U-Net. On a CPU the registers are numpy arrays (shared memory, no copy), on a GPU torch tensors."""

    def __init__(
        self, unet: torch.nn.Module, *, device: torch.device, dtype: torch.dtype,
        told: Told | None = None, wardrobe: Wardrobe | None = None, controlnets: ControlNets | None = None,
    ) -> None:  # fmt: skip
        self._unet, self._dtype, self._torch_device = unet, dtype, device
        self._told, self._wardrobe = told or Told(), wardrobe or Wardrobe(None, {"unet": unet})
        self._controlnets = controlnets or ControlNets(None, None, device, dtype)
        on_cpu = device.type == "cpu"
        self.xp: ModuleType = array_api_compat.numpy if on_cpu else array_api_compat.torch
        self.device: Any = "cpu" if on_cpu else device

    @property
    def channels(self) -> int:
        """Of the U-Net's answer."""
        return int(self._unet.config.out_channels)

    @torch.inference_mode()
    def __call__(
        self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None, *,
        worn: Worn = (), control: Shown | None = None,
    ) -> Array:  # fmt: skip
        call = self.given(x, timestep, context, told)
        with disturbed(self._unet, marks) if any(marks) else nullcontext(), self._wardrobe.wearing("unet", worn):
            return self.answer(self.evaluate(*call, control).float())

    def given(
        self, x: Array, timestep: Array, context: Array, told: Array | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """A call's arrays as the U-Net takes them."""
        x, context = self._own(x).to(self._dtype), self._own(context).to(self._dtype)
        return x, self._own(timestep), context, self._own(told) if self._told.width else None

    def evaluate(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, told: torch.Tensor | None, control: Shown | None = None
    ) -> torch.Tensor:
        """Raw outputs [R, C, h, w] in the U-Net's dtype."""
        further = {} if told is None else told_unet(self._told, told, self._dtype)
        if control is not None:
            further |= self._controlnets.residuals(control, x, timestep, context, further)
        out: torch.Tensor = self._unet(x, timestep, encoder_hidden_states=context, return_dict=False, **further)[0]
        return out

    def answer(self, out: torch.Tensor) -> Array:
        return out.numpy() if self.xp is array_api_compat.numpy else out

    def upload(self, array: NDArray[Any]) -> Array:
        """From the host to the device, without waiting for what the device is at: through pinned memory, which torch keeps until it was
        read.
        """
        if self._torch_device.type == "cpu":
            return self.xp.asarray(array, device=self.device)
        return torch.from_numpy(np.ascontiguousarray(array)).pin_memory().to(self._torch_device, non_blocking=True)

    def remember(
        self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None, *, worn: Worn = ()
    ) -> tuple[Array, Array]:
        with outermost.listening(self._unet) as heard:
            out = self(x, timestep, context, marks, told, worn=worn)
        return out, heard[0].float().numpy() if self.xp is array_api_compat.numpy else heard[0]

    def recall(self, x: Array, timestep: Array, context: Array, deep: Array, told: Array | None = None, *, worn: Worn = ()) -> Array:
        with outermost.over(self._unet, self._own(deep).to(self._dtype)):
            return self(x, timestep, context, (), told, worn=worn)

    def _own(self, array: Array) -> torch.Tensor:
        """On the device; on a CPU in torch's own memory, which is aligned: the last bits of a product depend on where its numbers lie."""
        tensor = torch.as_tensor(array, device=self._torch_device)
        return tensor.clone() if self._torch_device.type == "cpu" else tensor


def told_unet(parts: Told, told: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Vectors [R, V] as arguments of diffusers' U-Net. Sizes stay in single precision: bfloat16 would round them."""
    scale, pooled, sizes = told.split([parts.scale, parts.pooled, parts.sizes], dim=1)
    further: dict[str, Any] = {"timestep_cond": scale.to(dtype)} if parts.scale else {}
    if parts.sizes:
        further["added_cond_kwargs"] = {"text_embeds": pooled.to(dtype), "time_ids": sizes}
    return further
