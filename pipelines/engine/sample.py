"""Sample: one image in flight. What is asked for is frozen; where it stands is small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.controls import Control
from pipelines.engine.calls import Memory, Row
from pipelines.engine.slots import AVERAGE
from pipelines.engine.update import Sums
from pipelines.guidance_plan import Plan, plan
from pipelines.known import Known, Start
from pipelines.noise import NormalStream
from pipelines.prompts import Worn
from pipelines.step_table import StepTable

Array = Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One image to draw: its table, its seed, and its conditioning.

    `shape` is the latent's (C, h, w). `cond` and `uncond` are text embeddings [L, E] on the engine's device, of any lengths; `uncond` may
    be None where no row is guided. `told` and `uncond_told` are what the model is told beside them, if it is told anything. `known` is
    the picture that it begins with, `control` what a ControlNet is shown, if there are any. A row of guidance 1 costs one U-Net row
    instead of two. `guidance_rescale` is taken where the options do not say. The U-Net's deep layers are asked at every
    `cache_interval`-th row of the table, which changes the picture a little where it is not 1, and goes with no ControlNet. Raises
    ValueError for guidance that the options contradict.
    """

    id: str
    table: StepTable
    shape: tuple[int, int, int]
    seed: int
    cond: Array
    uncond: Array | None = None
    told: NDArray[np.float32] | None = None
    uncond_told: NDArray[np.float32] | None = None
    guidance: float = 1.0
    guidance_rescale: float = 0.0
    guidance_options: Mapping[str, Any] = field(default_factory=dict)
    preview: bool = False  # now and then
    previews: frozenset[int] = frozenset()  # always, after so many rows
    known: Known | None = None
    worn: Worn = ()
    cache_interval: int = 1
    control: Control | None = None
    due: float | None = None  # when it is to be done, by the clock of `Engine.step`
    plan: Plan = field(init=False)
    script: NDArray[np.float32] = field(init=False)  # [rows, 10], what the engine is told of each row

    def __post_init__(self) -> None:
        made = plan(self.guidance, self.guidance_rescale, self.guidance_options, self.table.step)
        table, columns = self.table, made.columns
        script = np.column_stack([table.c_in, table.timestep, table.c_skip, table.c_out, columns]).astype(np.float32)
        object.__setattr__(self, "plan", made)  # derived, so that it cannot differ from what was asked for
        object.__setattr__(self, "script", script)
        if self.guided and self.uncond is None:
            raise ValueError(f"sample {self.id}: guidance {self.guidance} needs an unconditional embedding")

    @property
    def guided(self) -> bool:
        """Whether any row is."""
        return self.plan.ever_guided

    def live(self, row: int) -> tuple[int, ...]:
        """Which registers still matter before `row`: those of its table, and the average of guidance with momentum."""
        kept = self.plan.remembers and row < len(self.table)
        return (*self.table.live(row), *([AVERAGE] if kept else []))


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """An image in flight, small and complete: the next row, and the registers that rows from there on read.

    The generator's position follows from the row: going on draws again what was drawn before and throws it away.
    """

    row: int
    rows: int  # of its table
    live: tuple[int, ...]  # registers of the table, as in STATE, or AVERAGE
    registers: NDArray[np.float32]  # [len(live), C, h, w]

    def fits(self, sample: Sample) -> bool:
        """Whether this is a state of that sample: the same length, size, and registers in use."""
        table = sample.table
        if self.rows != len(table) or not 0 <= self.row <= self.rows or self.registers.shape[1:] != sample.shape:
            return False
        if self.row % sample.cache_interval and self.row < self.rows:
            return False  # what deep layers said is not kept
        return self.live == sample.live(self.row) and len(self.live) == len(self.registers)


@dataclass(slots=True, eq=False)
class InFlight:
    """Where a sample stands: its slot, its next table row, its noise, and when it last moved."""

    sample: Sample
    slot: int
    arrived: int  # number of arrival: age, whatever the clock does
    noise: NormalStream
    sums: tuple[Sums, ...]  # what each row of the table does
    start: Start  # what it began with
    row: int = 0
    served: int = 0  # tick of the last row
    previewed: float = float("-inf")  # seconds, the caller's clock
    drawn: NDArray[np.float32] | None = field(default=None)  # this row's noise, kept if the row must be tried again
    memory: Memory | None = None
    kept: Saved | None = None  # its last state from which it can be resumed, where that is not the present one

    @property
    def done(self) -> bool:
        return self.row == len(self.sample.table)

    @property
    def left(self) -> int:
        """Rows."""
        return len(self.sample.table) - self.row

    @property
    def guided(self) -> bool:
        """Whether the next row needs the unconditional output too."""
        return self.sample.plan.guided(self.row)

    @property
    def rescaled(self) -> bool:
        """Whether the next row's guidance is."""
        return self.sample.plan.rescaled(self.row)

    @property
    def mark(self) -> str:
        """How the next row's third output is disturbed; empty where it has none."""
        return self.sample.plan.mark_at(self.row)

    @property
    def rows(self) -> int:
        """U-Net rows of the next tick."""
        return self.sample.plan.unet_rows(self.row)

    @property
    def variant(self) -> str:
        """Of the next row's guidance."""
        return self.sample.plan.variants[self.row]

    @property
    def remembers(self) -> bool:
        """Whether the next row's guidance reads and writes the average."""
        return self.sample.plan.remembers_at(self.row)

    def ask(self, role: str) -> Row:
        """The next row's question to the model: cond, uncond, or cond disturbed."""
        sample, uncond = self.sample, role == "uncond"
        context, told = (sample.uncond, sample.uncond_told) if uncond else (sample.cond, sample.told)
        mark = self.mark if role == "disturbed" else ""
        control = sample.control if sample.control is not None and sample.control.rows[self.row] else None
        return Row(context, mark, told, sample.worn, role, self.row, self.memory, control)

    def scalars(self) -> NDArray[np.float32]:
        """c_in, timestep, c_skip, c_out of the next row, then the columns of its guidance: [10]."""
        row: NDArray[np.float32] = self.sample.script[self.row]
        return row

    def row_noise(self) -> NDArray[np.float32] | None:
        """One standard normal [C, h, w] where the row asks for it, drawn once however often the row is tried."""
        if not self.sample.table.noisy[self.row]:
            return None
        if self.drawn is None:
            self.drawn = self.noise.draw(self.sample.shape)
        return self.drawn

    def advance(self, tick: int) -> None:
        self.row_noise()  # a draw that nothing reads still moves the stream
        self.row += 1
        self.served = tick
        self.drawn = None
