"""What an evaluation asks for, the rules that need no network, and the whole command on a toy."""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.test_evaluate_measures import random_efficientnet, random_lpips
from tests.test_training import drawn_icons
from training import evaluate, evaluation_sweep
from training.artist import Artist, weights_hash
from training.captions import STYLED
from training.compositor import BACKGROUND_NAMES, COLOUR_NAMES, Compositor, Scene, allowed, held_out
from training.evaluation_attributes import attributes, trusted
from training.evaluation_kept import Kept
from training.evaluation_report import Bar, measure_lines
from training.features import EfficientNet
from training.judge import Judge, answers, any_scene, count_of, judge_for
from training.lpips import ALEXNET, Lpips
from training.scene_sets import plain_wording, random_scenes, renders, scene_sets
from training.toy import write_toy
from training.words import BACKGROUNDS, STYLES, THINGS


@pytest.fixture(scope="module")
def sprites() -> np.ndarray:
    return drawn_icons()


@pytest.fixture(scope="module")
def compositor(sprites: np.ndarray) -> Compositor:
    return Compositor(sprites)


# What is asked


def test_every_style_is_asked_for_in_its_own_words():
    apple = next(i for i, t in enumerate(THINGS) if t.name == "apple")
    red, blue = COLOUR_NAMES.index("red"), BACKGROUND_NAMES.index("blue")
    assert plain_wording(Scene(0, apple)) == "an apple"
    assert plain_wording(Scene(0, apple, red, blue)) == "a red apple on a blue background"
    assert plain_wording(Scene(1, apple, red, count=2)) == "a flat icon of two red apples"
    for style in range(1, len(STYLES)):
        assert plain_wording(Scene(style, apple)) == STYLED[STYLES[style]][0].format("an apple")


def test_sets_hold_what_their_names_say(compositor: Compositor):
    sets = scene_sets(compositor, 30)
    assert {f"thing, {style} style, held out" for style in STYLES[1:]} <= sets.keys()
    for name, scenes in sets.items():
        assert 0 < len(scenes) <= 30 and len(set(scenes)) == len(scenes), name
        assert {allowed(s) for s in scenes} == {"held out" not in name}, name
        assert "two" not in name or {s.count for s in scenes} == {2}
        assert "coloured" not in name or all(s.colour >= 0 for s in scenes)
        assert "background" not in name or all(s.background >= 0 for s in scenes)
        if "all at once" in name:
            assert all(s.style > 0 and s.background >= 0 and (s.colour >= 0 or s.count == 2) for s in scenes)
            assert len({s.style for s in scenes}) == len(STYLES) - 1
    assert sets == scene_sets(compositor, 30), "the same every time"
    assert all(allowed(s) for s in random_scenes(compositor, 50, 1))


def test_renders_do_not_depend_on_their_neighbours(compositor: Compositor):
    scenes = random_scenes(compositor, 3, 2)
    assert np.array_equal(renders(compositor, scenes, 5)[:2], renders(compositor, scenes[:2], 5))


# Rules


def test_the_sheet_shows_every_style():
    prompts = evaluate.sheet_prompts()
    assert len(set(prompts)) == 32 and sum(p in evaluate.SHEET for p in prompts) > 16
    assert all(any(p.startswith(STYLED[style][0].format("")) for p in prompts) for style in STYLES[1:])


