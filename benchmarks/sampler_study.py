"""Which sampler, which schedule, how many steps? The model's own judge against U-Net evaluations.

`python -m benchmarks.sampler_study` draws scenes with ten samplers and with the schedules of arXiv 2301.10972 and others, scores them
with `training.judge`, and writes docs/pictures/sampler-study.svg and the tables in docs/samplers.md. It goes on where it stopped; what it
has found lies under `.training/study`. The judge is trained on the first run (some minutes; npm fetches the icons it needs).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.study_plan import REFERENCE_STEPS, SOLVER, Cell, Notes, cells, study
from benchmarks.study_report import write
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.loading import Checkpoint, load
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.text_to_image import decode, encode_prompt
from training.compositor import Compositor, Scene
from training.data import rasterise
from training.judge import judge_for, shrink, verdicts
from training.scene_sets import plain_wording, scene_sets
from training.sources import fetch
from workers.settings import DEFAULT_MODEL

SETS = ("thing", "thing, flat style", "thing on background", "coloured thing", "two things")


class Studio:
    """The model, the scenes and the judge."""

    def __init__(self, checkpoint: Checkpoint, root: Path, scenes: int) -> None:
        self._checkpoint, self._root = checkpoint, root
        compositor = Compositor(_sprites(root))
        self._judge = judge_for(compositor, root)
        per_set = -(-scenes // len(SETS))
        sets = scene_sets(compositor, per_set)
        self._scenes: list[Scene] = [scene for name in SETS for scene in sets[name]][:scenes]
        self._prompts = [plain_wording(scene) for scene in self._scenes]
        self._contexts = {text: encode_prompt(checkpoint, text).numpy() for text in {"", *self._prompts}}
        self._reference: np.ndarray | None = None

    def draw(self, sampler: str, schedule: str, steps: int, options: Mapping[str, float]) -> np.ndarray:
        """[n, H, W, 3]; scene i has seed 1000 + i."""
        checkpoint, card = self._checkpoint, self._checkpoint.card
        table = compile_table(checkpoint.ladder, sampler, schedule, steps, {}, dict(options))
        denoiser = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)
        engine = Engine(denoiser, slots=len(self._prompts), max_rows=16, preview_interval_s=float("inf"))
        shape, empty = checkpoint.latent_shape(card.width, card.height), self._contexts[""]
        for i, prompt in enumerate(self._prompts):
            asked = {"guidance": card.defaults.guidance, "guidance_rescale": card.defaults.guidance_rescale, "uncond": empty}
            engine.add(Sample(id=str(i), table=table, shape=shape, seed=1000 + i, cond=self._contexts[prompt], **asked))
        pictures: dict[int, np.ndarray] = {}
        while engine.busy:
            for event in engine.step(0.0):
                if isinstance(event, Finished):
                    pictures[int(event.sample_id)] = decode(checkpoint, event.latents)
        return np.stack([pictures[i] for i in range(len(self._prompts))])

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Shares that the judge finds right, the mean of them, its certainty of the thing, and the distance to the converged picture."""
        started = time.monotonic()
        pictures = self.draw(cell.sampler, cell.schedule, cell.steps(), cell.options)
        shares = verdicts(self._judge, pictures, self._scenes)
        shares.pop("thing in top 5")
        with torch.no_grad():
            things = torch.softmax(self._judge(shrink(pictures))[0], dim=1)
        certainty = float(things[range(len(pictures)), [scene.thing for scene in self._scenes]].mean())
        distance = None
        if not SAMPLERS[cell.sampler].stochastic:
            distance = float(np.abs(pictures.astype(float) - self.reference()).mean())
        return {
            "steps": cell.steps(), "score": float(np.mean(list(shares.values()))), "certainty": certainty, "distance": distance,
            "shares": shares, "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip

    def reference(self) -> np.ndarray:
        """What the scenes converge to, drawn once."""
        path = self._root / "study" / f"reference-{self._checkpoint.card.hash}-{len(self._scenes)}.npy"
        if self._reference is None and path.exists():
            self._reference = np.load(path)
        if self._reference is None:
            self._reference = self.draw(SOLVER, "auto", REFERENCE_STEPS, {})
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self._reference)
        return self._reference.astype(float)


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
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no new point after this time; run again to go on")
    parser.add_argument("--budgets", type=int, nargs="+", help="only these numbers of evaluations")
    parser.add_argument("--report", action="store_true", help="write tables and plot of what is known, though points are left")
    options = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * options.minutes
    checkpoint = load(options.model, device=torch.device("cpu"), dtype=torch.float32)
    about = {"model": checkpoint.card.hash, "scenes": options.scenes}
    notes = Notes(options.root / "study" / f"found-{checkpoint.card.hash}-{options.scenes}.json", about)
    todo = [cell for cell in cells() if not options.budgets or cell.budget in options.budgets]
    studio = Studio(checkpoint, options.root, options.scenes)
    for cell in study(notes, todo, studio.measure, until):
        found = notes.found[Notes.key(cell)]
        print(
            cell.panel, cell.label, cell.budget, {k: found[k] for k in ("steps", "score", "certainty", "distance", "seconds")}, flush=True
        )
    left = sum(Notes.key(cell) not in notes.found for cell in cells())
    print(f"{left} of {len(cells())} points are left" if left else "all points are known")
    if options.report or not left:
        write(list(notes.found.values()), options.scenes, options.model.name)


if __name__ == "__main__":
    main()
