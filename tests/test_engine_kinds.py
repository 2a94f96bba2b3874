"""Images that begin with a picture, in the engine on closed forms: any batch, any row, torch registers, and every sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.known import Known, Posterior
from pipelines.noise import NormalStream
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from tests.fakes import RowwiseDenoiser
from tests.test_engine import LADDER, SHAPE, OnTorch, mixed_sample, run, sample

PICTURE = Posterior(*(NormalStream(seed).draw(SHAPE) for seed in (1, 2)))
HIDDEN = Posterior(*(NormalStream(seed).draw(SHAPE) for seed in (3, 4)))
MASK = np.zeros((1, *SHAPE[1:]), np.float32)
MASK[:, 2:6, 3:] = 1
KNOWN = {
    "image": Known(PICTURE),
    "inpaint": Known(PICTURE, MASK),
    "noise": Known(PICTURE, MASK, from_noise=True),
}


class Looks(RowwiseDenoiser):
    """An inpainting model: what it sees beside the latents moves its output."""

    def __call__(self, x: Any, timestep: Any, context: Any) -> Any:
        assert x.shape[1] == 2 * SHAPE[0] + 1
        return super().__call__(x[:, :4], timestep, context) + np.float32(0.1) * x[:, 4:5] * x[:, 5:]


def beginning(name: str, kind: str, **changes: Any) -> Sample:
    strength = 1.0 if KNOWN[kind].from_noise else 0.6
    table = compile_table(LADDER, changes.pop("sampler", "dpmpp_2m_sde"), "karras", 8, strength=strength)
    return sample(name, table=table, known=KNOWN[kind], **changes)


def ended(engine: Engine, *samples: Sample) -> dict[str, np.ndarray]:
    for one in samples:
        engine.add(one)
    found = run(engine)
    assert all(isinstance(event, Finished) for event in found.values())
    return {name: np.asarray(event.latents) for name, event in found.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{}, {"rows": 2}, {"max_rows": 3}])
def test_kinds_in_one_batch_with_text_equal_their_solo_runs(options: dict[str, int]) -> None:
    own = [beginning(f"{kind} {seed}", kind, seed=seed) for kind in KNOWN for seed in (5, 6)]
    text = [mixed_sample(index) for index in (0, 2, 3, 9)]
    together = ended(Engine(RowwiseDenoiser(), **options), *own, *text)
    for one in (*own, *text):
        np.testing.assert_array_equal(together[one.id], ended(Engine(RowwiseDenoiser(), **options), one)[one.id])


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_keeps_what_is_known_and_goes_on_from_every_row(name: str, kind: str) -> None:
    wanted = beginning("s", kind, sampler=name)
    whole = ended(Engine(RowwiseDenoiser()), wanted)["s"]
    engine = Engine(RowwiseDenoiser())
    engine.add(wanted)
    for _ in range(len(wanted.table) - 1):
        engine.step(0.0)
        saved = engine.export("s")
        assert saved is not None
        engine = Engine(RowwiseDenoiser())
        engine.add(wanted, saved)
    found = run(engine)["s"]
    assert isinstance(found, Finished)
    np.testing.assert_array_equal(found.latents, whole)
    if kind != "image":
        stays = np.broadcast_to(MASK == 0, SHAPE)
        np.testing.assert_array_equal(whole[stays], PICTURE.sample(NormalStream(wanted.seed))[stays])
        assert (whole[~stays] != PICTURE.sample(NormalStream(wanted.seed))[~stays]).all()


@pytest.mark.parametrize("kind", KNOWN)
def test_torch_registers_give_what_numpy_registers_give(kind: str) -> None:
    wanted = beginning("s", kind)
    on_torch = replace(wanted, cond=torch.from_numpy(wanted.cond), uncond=torch.from_numpy(wanted.uncond))
    found = ended(Engine(OnTorch(), rows=2), on_torch)["s"]
    np.testing.assert_allclose(found, ended(Engine(RowwiseDenoiser()), wanted)["s"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("from_noise", [True, False])
def test_an_inpainting_model_sees_mask_and_picture_with_every_row(from_noise: bool) -> None:
    own = [replace(beginning(f"s{seed}", "image", seed=seed), known=Known(PICTURE, MASK, from_noise, HIDDEN)) for seed in (5, 6)]
    together = ended(Engine(Looks(), rows=3), *own)
    for one in own:
        np.testing.assert_array_equal(together[one.id], ended(Engine(Looks()), one)[one.id])
    blind = replace(own[0], known=Known(PICTURE, MASK * 0, from_noise, HIDDEN))
    assert (ended(Engine(Looks()), blind)[blind.id] != together[blind.id]).any()
