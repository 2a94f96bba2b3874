"""Small GPUs: the modules of a model take turns on the device, and lie in the host's memory meanwhile (accelerate's hooks)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module


class Turns:
    """Whichever module is called comes in, and sends out the one that was there. They begin outside, on the host."""

    def __init__(self, modules: Mapping[str, torch.nn.Module], device: torch.device) -> None:
        self._modules, self._device = dict(modules), device
        self.inside = ""
        for name, module in modules.items():
            add_hook_to_module(module, _Turn(self, name))

    def take(self, name: str) -> None:
        if self.inside == name:
            return
        if self.inside:
            self._modules[self.inside].to("cpu")
        self._modules[name].to(self._device)
        self.inside = name


class _Turn(ModelHook):  # type: ignore[misc]  # accelerate has no types
    def __init__(self, turns: Turns, name: str) -> None:
        self._turns, self._name = turns, name

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """diffusers calls it before the VAE's encode and decode, too."""
        self._turns.take(self._name)
        return args, kwargs
