"""All that a worker does otherwise on a GPU, together: registers of torch, recorded calls, lanes; every kind of job in one crowd. On a CPU
with the stand-ins, where pictures must be those of the usual way; on a GPU with graphs and streams.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.conditioning import Text
from pipelines.denoiser import fixed_rows
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.known import Pixels
from pipelines.lanes import Here, Stream
from pipelines.loading import Checkpoint, load
from pipelines.prompts import PLAIN, Reading
from pipelines.replay import CudaRecorder, Replay
from pipelines.text_to_image import TorchStages
from tests import test_architectures, test_controlnet
from tests.picture_samples import sample_picture
from tests.test_architectures import SIZE, Worker, asked
from tests.test_controlnet import SHOWN, control
from tests.test_replay import Counting, OnTorch, Told
from workers.drawing import DrawingThread
from workers.messages import Hold, Inputs
from workers.warm import made_ready

folders, nets = test_architectures.folders, test_controlnet.nets

PICTURE = sample_picture(SIZE[1], SIZE[0])
MASK = np.zeros(SIZE, np.uint8)
MASK[8:24, 8:40] = 255
ROWS = 4

KINDS: list[tuple[dict[str, Any], Inputs | None]] = [
    ({}, None),
    ({"guidance": 1.0, "sampler": "euler_a", "seed": 7}, None),
    ({"sampler": "dpmpp_2m_sde", "steps": 6, "guidance_options": {"variant": "apg", "momentum": -0.5, "end": 0.7}}, None),
    ({"sampler": "heun", "steps": 4, "guidance_options": {"pag_scale": 2.0, "rescale": 0.5}}, None),
    ({"steps": 6, "cache_interval": 2}, None),
    ({"prompt": "a red apple, " * 40, "prompt_syntax": "a1111", "sampler": "unipc"}, None),
    ({"controlnet": control(end=0.6)}, None),
    ({"kind": "image_to_image", "image": "k", "strength": 0.6}, Inputs(PICTURE, None)),
    ({"kind": "inpaint", "image": "k", "mask": "k"}, Inputs(PICTURE, MASK)),
    ({"upscale": {"width": 80, "height": 56, "steps": 4, "strength": 0.5, "method": "latent"}}, None),
]  # fmt: skip


class StagesOnTorch(TorchStages):
    """As on a GPU: states are torch's."""

    def encode(self, prompt: str | None, reading: Reading = PLAIN) -> Text:
        text = super().encode(prompt, reading)
        return Text(torch.as_tensor(text.states), text.pooled)


class OnGpu(Worker):
    """A worker that draws as on a GPU, on the device of its checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self._reports, self.tell = checkpoint, queue.Queue[Any](), Told()
        cuda, device = checkpoint.device.type == "cuda", checkpoint.device
        parts: dict[str, Any] = {"told": checkpoint.told, "controlnets": checkpoint.controlnets}
        plain = (TorchDenoiser if cuda else OnTorch)(checkpoint.unet, device=device, dtype=checkpoint.dtype, **parts)
        self.recorder: Any = CudaRecorder(device) if cuda else Counting()
        self.replay = Replay(plain, self.recorder, self.tell)
        lanes = (Stream(device), Stream(device)) if cuda else (Here(), Here())
        stages = (TorchStages if cuda else StagesOnTorch)(checkpoint, *lanes)
        about = stages.latent_shape(SIZE[1], SIZE[0]), stages.encode("").states, checkpoint.told.width
        rows = fixed_rows(plain, *about) if cuda else ROWS
        with self.replay.warming((rows,)):
            made_ready(self.replay, *about, (rows,), "")
        self._thread = DrawingThread(self._reports.put)
        self._thread.put(Hold(checkpoint.card.id, stages, Engine(self.replay, slots=len(KINDS), rows=rows)))
        self._thread.start()

    def draw_each(self, name: str) -> list[Pixels]:
        """One after the other."""
        return [self.draw(asked(name, **said), inputs=inputs, control=SHOWN)[0] for said, inputs in KINDS]

    def draw_all(self, name: str) -> list[Pixels]:
        """In one crowd: those that begin with a picture, and the others."""
        found: dict[int, Pixels] = {}
        for wanted in {id(inputs): inputs for _, inputs in KINDS}.values():
            places = [i for i, (_, inputs) in enumerate(KINDS) if inputs is wanted]
            pictures = self.draw(*(asked(name, **KINDS[i][0]) for i in places), inputs=wanted, control=SHOWN)
            found |= dict(zip(places, pictures, strict=True))
        return [found[i] for i in range(len(KINDS))]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_on(folders: Callable[[str], Path], nets: Callable[[str], Path], name: str) -> Iterator[Callable[[str, type[Worker]], Worker]]:
    opened: list[Worker] = []

    def open_it(device: str, kind: type[Worker]) -> Worker:
        checkpoint = load(folders(name), device=torch.device(device), dtype=torch.float32, controlnets=nets(name))
        opened.append(kind(checkpoint))
        return opened[-1]

    yield open_it
    for worker in opened:
        worker.stop()


def test_pictures_are_those_of_the_usual_way(open_on: Callable[[str, type[Worker]], Any], name: str) -> None:
    """Within one level of 255: mean and deviation are added up in another order. Alone and in a crowd to the bit."""
    usual, worker = open_on("cpu", Worker), open_on("cpu", OnGpu)
    together, alone = worker.draw_all(name), worker.draw_each(name)
    for (said, inputs), crowd, single in zip(KINDS, together, alone, strict=True):
        [wanted] = usual.draw(asked(name, **said), inputs=inputs, control=SHOWN)
        assert np.array_equal(crowd, single), said
        assert np.abs(crowd.astype(int) - wanted).max() <= 1, said
    assert len({picture.tobytes() for picture in together}) == len(KINDS), "kinds that drew alike would make this empty"
    assert {"disturbed rows", "deep layers", "ControlNet"} <= set(worker.tell.reasons())
    assert worker.recorder.replays > 20 * worker.recorder.recordings


@pytest.mark.gpu
def test_on_a_gpu_no_picture_depends_on_its_neighbours_and_memory_stays(open_on: Callable[[str, type[Worker]], Any], name: str) -> None:
    usual, worker = open_on("cpu", Worker), open_on("cuda", OnGpu)
    together, held = worker.draw_all(name), list[int]()
    for _ in range(6):  # until all that is asked often is recorded
        assert all(map(np.array_equal, worker.draw_each(name), together))
        assert all(map(np.array_equal, worker.draw_all(name), together))
        held.append(torch.cuda.memory_reserved())
    assert held[-1] == held[-2]
    for (said, inputs), picture in zip(KINDS, together, strict=True):
        [wanted] = usual.draw(asked(name, **said), inputs=inputs, control=SHOWN)
        assert np.abs(picture.astype(int) - wanted).mean() < 2, said
