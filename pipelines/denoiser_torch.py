"""The torch backend: a diffusers U-Net, eager."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import array_api_compat.numpy
import array_api_compat.torch
import torch

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

    @torch.inference_mode()
    def __call__(
        self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None, *,
        worn: Worn = (), control: Shown | None = None,
    ) -> Array:  # fmt: skip
        x, timestep, context = (self._own(a) for a in (x, timestep, context))
        x, context = x.to(self._dtype), context.to(self._dtype)
        with disturbed(self._unet, marks) if any(marks) else nullcontext(), self._wardrobe.wearing("unet", worn):
            further = told_unet(self._told, self._own(told), self._dtype) if self._told.width else {}
            if control is not None:
                further |= self._controlnets.residuals(control, x, timestep, context, further)
            out = self._unet(x, timestep, encoder_hidden_states=context, return_dict=False, **further)[0]
        out = out.float()
        return out.numpy() if self.xp is array_api_compat.numpy else out

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
