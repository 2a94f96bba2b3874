"""Large U-Nets on a GPU: `make bench-gpu` writes benchmarks/GPU.md.

U-Nets of the sizes of Stable Diffusion 1.5 and SDXL with random weights, since speed does not depend on them; prompts are random states,
so that no text encoder is needed. In one run, with the same steps, size and guidance: diffusers eager and with its repeated blocks
compiled, Celadon's engine over either, and over recorded calls with pictures on a stream of their own, as a worker has it. What was
measured is written after every row. `--size tiny --device cpu` tries the command where there is no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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
from pipelines.lanes import Here, Stream
from pipelines.replay import CudaRecorder, PlainRecorder, Replay
from pipelines.samplers import compile_table
from pipelines.text_to_image import Begun
from workers.model_torch import compile_blocks, fuse_projections
from workers.warm import buckets, made_ready

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
SLOTS, MAX_ROWS = 16, 32
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

    def __init__(self, size: Size, device: str, steps: int, rows: int | None = None) -> None:
        self.size, self.device, self.steps, self.rows = size, torch.device(device), steps, rows
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

    def denoiser(self) -> TorchDenoiser:
        return TorchDenoiser(self.unet, device=self.device, dtype=self.dtype, told=self.told)

    def recorded(self) -> Replay:
        """The same with its calls recorded; on a CPU by the stand-in for graphs."""
        recorder = CudaRecorder(self.device) if self.device.type == "cuda" else PlainRecorder()
        replay = Replay(self.denoiser(), recorder, lambda event, **facts: print(event, facts, flush=True))
        sizes = (self.rows,) if self.rows else buckets(MAX_ROWS)
        with replay.warming(sizes):
            made_ready(replay, self.size.latent, self.text[0], self.told.width, sizes, "")
        return replay

    def celadon(self, denoiser: Any, images: int, *, mixed: bool) -> float:
        """Seconds for jobs through one engine. Mixed ones differ in sampler, guidance, length and the moment at which they come. Where
        calls are recorded, pictures have a stream of their own.
        """
        engine, done, asked = Engine(denoiser, slots=SLOTS, max_rows=MAX_ROWS, rows=self.rows), 0, self.samples(images, mixed=mixed)
        lane = (Stream(self.device) if self.device.type == "cuda" else Here()) if isinstance(denoiser, Replay) else None
        begun, began = list[Begun](), self.now()
        while asked or engine.busy:
            while asked and engine.free_slots:
                engine.add(asked.pop(0))
                if mixed:
                    break  # one a tick
            for event in engine.step(0.0):
                if isinstance(event, Failed):
                    raise RuntimeError(event.message)
                if isinstance(event, Finished):
                    if lane:
                        begun.append(Begun(self, event.latents, lane))  # type: ignore[arg-type]  # it has a VAE and a device
                    else:
                        self.decode(torch.as_tensor(event.latents, device=self.device))
                    done += 1
        shapes = {one.pixels().shape for one in begun}
        assert done == images and len(shapes) == bool(lane)
        return self.now() - began

    def samples(self, images: int, *, mixed: bool) -> list[Sample]:
        return [self.sample(number, mixed=mixed) for number in range(images)]

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


class Page:
    """The table, written after every row. `begin` asks whether there is time for another."""

    def __init__(self, out: Path, options: argparse.Namespace, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock, self._ends = out, clock, clock() + 60 * options.minutes if options.minutes else float("inf")
        self.skipped = 0
        fused = ", fused projections" if options.fuse else ""
        self._lines = [
            "# Large U-Nets", "",
            f"Made by `python -m benchmarks.gpu` on {datetime.date.today().isoformat()}, commit {commit()}, {device}, "
            f"torch {torch.__version__}, random weights{fused}, {options.steps} steps with guidance, calls of Celadon with "
            f"{options.rows or 'any number of'} rows, the best of {options.repeats} after one that is not counted. The last column is the "
            f"share of {DENSE_TFLOPS:.0f} TFLOP/s, U-Net and VAE.", "",
            "| model | side | images | seconds | images a second | share of the limit |", "|---|---|---|---|---|---|",
        ]  # fmt: skip

    def row(self, bench: Bench, name: str, side: str, images: int, work: Callable[[], float], repeats: int) -> None:
        """The best of some, after one that is not counted: it makes kernels."""
        if self._clock() > self._ends:
            self.skipped += 1
            return
        work()
        seconds = min(work() for _ in range(repeats))
        share = f"{bench.share(images, seconds):.0%}" if bench.size.row_gflop and bench.device.type == "cuda" else ""
        self._lines.append(f"| {name} | {side} | {images} | {seconds:.3f} | {images / seconds:.2f} | {share} |")
        print(self._lines[-1], flush=True)
        self._out.write_text("\n".join([*self._lines, ""]))


def measure(name: str, options: argparse.Namespace, page: Page) -> None:
    """The rows of one size: eager, compiled, and compiled (or eager, where nothing is to be) with calls recorded."""
    bench = Bench(SIZES[name], options.device, options.steps, options.rows or None)
    if options.fuse:
        fuse_projections(bench.unet)
    for compiled in (False, True) if options.compile else (False,):
        if compiled:
            compile_blocks(bench.unet)
        how = "compiled" if compiled else "eager"
        for images in options.images:
            page.row(bench, name, f"diffusers, {how}", images, partial(bench.diffusers, images), options.repeats)
        in_engine(bench, name, how, bench.denoiser(), options, page)
    if not page.skipped:
        with torch.inference_mode():
            recorded = bench.recorded()
        in_engine(bench, name, f"{how}, graphs and streams", recorded, options, page)


def in_engine(bench: Bench, name: str, how: str, denoiser: Any, options: argparse.Namespace, page: Page) -> None:
    """The rows of Celadon over one denoiser."""
    for images in options.images:
        page.row(bench, name, f"Celadon, {how}", images, partial(bench.celadon, denoiser, images, mixed=False), options.repeats)
    most = max(options.images)
    page.row(bench, name, f"Celadon, {how}, mixed jobs", most, partial(bench.celadon, denoiser, most, mixed=True), options.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["sd15", "sdxl"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 16], help="batches of equal jobs")
    parser.add_argument("--rows", type=int, default=0, help="of every call of Celadon, as CELADON_ROWS; 0: any number")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=0, help="after which no further row is begun; 0: no end")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--fuse", action="store_true", help="with fused projections, diffusers and Celadon")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU; --device cpu --size tiny tries the command")
    page = Page(options.out, options, torch.cuda.get_device_name() if options.device == "cuda" else machine())
    for name in options.size:
        measure(name, options, page)
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
    if page.skipped:
        print(f"{page.skipped} rows were left out: {options.minutes} minutes are over")


if __name__ == "__main__":
    main()
