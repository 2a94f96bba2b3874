"""Where a stage runs: the device, its precision, and what pays there."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from training.norm import use_fast_group_norm


@dataclass(frozen=True)
class Machine:
    """Layers run in bfloat16 where the processor multiplies it; weights, optimiser and averages stay in single precision."""

    device: str = "cpu"
    compiled: bool = False

    def autocast(self) -> torch.autocast:
        return autocast(self.device)

    def on(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device, non_blocking=True)

    def place(self, module: nn.Module, *, own_norm: bool = False) -> nn.Module:
        """The module on the device, channels last. On a CPU with attention (and, if asked, a norm) whose backward pass is cheap there."""
        if self.device == "cpu":
            if hasattr(module, "set_attn_processor"):
                module.set_attn_processor(AttnProcessor())
            if own_norm:
                use_fast_group_norm(module)
        return module.to(self.device).to(memory_format=torch.channels_last)

    def compile(self, module: nn.Module) -> nn.Module:
        """Faster on a GPU after a minute; the weights stay those of `module`."""
        return torch.compile(module) if self.compiled else module


CPU = Machine()


def autocast(device: str) -> torch.autocast:
    """bfloat16 layers on a GPU and on a CPU that multiplies it: one that has to emulate it takes eight times as long as in float32."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or multiplies_bfloat16())


def multiplies_bfloat16() -> bool:
    native = torch.cpu.get_capabilities()
    return bool(native.get("avx512_bf16") or native.get("amx_bf16"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--root, --total, --minutes, --device and --compile, which every training stage takes."""
    add_machine(parser)
    parser.add_argument("--total", type=int, help="pictures (or captions) to see in all; the schedules are fractions of it")
    parser.add_argument("--minutes", type=float, default=1e9, help="end cleanly after this time; the same command goes on")


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="torch.compile: pays on a GPU")


def machine_of(args: argparse.Namespace) -> Machine:
    """Raises SystemExit for a GPU that is not there."""
    if args.device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise SystemExit(f"--device {args.device}: this PyTorch sees no GPU; leave --device out to train on the CPU")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = False  # a resumed run must pick the kernels that the unbroken one did
    return Machine(args.device, args.compile)
