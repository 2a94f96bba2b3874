"""Texts and pictures beside the ticks: the same bytes as at once, and nobody who draws waits for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.lanes import Fetched, Here, Stream
from pipelines.loading import Checkpoint, load
from pipelines.planning import decoded, to_pixels
from pipelines.prompts import Reading
from pipelines.text_to_image import Begun, TorchStages
from tests import checkpoints
from tests.test_drawing import Studio, job
from training.toy import write_toy
from workers.messages import Advanced, Draw, Drawn, Drop, Exported, Save


class Held(Here):
    """What is fetched is not there until it is asked for, or let out."""

    def __init__(self) -> None:
        self.out = threading.Event()
        self.begun = 0

    def fetch(self, *made: torch.Tensor) -> Fetched:
        lane, there = self, super().fetch(*made)
        lane.begun += 1

        class Waiting:
            @property
            def ready(self) -> bool:
                return lane.out.is_set()

            def arrays(self) -> list[Any]:
                return there.arrays()

        return Waiting()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.set_num_threads(1)
    return load(write_toy(tmp_path_factory.mktemp("toy")), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def lane() -> Held:
    return Held()


@pytest.fixture
def studio(checkpoint: Checkpoint, lane: Held) -> Iterator[Studio]:
    studio = Studio(checkpoint, slots=3, pictures=lane)
    yield studio
    studio.thread.stop()


def latents_of(checkpoint: Checkpoint, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(checkpoint.latent_shape(64, 48), dtype=np.float32)


def test_a_picture_that_was_begun_is_that_of_the_plain_way(checkpoint: Checkpoint) -> None:
    plain, beside = TorchStages(checkpoint), TorchStages(checkpoint, Here(), Here())
    for seed in range(4):
        latents = latents_of(checkpoint, seed)
        assert np.array_equal(beside.begin(latents).pixels(), plain.decode(latents))
    assert np.array_equal(beside.encode("a red apple").states, plain.encode("a red apple").states)


def test_numbers_become_pixels_on_the_device_as_on_the_host() -> None:
    """Halves between two levels, what lies beyond, and its neighbours in float32."""
    levels = np.arange(-2, 514, dtype=np.float32) / 2 / np.float32(255) * 2 - 1
    values = np.concatenate([levels, np.nextafter(levels, np.float32(9)), np.nextafter(levels, np.float32(-9))])
    image = np.stack([values, values[::-1], np.roll(values, 7)]).reshape(3, 2, -1)
    config = SimpleNamespace(scaling_factor=1.0, shift_factor=None)
    vae = SimpleNamespace(dtype=torch.float32, config=config, decode=lambda z, return_dict: (torch.from_numpy(image.copy())[None],))
    of: Any = SimpleNamespace(vae=vae, device=torch.device("cpu"))
    assert np.array_equal(Begun(of, np.zeros((4, 1, 1), np.float32), Here()).pixels(), to_pixels(image))
    image[1, 0, 3] = np.nan
    with pytest.raises(FloatingPointError):
        Begun(of, np.zeros((4, 1, 1), np.float32), Here()).pixels()


def test_a_vae_that_overflows_beside_decodes_again_in_single_precision(checkpoint: Checkpoint) -> None:
    latents = latents_of(checkpoint, 0)

    class Overflown(Here):
        def fetch(self, *made: torch.Tensor) -> Fetched:
            return super().fetch(made[0], torch.tensor(False))

    stages = TorchStages(checkpoint, pictures=Overflown())
    pixels, again = decoded(stages, latents, stages.begin(latents))
    assert again and np.array_equal(pixels, stages.decode(latents, exact=True))


def test_others_are_drawn_while_a_picture_is_decoded(studio: Studio, lane: Held, checkpoint: Checkpoint) -> None:
    short, long = job("short"), job("long", steps=30, seed=2)
    for one in (long, short):
        studio.thread.put(Draw(one))
    [first] = studio.until(Drawn, short)
    ends = [i for i, report in enumerate(studio.seen) if isinstance(report, Advanced) and report.job is long and report.done == 30]
    assert ends and studio.seen.index(first) > ends[0], "as long as something is drawn, nobody waits for it"
    [second] = studio.until(Drawn, long)
    at_once = Studio(checkpoint, slots=3)
    for one in (long, short):
        at_once.thread.put(Draw(one))
    wanted = [at_once.until(Drawn, one)[0].pixels for one in (short, long)]
    at_once.thread.stop()
    assert np.array_equal(first.pixels, wanted[0]) and np.array_equal(second.pixels, wanted[1])
    ends = [i for i, report in enumerate(at_once.seen) if isinstance(report, Advanced) and report.job is long and report.done == 30]
    assert not ends or [type(r) for r in at_once.seen].index(Drawn) < ends[0], "where it is there at once, it is handed over at once"


def test_a_picture_is_handed_over_as_soon_as_it_is_there(studio: Studio, lane: Held) -> None:
    short, long = job("short"), job("long", steps=200, seed=2)
    for one in (long, short):
        studio.thread.put(Draw(one))
    studio.until(Advanced, short, 4)
    lane.out.set()
    [drawn] = studio.until(Drawn, short)
    studio.until(Advanced, long, 200)
    assert any(isinstance(report, Advanced) and report.job is long for report in studio.seen[studio.seen.index(drawn) :])


def test_what_is_being_decoded_can_be_saved_and_dropped(studio: Studio, lane: Held) -> None:
    gone, long = job("gone"), job("long", steps=200, seed=2)
    for one in (long, gone):
        studio.thread.put(Draw(one))
    studio.until(Advanced, gone, 4)
    studio.thread.put(Save(gone))
    [exported] = studio.until(Exported, gone)
    assert exported.images[0].row == exported.images[0].rows == 4
    studio.thread.put(Drop(gone))
    again = replace(gone, attempt=2)
    studio.thread.put(Draw(again, saved=exported.images))
    [drawn] = studio.until(Drawn, again)
    assert lane.begun >= 2 and not any(isinstance(r, Drawn) and r.job is gone for r in studio.seen)
    plain = job("plain")
    studio.thread.put(Draw(plain))
    assert np.array_equal(drawn.pixels, studio.until(Drawn, plain)[0].pixels)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_streams_make_what_one_stream_makes(name: str, tmp_path: Path) -> None:
    """While the caller's stream is busy, and after memory went from hand to hand."""
    folder, device = checkpoints.write(tmp_path / name, name), torch.device("cuda")
    checkpoint = load(folder, device=device, dtype=torch.bfloat16)
    plain, beside = TorchStages(checkpoint), TorchStages(checkpoint, Stream(device), Stream(device))
    busy = torch.randn(4096, 4096, device=device)
    for seed in range(20):
        latents = torch.from_numpy(latents_of(checkpoint, seed)).to(device)
        wanted, words = plain.decode(latents), plain.encode(f"{seed} apples", Reading())
        for _ in range(8):
            busy = (busy @ busy).tanh()
        begun = beside.begin(latents + 0)  # the caller keeps nothing of it
        text = beside.encode(f"{seed} apples", Reading())
        assert torch.equal(text.states + 0, words.states)
        assert words.pooled is None or np.array_equal(text.pooled, words.pooled)
        assert np.array_equal(begun.pixels(), wanted) and begun.ready
