"""`make bench-gpu` where there is no GPU: the command runs on a tiny model, and says what it is for where it cannot."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks import gpu

ROW = re.compile(r"\| tiny \| (.+) \| (\d+) \| [\d.]+ \| [\d.]+ \|  \|")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    gpu.main()


ASKED = ("--size", "tiny", "--device", "cpu", "--steps", "4", "--images", "1", "3", "--repeats", "1", "--no-compile")


def test_a_tiny_model_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, *ASKED, "--rows", "4", "--fuse", "--out", str(tmp_path / "out.md"))
    rows = ROW.findall((tmp_path / "out.md").read_text())
    assert rows == [
        ("diffusers, eager", "1"), ("diffusers, eager", "3"), ("Celadon, eager", "1"), ("Celadon, eager", "3"),
        ("Celadon, eager, mixed jobs", "3"), ("Celadon, eager, graphs and streams", "1"), ("Celadon, eager, graphs and streams", "3"),
        ("Celadon, eager, graphs and streams, mixed jobs", "3"),
    ]  # fmt: skip
    assert "recorded {" in capsys.readouterr().out


def test_after_its_minutes_no_further_row_is_begun(tmp_path: Path) -> None:
    times = iter([0.0, 59.0, 61.0, 62.0])
    options = Namespace(minutes=1, fuse=False, steps=4, rows=0, repeats=1)
    page, bench = gpu.Page(tmp_path / "out.md", options, "none", lambda: next(times)), gpu.Bench(gpu.SIZES["tiny"], "cpu", 4)
    for images in (1, 2, 3):
        page.row(bench, "tiny", "diffusers, eager", images, lambda: 1.0, 1)
    assert ROW.findall((tmp_path / "out.md").read_text()) == [("diffusers, eager", "1")] and page.skipped == 2


def test_what_was_measured_stays_when_it_is_ended_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ended(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu.Bench, "celadon", ended)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, *ASKED, "--out", str(tmp_path / "ended.md"))
    assert ROW.findall((tmp_path / "ended.md").read_text()) == [("diffusers, eager", "1"), ("diffusers, eager", "3")]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="sees no GPU"):
        run(monkeypatch)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_sizes_are_those_of_the_models(name: str) -> None:
    """Parameters as counted of the released checkpoints: 859.5 and 2567 millions."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**gpu.SIZES[name].unet)
    millions = sum(weight.numel() for weight in unet.parameters()) / 1e6
    assert millions == pytest.approx({"sd15": 859.5, "sdxl": 2567.5}[name], abs=0.3)
