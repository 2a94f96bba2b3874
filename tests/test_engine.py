"""The engine on closed-form denoisers: mixed batches, isolation of failures, fairness between sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import array_api_compat.torch
import numpy as np
import pytest
import torch

from pipelines.engine import update
from pipelines.engine.engine import Engine
from pipelines.engine.events import Event, Failed, Finished, Preview, Progress
from pipelines.engine.sample import Sample
from pipelines.ladder import Ladder
from pipelines.noise import NormalStream
from pipelines.samplers import compile_table
from pipelines.step_table import MEMORIES
from tests.fakes import NotFinite, Poisoned, RowwiseDenoiser, sd_ladder_config

LADDER = Ladder.from_config(sd_ladder_config())
SHAPE = (4, 8, 8)

# sampler, schedule, steps, guidance, rescale, shape, tick of joining
MIXED = [
    ("euler", "karras", 7, 5.0, 0.0, SHAPE, 0),
    ("ddim", "leading", 12, 1.0, 0.0, SHAPE, 0),
    ("euler_a", "exponential", 9, 3.0, 0.7, SHAPE, 1),
    ("heun", "trailing", 5, 7.5, 0.0, (4, 8, 12), 1),
    ("dpm2", "linspace", 6, 2.0, 0.0, SHAPE, 2),
    ("dpmpp_2m", "karras", 15, 4.0, 0.5, SHAPE, 3),
    ("dpmpp_2m_sde", "simple", 8, 1.0, 0.0, (4, 8, 12), 3),
    ("unipc", "auto", 10, 6.0, 0.0, SHAPE, 4),
    ("lcm", "auto", 4, 1.0, 0.0, SHAPE, 6),
    ("ddpm", "leading", 11, 3.0, 0.0, SHAPE, 8),
    ("ddim", "cosine", 6, 5.0, 0.0, (4, 4, 4), 9),
    ("euler", "sigmoid", 20, 1.5, 1.0, SHAPE, 11),
    ("dpmpp_2m_cfgpp", "karras", 8, 0.6, 0.0, SHAPE, 2),
    ("dpmpp_2s_a_cfgpp", "trailing", 4, 1.6, 0.4, (4, 8, 12), 5),
    ("seeds_3", "exponential", 4, 3.0, 0.0, SHAPE, 3),
    ("sa_solver", "leading", 9, 1.0, 0.0, SHAPE, 7),
]


def sample(name: str, **changes: Any) -> Sample:
    fields: dict[str, Any] = {
        "id": name,
        "table": compile_table(LADDER, "euler", "karras", 5),
        "shape": SHAPE,
        "seed": 7,
        "cond": context(0.3),
        "uncond": context(-0.2),
        "guidance": 4.0,
    }
    return Sample(**fields | changes)


def context(value: float) -> Any:
    return np.full((3, 2), value, np.float32)


def mixed_sample(index: int) -> Sample:
    sampler, schedule, steps, guidance, rescale, shape, _ = MIXED[index]
    return sample(
        f"s{index}",
        table=compile_table(LADDER, sampler, schedule, steps),
        shape=shape,
        seed=1000 + index,
        cond=context(0.1 * index),
        guidance=guidance,
        guidance_rescale=rescale,
    )


def run(engine: Engine) -> dict[str, Event]:
    """Tick until nothing is in flight; the last event of every sample."""
    last: dict[str, Event] = {}
    while engine.busy:
        last |= {e.sample_id: e for e in engine.step(0.0)}
    return last


def solo(index: int, **options: Any) -> Any:
    engine = Engine(RowwiseDenoiser(), **options)
    engine.add(mixed_sample(index))
    finished = run(engine)[f"s{index}"]
    assert isinstance(finished, Finished)
    return finished.latents


@pytest.mark.parametrize("options", [{}, {"rows": 2}, {"rows": 5}, {"max_rows": 3}])
def test_samples_of_every_kind_in_one_batch_equal_their_solo_runs(options: dict[str, int]) -> None:
    engine = Engine(RowwiseDenoiser(), slots=16, **options)
    last: dict[str, Event] = {}
    tick = 0
    while engine.busy or tick <= 11:
        for index, row in enumerate(MIXED):
            if row[-1] == tick:
                engine.add(mixed_sample(index))
        last |= {e.sample_id: e for e in engine.step(float(tick))}
        tick += 1
    for index in range(len(MIXED)):
        finished = last[f"s{index}"]
        assert isinstance(finished, Finished)
        np.testing.assert_array_equal(finished.latents, solo(index))


@pytest.mark.parametrize("index", range(len(MIXED)))
def test_the_fused_update_equals_the_slow_twin(index: int) -> None:
    """The engine's matrix product against one coefficient after the other."""
    wanted, denoiser, stream = mixed_sample(index), RowwiseDenoiser(), NormalStream(1000 + index)
    table, scale = wanted.table, np.float32(wanted.guidance)
    registers = {name: np.zeros(wanted.shape, np.float32) for name in ("anchor", *(f"m{i}" for i in range(1, MEMORIES + 1)))}
    registers["x"] = np.float32(table.init) * stream.draw(wanted.shape)
    for row in range(len(table)):
        x = registers["x"]
        c_in, t, c_skip, c_out = (np.float32(c[row]) for c in (table.c_in, table.timestep, table.c_skip, table.c_out))
        cond, uncond = (denoiser(x[None] * c_in, np.array([t]), c[None])[0] for c in (wanted.cond, wanted.uncond))
        uncond = uncond if wanted.guided else cond
        raw = uncond + scale * (cond - uncond)
        if wanted.guidance_rescale:
            phi = wanted.guidance_rescale
            raw = phi * raw * cond.std(ddof=1) / raw.std(ddof=1) + (1 - phi) * raw
        noise = stream.draw(wanted.shape) if table.noisy[row] else np.zeros(wanted.shape, np.float32)
        basis = registers | {"denoised": c_skip * x + c_out * raw, "denoised_uncond": c_skip * x + c_out * uncond, "noise": noise}
        registers = table.advance(row, basis)
    np.testing.assert_allclose(solo(index), registers["x"], rtol=2e-4, atol=2e-5)


