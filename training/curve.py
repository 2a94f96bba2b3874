"""What more training brings: checkpoints of one model, by pictures seen, judged on the same scenes (`python -m training.curve`).

The pencil style is left out, because the first checkpoint does not know it. The dashed lines are a power law of the error through
the points, where it falls: a guess, and with three points a rough one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from training.artist import Artist
from training.compositor import Compositor, Scene
from training.evaluate import Studio
from training.evaluation_attributes import RENDERS, SEED, shares
from training.evaluation_report import Bar
from training.judge import Judge, answers, judge_for
from training.scene_sets import plain_wording, renders, scene_sets
from training.words import STYLES

NEW = STYLES.index("pencil")
ROOM = 1.4  # between labelled numbers of pictures
QUESTIONS = ("thing", "style")
Point = dict[str, list[float]]  # of each question: share, low, high


def asked(compositor: Compositor, size: int) -> dict[str, list[Scene]]:
    """The evaluation's scenes that every checkpoint has words for, in two heaps."""
    heaps: dict[str, list[Scene]] = {"seen": [], "held out": []}
    for name, scenes in scene_sets(compositor, size).items():
        heaps["held out" if "held out" in name else "seen"] += [scene for scene in scenes if scene.style != NEW]
    return heaps


def judged(studio: Studio, judge: Judge, heaps: dict[str, list[Scene]]) -> dict[str, Point]:
    found = {}
    for name, scenes in heaps.items():
        found[name] = shares([answers(judge, studio.draw([plain_wording(s) for s in scenes], SEED), scenes)])
    return found


def law(seen: np.ndarray, share: np.ndarray, ceiling: float) -> tuple[float, float]:
    """a and b of error = a seen^-b, by least squares of the logarithms; the error is what is missing to the ceiling."""
    slope, offset = np.polyfit(np.log(seen), np.log(np.maximum(ceiling - share, 1e-3)), 1)
    return float(np.exp(offset)), float(-slope)


def apart(seen: np.ndarray) -> list[int]:
    """Those that have room for a label, the last one among them."""
    kept: list[int] = []
    for n in seen[::-1].tolist():
        if not kept or kept[-1] / n > ROOM:
            kept.append(n)
    return kept[::-1]


def plot(path: Path, found: list[dict], ceilings: dict[str, Point]) -> None:
    seen = np.array([f["seen_pictures"] for f in found])
    further = np.geomspace(seen[0], 16 * seen[-1], 50)
    figure, axes = plt.subplots(1, len(QUESTIONS), figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, question in zip(axes, QUESTIONS, strict=True):
        for colour, heap in zip(("tab:blue", "tab:orange"), ceilings, strict=True):
            share, low, high = (np.array([f["heaps"][heap][question][k] for f in found]) for k in range(3))
            ceiling = ceilings[heap][question][0]
            axis.errorbar(seen, share, [share - low, high - share], fmt="o-", color=colour, capsize=3, label=heap)
            a, b = law(seen, share, ceiling)
            if b > 0:
                axis.plot(further, ceiling - a * further**-b, "--", color=colour, linewidth=1)
            axis.axhline(ceiling, color=colour, linewidth=0.5)
        axis.set(xscale="log", xlabel="pictures seen", title=question, ylim=(0.6, 1.01))
        ticks = [*apart(seen), 1e6, 4e6]
        axis.set_xticks(ticks, [f"{n / 1e3:.0f}k" if n < 1e6 else f"{n / 1e6:.0f}M" for n in ticks], fontsize=8)
        axis.set_xticks([], minor=True)
    axes[0].set_ylabel("right answers")
    axes[0].legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"))
    parser.add_argument("--checkpoint", action="append", required=True, metavar="PICTURES=FOLDER", help="once for each, the fewest first")
    parser.add_argument("--size", type=int, default=50, help="scenes of each set")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/celadon-mini-curve.svg"))
    args = parser.parse_args()
    compositor = Compositor(np.load(args.root / "data" / "sprites.npy"))
    judge, heaps = judge_for(compositor, args.root), asked(compositor, args.size)
    ceilings = {name: shares([answers(judge, renders(compositor, scenes, RENDERS), scenes)]) for name, scenes in heaps.items()}
    card = json.loads((Path(args.checkpoint[-1].partition("=")[2]) / "celadon.json").read_text())["defaults"]
    settings = {name: card[name] for name in ("sampler", "steps", "guidance", "guidance_rescale")}  # the last one's, for all
    found = []
    with Bar("curve", len(args.checkpoint) * sum(map(len, heaps.values()))) as bar:
        for pair in args.checkpoint:
            pictures, _, folder = pair.partition("=")
            studio = Studio(Artist(Path(folder), **settings), args.root / "evaluation", bar)
            found.append({"seen_pictures": int(pictures), "heaps": judged(studio, judge, heaps)})
    print(json.dumps({"ceilings": ceilings, "checkpoints": found}, indent=1))
    plot(args.out, found, ceilings)


if __name__ == "__main__":
    main()
