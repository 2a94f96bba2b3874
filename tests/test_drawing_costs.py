"""What an evaluation costs is told as a mean of a second of work, so that one slow tick decides nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.job import Job
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.events import Event, Progress
from pipelines.loading import load
from pipelines.text_to_image import TorchStages
from tests.job_samples import sample_job
from training.toy import write_toy
from workers.drawing import DrawingThread
from workers.messages import Draw, Measured


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


class Measuring(DrawingThread):
    """A drawing thread that never starts: its ticks are told to it."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        super().__init__(self.told.append)

    def tick(self, job: Job, images: int, seconds: float) -> None:
        if job.id not in self._jobs:
            self._take(Draw(job))
        events: list[Event] = [Progress(f"{job.id}/{index}", 1, 20) for index in range(images)]
        self._measure(events, seconds)


def test_a_slow_first_tick_is_one_of_many() -> None:
    thread, job = Measuring(), sample_job()
    thread.tick(job, 1, 0.2)
    for _ in range(79):
        thread.tick(job, 1, 0.01)
        assert thread.told == []
    thread.tick(job, 1, 0.02)
    (measured,) = thread.told
    assert (measured.width, measured.height) == (64, 64)
    assert measured.seconds == pytest.approx(1.01 / 81)


def test_a_sample_is_due_when_its_job_is(toy: Path) -> None:
    """By the clock of the engine, which is not that of the record."""
    checkpoint = load(toy, device=torch.device("cpu"), dtype=torch.float32)
    thread = DrawingThread(lambda report: None)
    stages = TorchStages(checkpoint)
    engine = Engine(TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype))
    thread._models[checkpoint.card.id] = stages, engine
    for deadline_at, left in ((time.time() + 50, 50), (time.time() - 5, -5), (None, None)):
        due = thread._sample(sample_job(model=checkpoint.card.id, deadline_at=deadline_at), 0).due
        assert (due is None) if left is None else due - time.monotonic() == pytest.approx(left, abs=3)


def test_images_of_one_tick_share_its_time_and_sizes_are_told_apart() -> None:
    thread, small, large = Measuring(), sample_job(), sample_job(size=128)
    thread.tick(large, 1, 0.9)
    thread.tick(small, 4, 1.0)
    assert thread.told == [Measured(small.params.model, 64, 64, 0.25)]
    thread.tick(large, 1, 0.3)
    assert thread.told[1] == Measured(small.params.model, 128, 128, pytest.approx(0.6))