def test_guidance_costs_two_rows_and_guidance_one_costs_one() -> None:
    denoiser = RowwiseDenoiser()
    engine = Engine(denoiser)
    engine.add(sample("guided"))
    engine.add(sample("free", guidance=1.0, uncond=None))
    engine.step(0.0)
    assert denoiser.calls == [3]


def test_calls_of_a_backend_that_is_not_batch_invariant_have_one_size() -> None:
    denoiser = RowwiseDenoiser()
    engine = Engine(denoiser, rows=4)
    for i in range(3):
        engine.add(sample(f"s{i}"))
    run(engine)
    assert set(denoiser.calls) == {4}


def test_progress_counts_rows_and_ends_with_finished() -> None:
    engine = Engine(RowwiseDenoiser())
    engine.add(sample("s", table=compile_table(LADDER, "heun", "karras", 3)))
    events = [e for _ in range(5) for e in engine.step(0.0)]
    assert [(e.done, e.total) for e in events if isinstance(e, Progress)] == [(i, 5) for i in range(1, 6)]
    assert isinstance(events[-1], Finished)
    assert not engine.busy


def test_previews_come_at_most_once_per_interval_and_only_when_asked_for() -> None:
    engine = Engine(RowwiseDenoiser(), preview_interval_s=1.0)
    engine.add(sample("watched", preview=True))
    engine.add(sample("quiet", seed=8))
    previews = [e for now in (0.0, 0.5, 1.0, 1.5, 2.0) for e in engine.step(now) if isinstance(e, Preview)]
    assert [p.sample_id for p in previews] == ["watched"] * 2  # at 0 and 1; at 2 it is finished
    assert previews[0].denoised.shape == SHAPE


def test_previews_that_are_asked_for_by_their_rows_know_no_interval() -> None:
    engine = Engine(RowwiseDenoiser(), preview_interval_s=60.0)
    engine.add(sample("named", table=compile_table(LADDER, "heun", "karras", 6), previews=frozenset({2, 3, 7, 99})))
    events = [e for _ in range(11) for e in engine.step(0.0)]
    assert [e.at for e in events if isinstance(e, Preview)] == [2, 3, 7]


def test_cancel_takes_effect_at_once_and_frees_the_slot() -> None:
    engine = Engine(RowwiseDenoiser(), slots=1)
    engine.add(sample("a"))
    engine.step(0.0)
    assert engine.cancel("a")
    assert not engine.cancel("a")
    assert engine.step(0.0) == []
    engine.add(sample("b"))
    assert isinstance(run(engine)["b"], Finished)


def test_a_slot_that_was_used_before_leaves_no_trace() -> None:
    first = Engine(RowwiseDenoiser(), slots=1)
    first.add(sample("old", table=compile_table(LADDER, "unipc", "auto", 9)))
    run(first)
    first.add(mixed_sample(5))
    finished = run(first)["s5"]
    assert isinstance(finished, Finished)
    np.testing.assert_array_equal(finished.latents, solo(5))


def test_a_full_engine_and_a_known_sample_are_refused() -> None:
    engine = Engine(RowwiseDenoiser(), slots=2)
    engine.add(sample("a"))
    with pytest.raises(ValueError, match="already in flight"):
        engine.add(sample("a"))
    engine.add(sample("b"))
    with pytest.raises(ValueError, match="no free slot"):
        engine.add(sample("c"))


def test_guidance_without_an_unconditional_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an unconditional embedding"):
        sample("s", uncond=None)


@pytest.mark.parametrize(
    ("denoiser", "code"),
    [
        (NotFinite(), "not_finite"),
        (Poisoned(RuntimeError("boom")), "engine_error"),
        (Poisoned(MemoryError()), "out_of_memory"),
    ],
)
def test_one_samples_failure_never_touches_its_neighbours(denoiser: RowwiseDenoiser, code: str) -> None:
    engine = Engine(denoiser)
    for index in (0, 2, 4):
        engine.add(mixed_sample(index))
    engine.step(0.0)
    engine.add(sample("bad", cond=context(666)))
    last = run(engine)
    failed = last["bad"]
    assert isinstance(failed, Failed)
    assert failed.code == code
    assert "666" not in failed.message
    for index in (0, 2, 4):
        finished = last[f"s{index}"]
        assert isinstance(finished, Finished)
        np.testing.assert_array_equal(finished.latents, solo(index))


