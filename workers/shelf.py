"""The models of a worker: those it draws with now, those it may take from disk, and the change between them (`workers.swaps`)."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace

import structlog

from pipelines.card import ModelCard
from workers.messages import Command, Forget, Hold
from workers.model import Model, ModelRefused
from workers.swaps import plan

log = structlog.get_logger("worker")

GONE_S = 60.0  # for the drawing thread to let a model go; the watch knows what to do with one that never does


@dataclass(frozen=True, slots=True)
class Ware:
    """A model that the worker may draw with: its card, what it takes in memory, and how it comes."""

    card: ModelCard
    bytes: int
    open: Callable[[], Model]


class Shelf:
    """Lives on the asyncio thread; the drawing thread hears what it is to hold."""

    def __init__(self, wares: Mapping[str, Ware], *, budget: int = 0, stay_s: float = 30.0) -> None:
        self._wares, self._budget, self._stay_s = dict(wares), budget, stay_s
        self._here: dict[str, float] = {}  # model -> when it came (monotonic seconds)
        self._leaving: frozenset[str] = frozenset()

    @classmethod
    def of(cls, card: ModelCard) -> Shelf:
        """One model that is here already."""
        shelf = cls({card.id: Ware(card, 0, lambda: _never(card))})
        shelf._here[card.id] = time.monotonic()
        return shelf

    @property
    def cards(self) -> dict[str, ModelCard]:
        return {model: ware.card for model, ware in self._wares.items()}

    @property
    def claimable(self) -> list[str]:
        """Models whose jobs may be taken now."""
        return [model for model in self._here if model not in self._leaving]

    @property
    def whole(self) -> bool:
        """Whether every model is here, so that there is nothing to change."""
        return len(self._here) == len(self._wares)

    def fill(self) -> list[Model]:
        """Open what fits, in the order that the settings name. Raises ModelRefused, also for one that does not fit alone."""
        for model, ware in self._wares.items():
            if self._budget and ware.bytes > self._budget:
                wants = f"{model} takes {ware.bytes / 1e6:.0f} MB"
                raise ModelRefused(
                    f"CELADON_MODEL_MEMORY_MB: {wants}, and there are to be {self._budget / 1e6:.0f} for all models together"
                )
        opened, taken = list[Model](), 0
        for model, ware in list(self._wares.items()):
            if self._budget and taken + ware.bytes > self._budget:
                continue
            opened.append(self._open(model))
            taken += ware.bytes
            self._here[model] = time.monotonic()
        return opened

    def _open(self, model: str) -> Model:
        """What its card says of LoRAs is known from then on. Raises ModelRefused."""
        opened = self._wares[model].open()
        self._wares[model] = replace(self._wares[model], card=opened.stages.card)
        return opened

    async def make_room(self, waiting: Mapping[str, float], busy: Set[str], put: Callable[[Command], None]) -> str:
        """One look at what waits: the model that is to be fetched now, if any; those in its way have gone.

        `busy` are the models of all jobs that are held; nothing must be claimed meanwhile.
        """
        now = time.monotonic()
        here = {model: now - since for model, since in self._here.items()}
        sizes = {model: ware.bytes for model, ware in self._wares.items()}
        wish = plan(sizes, here, waiting, busy, budget=self._budget, stay_s=self._stay_s)
        self._leaving = frozenset(wish.leaving)
        for model in wish.leaving if wish.load else ():
            await self._let_go(model, put)
        return wish.load

    async def _let_go(self, model: str, put: Callable[[Command], None]) -> None:
        del self._here[model]
        gone = threading.Event()
        put(Forget(model, gone))
        await asyncio.to_thread(gone.wait, GONE_S)
        gc.collect()
        log.info("model_left", model=model)

    async def fetch(self, model: str, put: Callable[[Command], None]) -> None:
        """Open it beside what is drawn. One that can no longer be opened is struck off: others may have it still."""
        began = time.monotonic()
        try:
            opened = await asyncio.to_thread(self._open, model)
        except ModelRefused as error:
            del self._wares[model]
            log.error("model_lost", model=model, reason=str(error))
            return
        put(Hold(model, opened.stages, opened.engine))
        self._here[model], self._leaving = time.monotonic(), frozenset()
        log.info("model_came", model=model, seconds=round(time.monotonic() - began, 1))


def _never(card: ModelCard) -> Model:
    raise ModelRefused(f"{card.id} does not come again")
