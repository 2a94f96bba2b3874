"""Deep layers asked at every n-th evaluation alone (DeepCache): both backends, engine and slow twin, crowds, resumed images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from pipelines.denoiser import Denoiser
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine import checkpoint as archive
from pipelines.engine.engine import Engine
from pipelines.engine.events import Failed, Finished
from pipelines.engine.sample import Sample
from pipelines.infotext import infotext
from pipelines.ladder import Ladder
from pipelines.loading import Checkpoint, load
from pipelines.openvino_model import OpenVinoDenoiser
from pipelines.params import GenerationParams
from pipelines.planning import table_for
from pipelines.samplers import compile_table
from pipelines.text_to_image import denoise, encode_text
from service import drafts
from service.errors import InvalidValue
from service.settings import Settings
from tests.cards import card
from tests.fakes import sd_ladder_config
from tests.test_openvino_graphs import SMALL, UNETS, draws, forms, relative, saved

LADDER = Ladder.from_config(sd_ladder_config())
MINI = Path(__file__).parents[1] / "models" / "celadon-mini"
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[UNet2DConditionModel, OpenVinoDenoiser]:
    folder = tmp_path_factory.mktemp("unet")
    torch.manual_seed(0)
    module = UNet2DConditionModel(**SMALL | UNETS["deep"]).eval()
    config = saved(folder, module)
    return module, OpenVinoDenoiser(forms(folder, config), config)


def on_torch(module: UNet2DConditionModel) -> TorchDenoiser:
    return TorchDenoiser(module, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("size", [(8, 8), (11, 14)], ids=["even", "odd"])
def test_both_backends_remember_and_recall_the_same(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = UNet2DConditionModel(**SMALL | UNETS[name]).eval()
    config = saved(tmp_path, module)
    graph, eager = OpenVinoDenoiser(forms(tmp_path, config), config), on_torch(module)
    x, t, context = draws(config, 3, size)
    (out, deep), (wanted, heard) = graph.remember(x, t, context), eager.remember(x, t, context)
    assert relative(out, eager(x, t, context)) < 1e-5
    assert np.array_equal(wanted, eager(x, t, context))
    assert relative(deep, heard) < 1e-5
    assert relative(eager.recall(x, t, context, heard), wanted) < 1e-5  # of the same moment nothing is lost
    later, stale = t - 0.2, x + np.float32(0.1)
    assert relative(graph.recall(stale, later, context, deep), eager.recall(stale, later, context, heard)) < 1e-5
    assert relative(eager.recall(stale, later, context, heard), eager(stale, later, context)) > 1e-4  # and it does recall
    assert np.array_equal(eager(x, t, context), wanted)  # the module is whole again


def sample(name: str, **changes: Any) -> Sample:
    rng = np.random.default_rng(len(name))
    cond, uncond = rng.standard_normal((2, 7, 24), dtype=np.float32)
    fields: dict[str, Any] = {"table": compile_table(LADDER, "euler", "karras", 7), "shape": SHAPE, "seed": 7, "guidance": 4.0}
    return Sample(id=name, cond=cond, uncond=uncond, **fields | changes)


def crowd() -> list[Sample]:
    heun, noisy = compile_table(LADDER, "heun", "trailing", 5), compile_table(LADDER, "euler_a", "exponential", 9)
    return [
        sample("plain"), sample("third", cache_interval=3), sample("second", cache_interval=2, table=heun, shape=(4, 8, 12)),
        sample("some", cache_interval=4, table=noisy, guidance_options={"start": 0.3, "end": 0.7}, seed=3),
        sample("pag", cache_interval=2, guidance_options={"pag_scale": 2.0}), sample("rest", cache_interval=10, table=noisy, guidance=1.0),
    ]  # fmt: skip


def run(denoiser: Denoiser, samples: list[Sample], **options: Any) -> dict[str, np.ndarray]:
    engine = Engine(denoiser, **options)
    for one in samples:
        engine.add(one)
    found = {}
    while engine.busy:
        for event in engine.step(0.0):
            assert not isinstance(event, Failed), event
            if isinstance(event, Finished):
                found[event.sample_id] = event.latents
    return found


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_crowd_in_which_some_remember_changes_no_bit(backend: str, rows: int | None, pair: Any) -> None:
    denoiser = on_torch(pair[0]) if backend == "torch" else pair[1]
    together = run(denoiser, crowd(), rows=rows)
    for one in crowd():
        assert np.array_equal(run(denoiser, [one], rows=rows)[one.id], together[one.id]), one.id


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_an_image_that_remembers_is_resumed_at_any_row_without_a_changed_bit(backend: str, pair: Any) -> None:
    denoiser = on_torch(pair[0]) if backend == "torch" else pair[1]
    for one in crowd()[1:]:
        whole = run(denoiser, [one])[one.id]
        for row in (1, 4, len(one.table) - 1):
            engine, after = Engine(denoiser), Engine(denoiser)
            engine.add(one)
            for _ in range(row):
                engine.step(0.0)
            kept = engine.export(one.id)
            assert kept is not None
            assert kept.row == row - row % one.cache_interval
            after.add(one, archive.load(archive.dump({0: kept}))[0])
            events = [event for _ in range(len(one.table) - kept.row) for event in after.step(0.0)]
            assert np.array_equal(events[-1].latents, whole), (one.id, row)  # type: ignore[union-attr]


def test_a_state_between_two_askings_is_none(pair: Any) -> None:
    one, engine = sample("plain"), Engine(on_torch(pair[0]))
    engine.add(one)
    engine.step(0.0)
    kept = engine.export("plain")
    assert kept is not None
    with pytest.raises(ValueError, match="no state"):
        Engine(on_torch(pair[0])).add(dataclasses.replace(one, cache_interval=2), kept)


class Counting(TorchDenoiser):
    """Counts rows by the part of the network they take."""

    def __init__(self, module: UNet2DConditionModel, fails: int = 0) -> None:
        super().__init__(module, device=torch.device("cpu"), dtype=torch.float32)
        self.whole, self.recalled, self._fails = 0, 0, fails

    def remember(self, x: Any, *rest: Any, **named: Any) -> Any:
        self.whole += len(x)
        return super().remember(x, *rest, **named)

    def recall(self, x: Any, *rest: Any, **named: Any) -> Any:
        self.recalled += len(x)
        if self._fails and len(x) > 2:
            self._fails -= 1
            raise RuntimeError("too many")
        return super().recall(x, *rest, **named)


def test_deep_layers_are_asked_at_every_nth_row_alone(pair: Any) -> None:
    denoiser = Counting(pair[0])
    run(denoiser, [sample("third", cache_interval=3, table=compile_table(LADDER, "euler", "karras", 8))], rows=2)
    measuring = 2 * 2  # whether a row's place among two tells
    assert (denoiser.whole - measuring, denoiser.recalled - measuring) == (2 * 3, 2 * 5)  # rows 0, 3 and 6 of two


def test_a_call_that_fails_is_tried_again_with_what_was_remembered(pair: Any) -> None:
    crowd = [sample(name, cache_interval=3) for name in ("one", "three")]
    denoiser = Counting(pair[0], fails=3)
    together = run(denoiser, crowd)
    for one in crowd:
        assert np.array_equal(run(on_torch(pair[0]), [one])[one.id], together[one.id])


@pytest.mark.parametrize(
    "changes", [{}, {"sampler": "heun"}, {"guidance_options": {"pag_scale": 2.0, "start": 0.4}}], ids=["plain", "heun", "pag"]
)
def test_the_engine_recalls_as_its_slow_twin_does(changes: dict[str, Any]) -> None:
    checkpoint = load(MINI, device=torch.device("cpu"), dtype=torch.float32)
    params = GenerationParams(**{
        "prompt": "a blue frog", "model": "celadon-mini", "width": 128, "height": 128, "steps": 9, "guidance": 3.0, "sampler": "euler",
        "schedule": "auto", "seed": 5, "cache_interval": 3,
    } | changes)  # fmt: skip
    wanted = denoise(checkpoint, params)
    cond, uncond = (encoded(checkpoint, text) for text in ("a blue frog", ""))
    one = Sample(
        id="x", table=table_for(checkpoint, params), shape=(4, 16, 16), seed=5, cond=cond, uncond=uncond, guidance=3.0, cache_interval=3,
        guidance_rescale=checkpoint.card.defaults.guidance_rescale, guidance_options=params.guidance_options,
    )  # fmt: skip
    denoiser = TorchDenoiser(checkpoint.unet, device=torch.device("cpu"), dtype=torch.float32)
    assert relative(run(denoiser, [one])["x"], wanted) < 1e-4
    whole = denoise(checkpoint, dataclasses.replace(params, cache_interval=1))
    assert 1e-3 < relative(wanted, whole) < 0.5


@pytest.mark.parametrize("interval", [0, -1, 11])
def test_an_interval_out_of_bounds_is_refused(interval: int) -> None:
    with pytest.raises(InvalidValue, match="cache_interval must be from 1 to 10"):
        drafts.resolve(drafts.Draft(prompt="a", cache_interval=interval), card(), Settings())
    assert "Cache interval: 3" in infotext(
        drafts.resolve(drafts.Draft(prompt="a", cache_interval=3), card(), Settings()).params, 1, "", "", ""
    )


def encoded(checkpoint: Checkpoint, text: str) -> np.ndarray:
    return encode_text(checkpoint, text).states.numpy()
