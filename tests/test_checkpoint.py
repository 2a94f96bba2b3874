"""An image in flight is small and complete: stopped at any row and gone on with elsewhere, it is the same picture."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.engine import checkpoint
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Saved
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.step_table import STATE
from tests.fakes import RowwiseDenoiser, sd_ladder_config
from tests.test_engine import LADDER, mixed_sample, run, sample

ZERO_SNR = Ladder.from_config(sd_ladder_config(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_goes_on_from_every_row_bit_for_bit(name: str, guidance: float) -> None:
    """After each row the image moves, as bytes, to a new engine and into other company."""
    wanted = sample("s", table=compile_table(LADDER, name, "karras", 5), guidance=guidance, guidance_rescale=0.3)
    whole = Engine(RowwiseDenoiser())
    whole.add(wanted)
    uninterrupted = run(whole)["s"]
    engine = Engine(RowwiseDenoiser())
    engine.add(wanted)
    for row in range(1, len(wanted.table)):
        engine.step(0.0)
        saved = engine.export("s")
        assert saved is not None and saved.row == row
        [(number, loaded)] = checkpoint.load(checkpoint.dump({3: saved})).items()
        assert number == 3
        engine = Engine(RowwiseDenoiser())
        engine.add(sample(f"company of row {row}", seed=99 + row))
        engine.add(wanted, loaded)
    resumed = run(engine)["s"]
    assert isinstance(resumed, Finished) and isinstance(uninterrupted, Finished)
    np.testing.assert_array_equal(resumed.latents, uninterrupted.latents)


@pytest.mark.parametrize("ladder", [LADDER, ZERO_SNR], ids=["epsilon", "zero-snr"])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_only_registers_that_are_read_again_are_kept(name: str, ladder: Ladder) -> None:
    """Scrambling every dead register changes nothing; so the live ones are enough. Scrambling a live one does."""
    table = compile_table(ladder, name, "auto", 6)
    rng = np.random.default_rng(0)
    for row in range(len(table)):
        state = {name: rng.standard_normal(5) for name in STATE}
        live = {STATE[i] for i in table.live(row)}
        scrambled = {k: v if k in live else v + 1e3 for k, v in state.items()}
        outputs = rng.standard_normal((2, len(table), 5))
        ends = [_go_on(table, row, start, outputs) for start in (state, scrambled)]
        np.testing.assert_array_equal(ends[0], ends[1])
        for register in live:
            touched = _go_on(table, row, state | {register: state[register] + 1.0}, outputs)
            assert not np.array_equal(touched, ends[0])


def _go_on(table, row, state, outputs):  # type: ignore[no-untyped-def]
    for r in range(row, len(table)):
        denoised = outputs[0, r] + np.tanh(state["x"])  # the model reads x, and nothing else of the state
        basis = state | {"denoised": denoised, "denoised_uncond": denoised, "noise": outputs[1, r]}
        state = table.advance(r, basis)
    return state["x"]


def test_a_checkpoint_of_something_else_is_refused() -> None:
    engine = Engine(RowwiseDenoiser())
    engine.add(mixed_sample(5))
    engine.step(0.0)
    saved = engine.export("s5")
    assert saved is not None
    for other in (mixed_sample(0), mixed_sample(3), mixed_sample(7)):
        with pytest.raises(ValueError, match="no state of sample"):
            Engine(RowwiseDenoiser()).add(other, saved)
    with pytest.raises(ValueError, match="no state of sample"):
        Engine(RowwiseDenoiser()).add(mixed_sample(5), Saved(1, saved.rows, (0,), saved.registers[:1]))
    assert engine.export("nobody") is None


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"x" * 100])
def test_bytes_that_are_no_checkpoint_are_a_clear_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        checkpoint.load(data)


def test_a_checkpoint_is_small() -> None:
    """A multistep sampler at 64 px: x and one memory, 1 KiB each, and a little around them."""
    engine = Engine(RowwiseDenoiser())
    engine.add(mixed_sample(5))
    engine.step(0.0)
    saved = engine.export("s5")
    assert saved is not None
    assert [STATE[i] for i in saved.live] == ["x", "m1"]
    assert len(checkpoint.dump({0: saved})) < 2 * 1024 + 1024
