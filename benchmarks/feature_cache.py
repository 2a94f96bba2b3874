"""What `cache_interval` wins and costs on the default model: `python -m benchmarks.feature_cache` writes benchmarks/CACHE.md.

The same pictures with the deep layers asked at every n-th evaluation, on OpenVINO with one thread. Time is the process's CPU time in
the U-Net, so that a neighbour changes little; the error is that against the same steps without the cache. Beside it stands the other way
to be sooner: as many steps fewer as cost the same.
"""

from __future__ import annotations

import argparse
import datetime
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.drawing import SUBJECTS
from benchmarks.stamp import commit, machine
from pipelines.checkpoint_folder import describe
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.openvino_model import Compiler, OpenVinoDenoiser, OpenVinoStages, fastest_precision
from pipelines.params import GenerationParams
from pipelines.planning import table_for
from workers.settings import DEFAULT_MODEL

RESULTS = Path(__file__).parent / "CACHE.md"
SHEET = Path(__file__).parents[1] / "docs" / "pictures" / "feature-cache.png"
STEPS, INTERVALS = (10, 20, 50), (1, 2, 3, 5)
TRUTH = 200  # steps of a picture that is taken for exact


@dataclass(frozen=True, slots=True)
class Found:
    """Pictures [N, H, W, 3] in 0..1, and the U-Net's CPU seconds for all of them."""

    pixels: np.ndarray
    seconds: float

    def psnr(self, other: Found) -> float:
        """dB, the mean over pictures."""
        squares = ((self.pixels - other.pixels) ** 2).mean(axis=(1, 2, 3))
        return float(np.mean(-10 * np.log10(np.maximum(squares, 1e-10))))


class Stopwatch:
    """A denoiser whose CPU time is added up."""

    def __init__(self, inner: OpenVinoDenoiser) -> None:
        self._inner, self.xp, self.device, self.seconds = inner, inner.xp, inner.device, 0.0

    def __call__(self, *asked: Any, **more: Any) -> Any:
        return self._timed(self._inner, *asked, **more)

    def remember(self, *asked: Any, **more: Any) -> Any:
        return self._timed(self._inner.remember, *asked, **more)

    def recall(self, *asked: Any, **more: Any) -> Any:
        return self._timed(self._inner.recall, *asked, **more)

    def _timed(self, work: Any, *asked: Any, **more: Any) -> Any:
        began = time.process_time()
        out = work(*asked, **more)
        self.seconds += time.process_time() - began
        return out


class Drawer:
    """The default model in the fastest precision of this processor."""

    def __init__(self, model: Path) -> None:
        said, self.precision = describe(model), fastest_precision()
        compiler = Compiler(said, None, threads=1)
        self._stages = OpenVinoStages(said, compiler)
        self._denoiser = OpenVinoDenoiser(compiler.forms(self.precision), said.configs["unet"])

    def draw(self, steps: int, interval: int, scenes: int) -> Found:
        """One picture after the other, each of two rows."""
        card, watch, pixels = self._stages.card, Stopwatch(self._denoiser), []
        for seed in range(scenes):
            params = GenerationParams(
                prompt=SUBJECTS[seed % len(SUBJECTS)], model=card.id, width=card.width, height=card.height, steps=steps,
                guidance=card.defaults.guidance, sampler=card.defaults.sampler, schedule=card.defaults.schedule, seed=seed,
            )  # fmt: skip
            pixels.append(self._stages.decode(self._latents(watch, params, interval)).astype(np.float32) / 255)
        return Found(np.stack(pixels), watch.seconds)

    def _latents(self, watch: Stopwatch, params: GenerationParams, interval: int) -> Any:
        stages = self._stages
        cond, uncond = (stages.encode(text).states for text in (params.prompt, ""))
        engine = Engine(watch, slots=1, rows=2)
        engine.add(Sample(
            id="x", table=table_for(stages, params), shape=stages.latent_shape(params.width, params.height), seed=params.seed, cond=cond,
            uncond=uncond, guidance=params.guidance, guidance_rescale=stages.card.defaults.guidance_rescale, cache_interval=interval,
        ))  # fmt: skip
        while True:
            for event in engine.step(0.0):
                if isinstance(event, Finished):
                    return event.latents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--sheet", type=Path, default=SHEET)
    options = parser.parse_args()
    drawer = Drawer(options.model)
    for interval in (1, 2):  # compiled, and warm
        drawer.draw(2, interval, 2)
    truth, lines, sheet = drawer.draw(TRUTH, 1, options.scenes), [], []
    for steps in STEPS:
        found = {interval: drawer.draw(steps, interval, options.scenes) for interval in INTERVALS}
        whole = found[1]
        for interval, drawn in found.items():
            fewer = max(1, round(steps * drawn.seconds / whole.seconds))
            instead = whole if interval == 1 else drawer.draw(fewer, 1, options.scenes)
            lines.append(row(steps, interval, drawn, whole, truth, fewer, instead))
        sheet += [np.concatenate(list(drawn.pixels[:8]), axis=1) for drawn in found.values()]
    options.out.write_text("\n".join([*head(options, drawer.precision), *lines, "", "![Pictures](../docs/pictures/feature-cache.png)", ""]))
    Image.fromarray(np.round(np.concatenate(sheet) * 255).astype(np.uint8)).save(options.sheet, optimize=True)
    print(options.out.read_text())


def row(steps: int, interval: int, drawn: Found, whole: Found, truth: Found, fewer: int, instead: Found) -> str:
    own = "" if interval == 1 else f"{drawn.psnr(whole):.1f}"
    other = "" if interval == 1 else f"{fewer} steps: {instead.psnr(truth):.1f}"
    return f"| {steps} | {interval} | {whole.seconds / drawn.seconds:.2f} | {own} | {drawn.psnr(truth):.1f} | {other} |"


def head(options: argparse.Namespace, precision: str) -> list[str]:
    return [
        "# The cache of deep layers",
        "",
        f"Made by `python -m benchmarks.feature_cache` on {datetime.date.today().isoformat()}, commit {commit()}, {machine()}, model "
        f"{options.model.name}, OpenVINO in {precision}, one thread, {options.scenes} pictures of the default sampler and guidance. Speed "
        "is CPU time in the U-Net, in one run. PSNR in dB, the mean over pictures; 'exact' is the same seed in "
        f"{TRUTH} steps. The last column is what as many steps fewer as cost the same come to.",
        "",
        "| steps | `cache_interval` | times sooner | PSNR against every layer, every step | PSNR against exact | instead |",
        "|---|---|---|---|---|---|",
    ]


if __name__ == "__main__":
    main()
