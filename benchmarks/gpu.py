"""Large U-Nets on a GPU: `make bench-gpu` writes benchmarks/GPU.md.

U-Nets of the sizes of Stable Diffusion 1.5 and SDXL with random weights, since speed does not depend on them; prompts are random states,
so that no text encoder is needed. In one run, with the same steps, size and guidance: diffusers eager and with its repeated blocks
compiled, and Celadon's engine over either. `--size tiny --device cpu` tries the command where there is no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

from benchmarks.stamp import commit, machine
from pipelines.conditioning import Told
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.events import Failed, Finished
from pipelines.engine.sample import Sample
from pipelines.ladder import Ladder
from pipelines.samplers import compile_table
from workers.model_torch import compile_blocks

RESULTS = Path(__file__).parent / "GPU.md"
DOWN, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
LADDER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "timestep_spacing": "leading",
}
SAMPLERS = ("euler", "ddim", "dpmpp_2m", "unipc")  # of a mixed batch
DENSE_TFLOPS = 790.0  # of an H200 in bfloat16


@dataclass(frozen=True)
class Size:
    """A model's configs, its latent [C, h, w], and what one row of its U-Net and one decoding take."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    latent: tuple[int, int, int]
    pooled: int = 0  # what SDXL is told beside the text
    row_gflop: float = 0.0
    vae_gflop: float = 0.0


VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
SIZES = {
    "sd15": Size(
        {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}, VAE, (4, 64, 64), row_gflop=803.3, vae_gflop=2514,
    ),
    "sdxl": Size(
        {
            "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", DOWN, DOWN),
            "up_block_types": (UP, UP, "UpBlock2D"), "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048,
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816, "sample_size": 128,
        },
        VAE, (4, 128, 128), pooled=1280, row_gflop=6761, vae_gflop=10_470,
    ),
    "tiny": Size(
        {
            "block_out_channels": (16, 32), "down_block_types": ("DownBlock2D", DOWN), "up_block_types": (UP, "UpBlock2D"),
            "attention_head_dim": 4, "cross_attention_dim": 24, "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 8,
        },
        VAE | {
            "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4, "layers_per_block": 1,
        },
        (4, 8, 8),
    ),
}  # fmt: skip


