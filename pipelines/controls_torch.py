"""ControlNets in torch: diffusers' own modules, read when they are asked for first; those used last stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ControlNetModel

from pipelines.card import ControlNetInfo
from pipelines.checkpoint_folder import Described
from pipelines.control_files import ControlNetError, checked, entries
from pipelines.controls import Shown
from pipelines.loras import Kept
from pipelines.weight_files import read_header, weight_files

KEPT = 2


class ControlNets:
    """Those of a folder that fit a model."""

    def __init__(self, folder: Path | None, said: Described | None, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._paths = dict(entries(folder))
        self._nets: Kept[str, Any] = Kept(self._read, KEPT)
        self.infos = tuple(_info(name, path, said) for name, path in self._paths.items()) if said else ()

    def residuals(self, shown: Shown, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, told: Mapping[str, Any]) -> Any:
        """What the U-Net's layers are to add, as arguments of diffusers' U-Net, for x [R, C, h, w] (and what an inpainting model sees
        beside it), timestep [R] and context [R, L, E]; `told` is what the U-Net is told beside them. Raises ControlNetError.
        """
        net = self._nets.get(shown.name)
        pictures, scales = (torch.as_tensor(array, device=self._device).to(x.dtype) for array in (shown.pictures, shown.scales))
        down, middle = net(
            x[:, : net.config.in_channels], timestep, encoder_hidden_states=context, controlnet_cond=pictures,
            conditioning_scale=scales[:, None, None, None], added_cond_kwargs=told.get("added_cond_kwargs"), return_dict=False,
        )  # fmt: skip
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def _read(self, name: str) -> Any:
        if name not in self._paths:
            raise ControlNetError(f"this worker has no ControlNet {name}")
        net = ControlNetModel.from_pretrained(self._paths[name], use_safetensors=True, low_cpu_mem_usage=True, torch_dtype=self._dtype)
        return net.to(self._device).eval().requires_grad_(False)


def _info(name: str, path: Path, said: Described) -> ControlNetInfo:
    try:
        config, digest = checked(path, said)
        with init_empty_weights():
            wanted = {key: tuple(tensor.shape) for key, tensor in ControlNetModel.from_config(config).state_dict().items()}
        if {key: tensor.shape for file in weight_files(path) for key, tensor in read_header(file).items()} != wanted:
            raise ControlNetError("its weights are not those that its config describes")
    except ControlNetError as error:
        return ControlNetInfo(name, refused=str(error))
    return ControlNetInfo(name, digest)