def discs(centres: list[tuple[int, int, int]], ground: str = "blue", noise: float = 0) -> np.ndarray:
    """Yellow discs (x, y, radius) with a hole as blue as the ground."""
    image = Image.new("RGB", (128, 128), BACKGROUNDS[ground])
    pen = ImageDraw.Draw(image)
    for x, y, r in centres:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=BACKGROUNDS["yellow"])
        pen.ellipse((x - r // 3, y - r // 3, x + r // 3, y + r // 3), fill=BACKGROUNDS[ground])
    grain = np.random.default_rng(0).normal(0, noise, (128, 128, 3))
    return (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [0, 8])
def test_discs_are_counted_by_components(noise: float):
    assert count_of(discs([], noise=noise)) == 0
    assert count_of(discs([(64, 64, 40)], noise=noise)) == 1
    assert count_of(discs([(32, 64, 28), (96, 64, 28)], noise=noise)) == 2
    assert count_of(discs([(34, 64, 28), (94, 64, 28)], noise=noise)) == 2, "three pixels apart"
    assert count_of(discs([(44, 64, 28), (84, 64, 28)], noise=noise)) == 1, "one over the other"
    assert count_of(discs([(64, 64, 40), (10, 10, 5)], noise=noise)) == 1, "a speck is no thing"
    assert count_of(discs([(25, 25, 18), (100, 25, 18), (60, 95, 18)], noise=noise)) == 3


def test_scenes_are_counted_only_where_their_render_is_counted_right(compositor: Compositor):
    scenes = [Scene(1, 3), Scene(1, 3, count=2)]
    assert trusted(compositor, scenes).tolist() == [True, True]
    invisible = compositor.sprites.copy()
    invisible[1, 3, ..., :3] = 255  # white on white
    assert trusted(Compositor(invisible), scenes).tolist() == [False, False]


class Oracle(Judge):
    """Names the thing by the brightness of the first pixel; style 1 and count 1 always."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = (x[:, 0, 0, 0] * 255).round().long()
        style, count = torch.zeros(len(x), len(STYLES)), torch.zeros(len(x), 2)
        style[:, 1], count[:, 0] = 1, 1
        return torch.nn.functional.one_hot(named.clamp(max=len(THINGS) - 1), len(THINGS)) * 9.0, style, count


class Renders:
    """Draws uniform pictures: those whose prompt names a wanted thing in its grey, others as thing 0."""

    def __init__(self, wanted: dict[str, int]) -> None:
        self.wanted = wanted

    def draw(self, prompts: list[str], seed: int) -> np.ndarray:
        return np.stack([np.full((128, 128, 3), self.wanted.get(p, 0), np.uint8) for p in prompts])


def test_answers_are_counted_by_set_and_seed(compositor: Compositor, tmp_path: Path):
    sets = {"a": [Scene(1, t) for t in range(5, 9)], "b, held out": [Scene(0, 5, colour=1, count=2), Scene(1, 6, background=1)]}
    studio = Renders({plain_wording(s): s.thing for scenes in sets.values() for s in scenes if s.thing != 7})
    found = attributes(studio, compositor, Oracle(), sets, 2, Kept(tmp_path, Bar("evaluate", 1)))
    a, b = found["sets"]["a"], found["sets"]["b, held out"]
    assert (found["sets"]["*all that training showed*"], found["sets"]["*all held out*"]) == (a, b)
    assert (a["scenes"], a["pictures"], a["thing"][0], a["style"][0], a["count"][0]) == (4, 8, 0.75, 1, 1)
    assert (b["thing"][0], b["style"][0], b["count"][0], b["background"][0], b["colour"][0]) == (1, 0.5, 0.5, 0.5, 0)
    assert "colour" not in a and a["background"][0] == 0, "black is not white"
    assert found["floor"]["thing"][0] < 0.9


def test_sets_are_weighed_equally_too(compositor: Compositor, tmp_path: Path):
    sets = {"a": [Scene(1, 5)], "b, held out": [Scene(1, t) for t in range(5, 9)], "c, held out": [Scene(1, 8, background=1)]}
    studio = Renders({plain_wording(s): s.thing for scenes in sets.values() for s in scenes if s.background < 0})
    found = attributes(studio, compositor, Oracle(), sets, 2, Kept(tmp_path, Bar("evaluate", 1)))
    row = found["sets"]["*all held out, sets weighed equally*"]
    assert (row["scenes"], row["pictures"], row["thing"][0]) == (5, 10, 0.5)
    assert found["sets"]["*all held out*"]["thing"][0] == 0.8, "four of five scenes"
    assert found["sets"]["*all that training showed, sets weighed equally*"]["thing"] == pytest.approx(found["sets"]["a"]["thing"])
    assert "*all held out, sets weighed equally*" in found["ceiling of each set"] and "colour" not in row


def test_a_picture_is_asked_only_what_its_scene_says(compositor: Compositor):
    scenes = [Scene(0, 1), Scene(0, 1, colour=2)]
    found = answers(Judge(8).eval(), renders(compositor, scenes, 0), scenes)
    assert np.isnan(found["colour"]).tolist() == [True, False]
    assert found["background"].tolist() == [1, 1] and found["count by components"].tolist() == [1, 1]


def test_a_judge_learns_the_pairs_that_the_model_must_not_see(compositor: Compositor):
    scenes = [any_scene(compositor, np.random.default_rng((3, i))) for i in range(400)]
    assert {allowed(s) for s in scenes} == {True, False}
    assert any(held_out("style", STYLES[s.style], THINGS[s.thing].name) for s in scenes)
    assert {s.style for s in scenes} == set(range(len(STYLES)))
    assert all(compositor.recolourable[s.style, s.thing] for s in scenes if s.colour >= 0)


def test_a_judge_of_other_sprites_is_trained_anew(compositor: Compositor, tmp_path: Path):
    first = judge_for(compositor, tmp_path, total=32)
    written = (tmp_path / "judge.pt").stat().st_mtime_ns
    again = judge_for(compositor, tmp_path, total=32)
    assert (tmp_path / "judge.pt").stat().st_mtime_ns == written
    assert all((a == b).all() for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = copy.copy(compositor)
    other.sprites = compositor.sprites.copy()
    other.sprites[0, 0, 60:64, 60:64, 0] ^= 255
    judge_for(other, tmp_path, total=32)
    assert (later := (tmp_path / "judge.pt").stat().st_mtime_ns) > written
    judge_for(other, tmp_path, total=64)  # one that saw less is no judge
    assert (tmp_path / "judge.pt").stat().st_mtime_ns > later


# The command


@pytest.fixture
def root(sprites: np.ndarray, compositor: Compositor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sprites, training pictures and a toy, with random networks in the place of those that would be fetched."""
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "sprites.npy", sprites)
    scenes = random_scenes(compositor, 24, 0)
    np.save(tmp_path / "data" / "pictures.npy", renders(compositor, scenes, 0))
    monkeypatch.setattr(evaluate, "Compositor", lambda sprites: compositor)  # made once for all tests
    write_toy(tmp_path / "toy")
    monkeypatch.setattr(evaluate, "load_features", lambda root, device: EfficientNet(random_efficientnet(), device))
    monkeypatch.setattr(evaluate, "load_lpips", lambda root, device: Lpips(random_lpips("alexnet", ALEXNET), device=device))
    monkeypatch.setattr(evaluate, "SHEET", evaluate.SHEET[:6])
    monkeypatch.setattr(evaluation_sweep, "STEPS", (2,))
    return tmp_path


def run(root: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict:
    small = ("--size=1", "--seeds=2", "--pictures=8", "--training=20", "--reconstructions=3", "--judge-total=32", "--steps=3")
    paths = (f"--root={root}", f"--model={root / 'toy'}", f"--sheet={root / 'sheet.png'}")
    monkeypatch.setattr(sys, "argv", ["evaluate", *paths, *small, *more])
    evaluate.main()
    return json.loads((root / "other" / "evaluation.json").read_text())


@pytest.mark.timeout(300)
def test_the_whole_command_and_that_it_goes_on_where_it_stopped(root: Path, monkeypatch: pytest.MonkeyPatch):
    drawn, draw = [], Artist.draw

    def counted(artist: Artist, prompts: list[str], seed: int, **options: object) -> np.ndarray:
        drawn.append(len(prompts))
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return draw(artist, prompts, seed, **options)

    monkeypatch.setattr(Artist, "draw", counted)
    with pytest.raises(KeyboardInterrupt):
        run(root, monkeypatch)
    figures = run(root, monkeypatch)
    sets = figures["sets"]
    assert sum(drawn) - drawn[4] == 2 * sum(not name.startswith("*") for name in sets) + 8 + 6, "nothing is drawn twice"
    assert figures["about"]["defaults"]["steps"] == 3
    assert all(
        row["pictures"] == 2 * row["scenes"] and 0 <= row["thing"][1] <= row["thing"][0] <= row["thing"][2] <= 1 for row in sets.values()
    )
    assert figures["ceiling"]["background"][0] == 1 == figures["ceiling"]["colour"][0]
    assert set(figures["autoencoder"]) == set(STYLES)
    assert figures["distribution"]["frechet"] > figures["distribution"]["frechet floor"] > 0
    assert figures["memorisation"]["training pictures"] == 20
    assert (root / "sheet.png").exists() and (root / "evaluation" / "nearest.png").exists()
    assert not (root / "toy" / "EVALUATION.md").exists() and not (root / "evaluation.json").exists(), "other settings than the usual ones"
    page = (root / "other" / "EVALUATION.md").read_text()
    assert all(f"| {name} | {row['scenes']} |" in page for name, row in sets.items()) and "Relations are not asked for" in page


@pytest.mark.timeout(300)
def test_the_sweep_marks_the_cards_own_setting(root: Path, monkeypatch: pytest.MonkeyPatch):
    rows = run(root, monkeypatch, "--sweep", "--sweep-scenes=3")["sweep"]
    assert [row["steps"] for row in rows if row["default"]] == [3]
    assert {(r["steps"], r["guidance"], r["guidance_rescale"]) for r in rows} >= {(2, 1.0, 0.0), (2, 3.0, 0.7)}
    assert all(0 <= r["certainty"] <= 1 and r["right"][1] <= r["right"][0] <= r["right"][2] for r in rows)
    assert "| **3** | **3** | **0.7** |" in (root / "other" / "EVALUATION.md").read_text()


class Dauber:
    """An artist without a network: noise of its own for each prompt."""

    key, weights, defaults, device = "weights-unipc", "weights", {}, "cpu"

    def draw(self, prompts: list[str], seed: int, drawn: object) -> np.ndarray:
        return np.stack([np.random.default_rng(seed + i).integers(0, 256, (128, 128, 3), np.uint8) for i in range(len(prompts))])

    def reconstruct(self, pictures: np.ndarray) -> np.ndarray:
        return pictures ^ 3


@pytest.mark.timeout(120)
def test_every_slice_goes_on_however_short(compositor: Compositor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge_of_noise: Judge):
    monkeypatch.setattr(
        evaluate, "load_features", lambda root, device: lambda pictures: pictures[:, ::16, ::16, 0].reshape(len(pictures), -1) / 1
    )
    monkeypatch.setattr(evaluate, "load_lpips", lambda root, device: lambda a, b: (a - b).abs().mean((1, 2, 3)))
    scene = next(iter(scene_sets(compositor, 1).values()))
    monkeypatch.setattr(evaluate, "scene_sets", lambda compositor, size: {"thing": scene, "thing, held out": scene})

    def run(root: Path, deadline: float) -> dict[str, object]:
        args = argparse.Namespace(
            root=root, sheet=root / "s.png", size=1, seeds=1, pictures=20, training=9, reconstructions=21, device="cpu"
        )
        return evaluate.evaluate(args, Dauber(), compositor, judge_of_noise, deadline)

    for root in (tmp_path / "whole", tmp_path / "slices"):
        (root / "data").mkdir(parents=True)
        np.save(root / "data" / "pictures.npy", renders(compositor, random_scenes(compositor, 9, 0), 0))
    whole, slices, told = run(tmp_path / "whole", float("inf")), 0, []
    kept = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "evaluation").rglob("*.npy"))
    assert {path.parts[1] for path in kept} == {"weights", "weights-unipc", "answers", "features", "nearest"}
    while True:
        slices += 1
        try:
            found = run(tmp_path / "slices", time.monotonic() - 1)
        except SystemExit as stop:
            told.append(str(stop))
            assert len(list((tmp_path / "slices").rglob("evaluation/*/*.npy"))) == slices, "one part in each"
            continue
        break
    assert found == whole and slices == len(kept)
    assert sorted(path.relative_to(tmp_path / "slices") for path in (tmp_path / "slices" / "evaluation").rglob("*.npy")) == kept
    assert all(re.fullmatch(r"evaluate: \d+%; the same command goes on from there", line) for line in told)