class Bench:
    """One size on one device."""

    def __init__(self, size: Size, device: str, steps: int) -> None:
        self.size, self.device, self.steps = size, torch.device(device), steps
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        with torch.device(self.device):
            torch.manual_seed(0)
            self.unet = UNet2DConditionModel(**size.unet).to(self.dtype).eval().requires_grad_(False)
            self.vae = AutoencoderKL(**size.vae).to(self.dtype).eval().requires_grad_(False)
            self.text = torch.randn(2, 77, size.unet["cross_attention_dim"])  # conditional and unconditional
        self.told = Told(pooled=size.pooled, sizes=6) if size.pooled else Told()
        if self.device.type == "cuda":
            for module in (self.unet, self.vae):
                module.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def diffusers(self, images: int) -> float:
        """Seconds for a batch of equal jobs, the plain loop of diffusers' pipelines."""
        scheduler = EulerDiscreteScheduler(**LADDER)
        scheduler.set_timesteps(self.steps, device=self.device)
        context = self.text.repeat_interleave(images, dim=0).to(self.dtype)  # [2 B, L, E]
        further: dict[str, Any] = {}
        if self.size.pooled:
            sizes = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]], device=self.device, dtype=self.dtype).repeat(2 * images, 1)
            pooled = torch.zeros(2 * images, self.size.pooled, device=self.device, dtype=self.dtype)
            further = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        began = self.now()
        x = torch.randn(images, *self.size.latent, device=self.device, dtype=self.dtype) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            seen = scheduler.scale_model_input(torch.cat([x, x]), timestep)
            uncond, cond = self.unet(seen, timestep, encoder_hidden_states=context, return_dict=False, **further)[0].chunk(2)
            x = scheduler.step(uncond + 5.0 * (cond - uncond), timestep, x, return_dict=False)[0]
        for latent in x:
            self.decode(latent)
        return self.now() - began

    def celadon(self, images: int, *, mixed: bool) -> float:
        """Seconds for jobs through one engine. Mixed ones differ in sampler, guidance, length and the moment at which they come."""
        denoiser = TorchDenoiser(self.unet, device=self.device, dtype=self.dtype, told=self.told)
        engine, done, asked = Engine(denoiser, slots=16, max_rows=32), 0, [self.sample(i, mixed=mixed) for i in range(images)]
        began = self.now()
        while asked or engine.busy:
            while asked and engine.free_slots:
                engine.add(asked.pop(0))
                if mixed:
                    break  # one a tick
            for event in engine.step(0.0):
                if isinstance(event, Failed):
                    raise RuntimeError(event.message)
                if isinstance(event, Finished):
                    self.decode(torch.as_tensor(event.latents, device=self.device))
                    done += 1
        assert done == images
        return self.now() - began

    def sample(self, number: int, *, mixed: bool) -> Sample:
        lengths = (self.steps // 2, self.steps, self.steps + self.steps // 2, self.steps)  # of four jobs together as many as of equal ones
        steps = lengths[(number + number // 4) % 4] if mixed else self.steps
        table = compile_table(
            Ladder.from_config(LADDER | {"prediction_type": "epsilon"}), SAMPLERS[number % 4] if mixed else "euler", "auto", steps
        )
        cond, uncond = self.text.numpy() if self.device.type == "cpu" else self.text
        return Sample(
            id=str(number), table=table, shape=self.size.latent, seed=number, cond=cond, uncond=uncond,
            guidance=4.0 + number % 3 if mixed else 5.0, told=self.vector(), uncond_told=self.vector(),
        )  # fmt: skip

    def vector(self) -> Any:
        """What SDXL is told: a pooled text of zeros, and sizes."""
        if not self.size.pooled:
            return None
        return torch.cat([torch.zeros(self.size.pooled), torch.tensor([1024.0, 1024, 0, 0, 1024, 1024])]).numpy()

    @torch.inference_mode()
    def decode(self, latent: torch.Tensor) -> None:
        self.vae.decode(latent[None].to(self.dtype) / 0.18215, return_dict=False)[0].float().cpu()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def share(self, images: int, seconds: float) -> float:
        """Of the dense bfloat16 limit."""
        return images * (2 * self.steps * self.size.row_gflop + self.size.vae_gflop) / 1000 / seconds / DENSE_TFLOPS


def best(work: Callable[[], float], repeats: int) -> float:
    """After one that is not counted: it makes kernels."""
    work()
    return min(work() for _ in range(repeats))


def measure(name: str, options: argparse.Namespace) -> list[str]:
    """Table rows of one size."""
    bench, rows = Bench(SIZES[name], options.device, options.steps), []

    def note(side: str, images: int, seconds: float) -> None:
        share = f"{bench.share(images, seconds):.0%}" if bench.size.row_gflop and bench.device.type == "cuda" else ""
        rows.append(f"| {name} | {side} | {images} | {seconds:.3f} | {images / seconds:.2f} | {share} |")

    for compiled in (False, True) if options.compile else (False,):
        if compiled:
            compile_blocks(bench.unet)
        how = "compiled" if compiled else "eager"
        for images in options.images:
            note(f"diffusers, {how}", images, best(lambda n=images: bench.diffusers(n), options.repeats))
            note(f"Celadon, {how}", images, best(lambda n=images: bench.celadon(n, mixed=False), options.repeats))
        most = max(options.images)
        note(f"Celadon, {how}, mixed jobs", most, best(lambda n=most: bench.celadon(n, mixed=True), options.repeats))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["sd15", "sdxl"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 16], help="batches of equal jobs")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU; --device cpu --size tiny tries the command")
    device = torch.cuda.get_device_name() if options.device == "cuda" else machine()
    lines = [
        "# Large U-Nets", "",
        f"Made by `python -m benchmarks.gpu` on {datetime.date.today().isoformat()}, commit {commit()}, {device}, "
        f"torch {torch.__version__}, random weights, {options.steps} steps with guidance, the best of {options.repeats} after one that is "
        f"not counted. The last column is the share of {DENSE_TFLOPS:.0f} TFLOP/s, U-Net and VAE.", "",
        "| model | side | images | seconds | images a second | share of the limit |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in options.size:
        lines += measure(name, options)
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
    options.out.write_text("\n".join([*lines, ""]))
    print(options.out.read_text())


if __name__ == "__main__":
    main()
