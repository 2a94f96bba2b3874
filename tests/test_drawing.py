"""The drawing thread: what one job does to itself never reaches another."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from jobs.job import Job
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.sample import Saved
from pipelines.lanes import Lane
from pipelines.loading import Checkpoint, load
from pipelines.params import GenerationParams
from pipelines.planning import Stages
from pipelines.text_to_image import TorchStages, denoise, encode_prompt
from training.toy import write_toy
from workers.drawing import DrawingThread
from workers.messages import Advanced, Broken, Draw, Drawn, Drop, Exported, Hold, Report, Save, Warned

TIMEOUT_S = 30


class Poisoned(TorchDenoiser):
    """Cannot evaluate rows of one prompt."""

    def __init__(self, checkpoint: Checkpoint, prompt: str) -> None:
        super().__init__(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)
        self._poison = encode_prompt(checkpoint, prompt).numpy()

    def __call__(self, x: Any, timestep: Any, context: Any) -> Any:
        if any(np.array_equal(c, self._poison) for c in context):
            raise RuntimeError("poison")
        return super().__call__(x, timestep, context)


class Studio:
    """A running drawing thread and everything it has reported."""

    def __init__(self, checkpoint: Checkpoint, slots: int, pictures: Lane | None = None) -> None:
        self._reports: queue.Queue[Report] = queue.Queue()
        engine = Engine(Poisoned(checkpoint, "poison"), slots=slots, rows=4)
        self.thread = DrawingThread(self._reports.put)
        self.thread.put(Hold(checkpoint.card.id, TorchStages(checkpoint, pictures=pictures), engine))
        self.thread.start()
        self.seen: list[Report] = []

    def until(self, wanted: type[Report], job: Job, count: int = 1) -> list[Any]:
        """Reports of this kind and job, once there are `count` of them."""
        found: list[Any] = [r for r in self.seen if isinstance(r, wanted) and r.job is job]
        while len(found) < count:
            report = self._reports.get(timeout=TIMEOUT_S)
            self.seen.append(report)
            if isinstance(report, wanted) and report.job is job:
                found.append(report)
        return found


def drawn_alone(stages: Stages, denoiser: Any) -> tuple[np.ndarray, list[str]]:
    """A picture as a worker draws it, and the codes of what is told of it."""
    reports: queue.Queue[Report] = queue.Queue()
    thread = DrawingThread(reports.put)
    thread.put(Hold(stages.card.id, stages, Engine(denoiser, slots=2, rows=4)))
    thread.start()
    thread.put(Draw(job("one")))
    seen: list[Report] = []
    while not (seen and isinstance(seen[-1], Drawn)):
        seen.append(reports.get(timeout=TIMEOUT_S))
    thread.stop()
    return seen[-1].pixels, [report.warning.code for report in seen if isinstance(report, Warned)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.set_num_threads(1)
    return load(write_toy(tmp_path_factory.mktemp("toy")), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def studio(checkpoint: Checkpoint) -> Iterator[Studio]:
    studio = Studio(checkpoint, slots=3)
    yield studio
    studio.thread.stop()


def job(name: str, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "prompt": "a red apple",
        "model": "toy",
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance": 3.0,
        "sampler": "euler",
        "schedule": "auto",
        "seed": 1,
    }
    return Job(id=name, client="default", params=GenerationParams(**fields | changes), attempt=1)


def test_a_poisoned_job_breaks_alone(studio: Studio) -> None:
    alone, among, bad = job("alone"), job("among"), job("bad", prompt="poison", num_images=2)
    studio.thread.put(Draw(alone))
    [reference] = studio.until(Drawn, alone)
    studio.thread.put(Draw(among))
    studio.thread.put(Draw(bad))
    [broken] = studio.until(Broken, bad)
    [drawn] = studio.until(Drawn, among)
    assert broken.code == "engine_error"
    assert "poison" not in broken.message
    np.testing.assert_array_equal(drawn.pixels, reference.pixels)
    assert sum(isinstance(r, Broken) for r in studio.seen) == 1, "a job of two images breaks once"


def test_more_images_than_slots_wait_their_turn(studio: Studio) -> None:
    many = job("many", num_images=7)
    studio.thread.put(Draw(many))
    assert sorted(d.index for d in studio.until(Drawn, many, 7)) == list(range(7))


def test_an_impossible_table_breaks_with_its_reason(studio: Studio) -> None:
    wrong = job("wrong", sampler="no_such_sampler")
    studio.thread.put(Draw(wrong))
    [broken] = studio.until(Broken, wrong)
    assert broken.code == "unsupported"
    assert "no_such_sampler" in broken.message


def test_a_dropped_job_says_nothing_more_and_may_come_back_as_another_attempt(studio: Studio) -> None:
    first, second = job("same", steps=40), job("same", steps=4)
    studio.thread.put(Draw(first))
    studio.until(Advanced, first)
    studio.thread.put(Drop(first))
    studio.thread.put(Draw(second))
    studio.until(Drawn, second)
    assert not any(isinstance(r, Drawn) and r.job is first for r in studio.seen)


def test_a_prompt_that_is_cut_is_said_once_per_job(studio: Studio) -> None:
    long = job("long", prompt="a red apple and " * 40, num_images=2)
    studio.thread.put(Draw(long))
    studio.until(Drawn, long, 2)
    assert len(studio.until(Warned, long)) == 1


def test_a_vae_that_overflows_fails_the_job_and_not_the_thread(checkpoint: Checkpoint, studio: Studio) -> None:
    weight = checkpoint.vae.decoder.conv_out.bias
    kept = weight.detach().clone()
    weight.data.fill_(float("nan"))
    black = job("black")
    studio.thread.put(Draw(black))
    [broken] = studio.until(Broken, black)
    assert broken.code == "not_finite"
    weight.data.copy_(kept)
    fine = job("fine")
    studio.thread.put(Draw(fine))
    studio.until(Drawn, fine)


def test_a_job_goes_on_in_another_thread_where_it_was_saved(checkpoint: Checkpoint) -> None:
    """Images in flight, without a slot, and drawn already: the second worker draws the rest, and all are the same."""
    wanted = job("long", sampler="dpmpp_2m_sde", steps=12, num_images=5)
    first, second, alone = (Studio(checkpoint, slots=2) for _ in range(3))
    alone.thread.put(Draw(wanted))
    reference = {d.index: d.pixels for d in alone.until(Drawn, wanted, 5)}
    first.thread.put(Draw(wanted))
    drawn = {d.index: d.pixels for d in first.until(Drawn, wanted, 2)}
    first.thread.put(Save(wanted))
    [exported] = first.until(Exported, wanted)
    late = {r.index: r.pixels for r in first.seen if isinstance(r, Drawn)}
    assert exported.images, "an image was in flight"
    assert not set(exported.images) & set(late)
    again = replace(wanted, attempt=2)
    second.thread.put(Draw(again, exported.images, frozenset(late)))
    rest = {d.index: d.pixels for d in second.until(Drawn, again, 5 - len(late))}
    assert not set(rest) & set(drawn)
    for index, pixels in (late | rest).items():
        np.testing.assert_array_equal(pixels, reference[index])
    for studio in (first, second, alone):
        studio.thread.stop()
    steps = [r.done for r in second.seen if isinstance(r, Advanced) and r.index in exported.images]
    assert min(steps) > 1, "no row is done twice"


def test_latents_that_wait_for_decoding_are_part_of_a_checkpoint(studio: Studio, checkpoint: Checkpoint) -> None:
    wanted = job("ready", steps=3)
    studio.thread.put(Draw(wanted))
    [reference] = studio.until(Drawn, wanted)
    latents = denoise(checkpoint, wanted.params)
    again = replace(wanted, attempt=2)
    studio.thread.put(Draw(again, {0: Saved(3, 3, (0,), latents[None])}))
    [drawn] = studio.until(Drawn, again)
    assert not any(isinstance(r, Advanced) and r.job is again for r in studio.seen)
    assert np.abs(drawn.pixels.astype(int) - reference.pixels).max() <= 1


def test_a_checkpoint_of_another_job_breaks_it_with_the_reason(studio: Studio) -> None:
    wanted = job("wrong")
    studio.thread.put(Draw(wanted, {0: Saved(1, 99, (0,), np.zeros((1, 4, 8, 8), np.float32))}))
    [broken] = studio.until(Broken, wanted)
    assert broken.code == "unsupported"