@pytest.fixture
def judge_of_noise() -> Judge:
    torch.manual_seed(0)
    return Judge(8).eval()


@pytest.mark.parametrize(("minutes", "left"), [(2, 0.5), (1, evaluate.LEAST)])
def test_the_judge_gets_what_is_left_of_the_time(root: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, left: float):
    now, given = [1000.0], []

    def slow(sprites: np.ndarray) -> None:
        now[0] += 90

    def asked(compositor: None, folder: Path, device: str, total: int, minutes: float) -> Judge:
        given.append(minutes)
        raise SystemExit("judge")

    monkeypatch.setattr(evaluate, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(evaluate, "Compositor", slow)
    monkeypatch.setattr(evaluate, "judge_for", asked)
    with pytest.raises(SystemExit, match="judge"):
        run(root, monkeypatch, f"--minutes={minutes}")
    assert given == [left] and left > 0


def parsed(monkeypatch: pytest.MonkeyPatch, *words: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    return evaluate.arguments()


def test_only_the_usual_settings_write_what_is_shipped(monkeypatch: pytest.MonkeyPatch):
    shipped = (Path(".training/evaluation.json"), Path("models/celadon-mini/EVALUATION.md"), Path("docs/pictures/celadon-mini.png"))
    other = tuple(Path(".training/other") / name for name in ("evaluation.json", "EVALUATION.md", "sheet.png"))

    def places(*words: str) -> tuple[Path, ...]:
        args = parsed(monkeypatch, *words)
        return args.out, args.table, args.sheet

    assert places() == places("--minutes=5", "--device=cuda", "--sweep") == places("--size=100") == shipped
    for name in evaluate.SETTINGS:
        assert places(f"--{name.replace('_', '-')}=7") == other, name
    assert places("--size=7", "--table=a.md", "--sheet=b.png") == (other[0], Path("a.md"), Path("b.png"))
    assert places("--model=mine") == (shipped[0], Path("mine/EVALUATION.md"), other[2]), "the sheet in the docs shows the model in the box"


@pytest.mark.parametrize("name", ["weights", "defaults", "settings"])
def test_figures_of_other_settings_do_not_stand_under_one_heading(tmp_path: Path, name: str):
    about = {"weights": "a", "defaults": {"steps": 10}, "settings": {"size": 100}, "date": "today"}
    path = tmp_path / "evaluation.json"
    assert evaluate.earlier(path, about) == {}
    path.write_text(json.dumps({"sweep": [1], "about": about | {"date": "yesterday"}}))
    assert evaluate.earlier(path, about)["sweep"] == [1]
    assert evaluate.earlier(path, about | {name: "other"}) == {}
    path.write_text(json.dumps({"sweep": [1], "about": {k: v for k, v in about.items() if k != name}}))
    assert evaluate.earlier(path, about) == {}, "an older file"


def test_measures_stand_beside_what_they_cannot_tell():
    near = {"median": 1.0, "1 %": 0.5, "1 % of renders": 0.4, "nearer than 1 % of renders": 0.0}
    names = ("frechet", "frechet floor", "precision", "precision of renders", "recall", "recall of renders")
    figures = {
        "autoencoder": {}, "distribution": dict.fromkeys(names, 2.0) | {"pictures": 77},
        "memorisation": {"training pictures": 9, "of": 10, "features": near, "pixels": near},
    }  # fmt: skip
    ratio, _, features, pixels = measure_lines(figures)
    assert re.search(r"ratio 1\.0 at n = 77 pictures\. The ratio grows with n\b", ratio)
    assert "in features" in features and "does not find copies that went through the autoencoder" in features and "0.7 %" in features
    assert "in pixels" in pixels and "finds copies" in pixels and "100 %" in pixels and "does not" not in pixels


def test_the_weights_are_those_of_the_pipeline(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toy")
    before = weights_hash(folder)
    (folder / "superres").mkdir()
    (folder / "superres" / "model.safetensors").write_bytes(b"of something else")
    assert weights_hash(folder) == before
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert weights_hash(folder) != before