def test_no_size_starves() -> None:
    """A crowd of one size and a single sample of another take turns."""
    engine = Engine(RowwiseDenoiser(), slots=16)
    for i in range(8):
        engine.add(sample(f"crowd{i}", seed=i, table=compile_table(LADDER, "ddim", "leading", 50)))
    engine.add(sample("rare", shape=(4, 8, 12)))
    ticks = 0
    while not any(isinstance(e, Finished) and e.sample_id == "rare" for e in engine.step(0.0)):
        ticks += 1
    assert ticks <= 2 * 5


def test_a_pass_that_is_too_full_serves_everybody_in_turn() -> None:
    engine = Engine(RowwiseDenoiser(), slots=8, max_rows=4)
    for i in range(6):
        engine.add(sample(f"s{i}", seed=i))
    moved = [{e.sample_id for e in engine.step(0.0)} for _ in range(3)]
    assert set.union(*moved) == {f"s{i}" for i in range(6)}
    assert all(len(m) == 2 for m in moved)


def test_memory_of_a_size_that_nobody_draws_is_given_back() -> None:
    engine = Engine(RowwiseDenoiser(), slots=4)
    for width in range(4, 40):
        engine.add(sample("s", shape=(4, 4, width)))
        engine.step(0.0)
        engine.cancel("s")
    assert engine._pools == {}


class OnTorch(RowwiseDenoiser):
    """The same function on torch tensors, as on a GPU."""

    xp = array_api_compat.torch
    device = torch.device("cpu")

    def __call__(self, x: Any, timestep: Any, context: Any) -> Any:
        return torch.from_numpy(super().__call__(x.numpy(), timestep.numpy(), context.numpy()))


@pytest.mark.parametrize("index", range(len(MIXED)))
def test_torch_registers_give_what_numpy_registers_give(index: int) -> None:
    """The code path of a GPU, on the CPU: registers, indexing and update through array_api_compat.torch."""
    engine = Engine(OnTorch(), rows=2)
    wanted = mixed_sample(index)
    engine.add(replace(wanted, cond=torch.from_numpy(wanted.cond), uncond=torch.from_numpy(wanted.uncond)))
    engine.step(0.0)
    saved = engine.export(wanted.id)
    assert saved is not None
    finished = run(engine)[wanted.id]
    assert isinstance(finished, Finished)
    np.testing.assert_allclose(finished.latents.numpy(), solo(index), rtol=1e-4, atol=2e-5)


def test_a_failing_update_is_tried_again_in_halves_and_moves_nobody_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model answers; the device has no memory left for the update of more than two samples, which it says at its end."""
    combine = update.combine

    def fails_late(xp: Any, pool: Any, slots: Any, sums: Any) -> Any:
        yield from combine(xp, pool, slots, sums)
        if len(slots) > 2:
            raise MemoryError

    monkeypatch.setattr(update, "combine", fails_late)
    engine = Engine(RowwiseDenoiser())
    for index in (0, 2, 4, 5):
        engine.add(mixed_sample(index))
    last = run(engine)
    for index in (0, 2, 4, 5):
        finished = last[f"s{index}"]
        assert isinstance(finished, Finished)
        np.testing.assert_array_equal(finished.latents, solo(index))


class Placed(RowwiseDenoiser):
    """Rounds a row by its place where rows begin at odd addresses, as float32 on a CPU does."""

    def __call__(self, x: Any, timestep: Any, context: Any) -> Any:
        out = super().__call__(x, timestep, context)
        odd = x[0].size % 16 or context.shape[1] % 2 == 0
        return out + np.float32(1e-6) * np.arange(len(x), dtype=np.float32)[:, None, None, None] if odd else out


@pytest.mark.parametrize(("shape", "text", "size"), [((4, 9, 13), 3, 1), ((4, 8, 8), 4, 1), ((4, 8, 8), 3, 2)])
def test_where_the_place_in_a_call_tells_rows_go_alone(shape: tuple[int, int, int], text: int, size: int) -> None:
    """What is true of one latent shape and length of text is not of another."""

    def one(name: str, **changes: Any) -> Any:
        texts = {role: np.full((text, 2), value, np.float32) for role, value in (("cond", 0.3), ("uncond", -0.2))}
        return sample(name, shape=shape, **texts, **changes)

    def drawn(names: list[str]) -> tuple[dict[str, Any], set[int]]:
        denoiser = Placed()
        engine = Engine(denoiser, rows=2)
        engine.add(sample("even"))
        run(engine)
        for name in names:
            engine.add(one(name, seed=int(name), guidance=1.0 if name == "0" else 4.0))
        found = run(engine)
        return {name: found[name].latents for name in names}, set(denoiser.calls[-3:])

    crowd, calls = drawn(["0", "1", "2"])
    for name, latents in crowd.items():
        np.testing.assert_array_equal(latents, drawn([name])[0][name])
    assert calls == {size}
