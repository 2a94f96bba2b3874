"""Which sampler, which schedule, how many steps? The model's own judge against U-Net evaluations.

`python -m benchmarks.sampler_study` draws scenes with every sampler at one budget, with the ten best at six, and with the schedules of
arXiv 2301.10972 and others, scores them with `training.judge`, and writes docs/pictures/sampler-study.svg and the tables in
docs/samplers.md. It goes on where it stopped, and may run twice at once (`--panels`); what it has found lies under
`.training/study`. The judge is trained on the first run (some minutes; npm fetches the icons it needs).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.study_plan import BUDGETS, REFERENCE, REFERENCE_STEPS, SETS, Cell, Notes, cells, study
from benchmarks.study_report import write
from pipelines.checkpoint_folder import describe
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.loading import Checkpoint, load
from pipelines.openvino_model import Compiler, OpenVinoDenoiser
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.text_to_image import decode, encode_prompt
from training.compositor import Compositor, Scene
from training.data import rasterise
from training.evaluation_sweep import chosen, right
from training.judge import answers, judge_for
from training.scene_sets import plain_wording
from training.sources import fetch
from workers.settings import DEFAULT_MODEL


class Studio:
    """The model, the scenes and the judge."""

    def __init__(self, checkpoint: Checkpoint, denoiser: OpenVinoDenoiser, root: Path, scenes: int) -> None:
        self._checkpoint, self._denoiser, self._root = checkpoint, denoiser, root
        compositor = Compositor(_sprites(root))
        self._judge = judge_for(compositor, root)
        self._scenes: list[Scene] = chosen(compositor, scenes)
        if len(self._scenes) != scenes:
            raise ValueError(f"{scenes} scenes are not equally many of each of the {SETS} sets")
        self._prompts = [plain_wording(scene) for scene in self._scenes]
        self._contexts = {text: encode_prompt(checkpoint, text).numpy() for text in {"", *self._prompts}}
        self._reference: np.ndarray | None = None

    def draw(self, sampler: str, schedule: str, steps: int, options: Mapping[str, float]) -> np.ndarray:
        """[n, H, W, 3]; scene i has seed 1000 + i."""
        checkpoint, card = self._checkpoint, self._checkpoint.card
        table = compile_table(checkpoint.ladder, sampler, schedule, steps, {}, dict(options))
        engine = Engine(self._denoiser, slots=len(self._prompts), max_rows=16, preview_interval_s=float("inf"))
        shape, empty = checkpoint.latent_shape(card.width, card.height), self._contexts[""]
        guidance = SAMPLERS[sampler].guidance or card.defaults.guidance
        for i, prompt in enumerate(self._prompts):
            asked = {"guidance": guidance, "guidance_rescale": card.defaults.guidance_rescale, "uncond": empty}
            engine.add(Sample(id=str(i), table=table, shape=shape, seed=1000 + i, cond=self._contexts[prompt], **asked))
        pictures: dict[int, np.ndarray] = {}
        while engine.busy:
            for event in engine.step(0.0):
                if isinstance(event, Finished):
                    pictures[int(event.sample_id)] = decode(checkpoint, event.latents)
        return np.stack([pictures[i] for i in range(len(self._prompts))])

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Of each picture: the share of questions that the judge answers as asked, its certainty of the thing, and the mean distance
        of a pixel to the converged picture (without one where noise is drawn, or guidance means something else)."""
        started = time.monotonic()
        pictures = self.draw(cell.sampler, cell.schedule, cell.steps(), cell.options)
        found, one, distance = answers(self._judge, pictures, self._scenes), SAMPLERS[cell.sampler], None
        if not one.stochastic and one.guidance is None:
            distance = np.abs(pictures.astype(float) - self.reference()).mean((1, 2, 3)).round(4).tolist()
        return {
            "steps": cell.steps(), "right": right(found).round(6).tolist(), "certainty": found["certainty"].round(6).tolist(),
            "distance": distance, "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip

    def reference(self) -> np.ndarray:
        """What the scenes converge to, drawn once."""
        path = self._root / "study" / f"reference-{self._checkpoint.card.hash}-{len(self._scenes)}.npy"
        if self._reference is None and path.exists():
            self._reference = np.load(path)
        if self._reference is None:
            self._reference = self.draw(REFERENCE, "auto", REFERENCE_STEPS, {})
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self._reference)
        return self._reference.astype(float)


def _denoiser(model: Path) -> OpenVinoDenoiser:
    """In one thread and float32."""
    said = describe(model)
    return OpenVinoDenoiser(Compiler(said, None, threads=1).forms("float32"), said.configs["unet"])


def _sprites(root: Path) -> np.ndarray:
    path = root / "data" / "sprites.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rasterise(fetch(root / "data" / "packages")))
    return np.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"), help="where judge and findings lie")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--scenes", type=int, default=4 * SETS, help=f"a multiple of {SETS}, the number of sets")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no new point after this time; run again to go on")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="only these numbers of evaluations")
    panels = ("all", "sampler", "schedule")
    parser.add_argument("--panels", choices=panels, nargs="+", default=panels, help="only these tables")
    parser.add_argument("--report", action="store_true", help="write tables and plot of what is known, though points are left")
    options = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * options.minutes
    checkpoint = load(options.model, device=torch.device("cpu"), dtype=torch.float32)
    notes = Notes(options.root / "study" / f"found-{checkpoint.card.hash}-{options.scenes}")
    todo = [cell for cell in cells() if cell.budget in options.budgets and cell.panel in options.panels]
    studio = Studio(checkpoint, _denoiser(options.model), options.root, options.scenes)
    for cell in study(notes, todo, studio.measure, until):
        found = notes[cell]
        means = {name: round(float(np.mean(found[name])), 3) for name in ("right", "certainty", "distance") if found[name] is not None}
        print(cell.panel, cell.label, cell.budget, found["steps"], means, found["seconds"], flush=True)
    left = len(cells()) - len(notes.known())
    print(f"{left} of {len(cells())} points are left" if left else "all points are known")
    if options.report or not left:
        write(notes.known(), options.scenes, options.model.name, checkpoint.card.defaults.sampler)


if __name__ == "__main__":
    main()
