"""Drafts that differ in nothing but their words and seed are settled once: most clients ask for the same over and over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from jobs.job import JobWarning
from pipelines.card import ModelCard
from pipelines.params import GenerationParams
from service.drafts import NO_PICTURES, Draft, Resolved, acting_embeddings, check_texts, resolve, seed_of, settle, words_warning
from service.inputs import Pictures
from service.settings import Settings

MOST = 1000  # drafts that are remembered

OPTIONS = tuple(f.name for f in fields(Draft) if "Mapping" in str(f.type))
PLAIN = tuple(f.name for f in fields(Draft) if f.name not in {*OPTIONS, "prompt", "negative_prompt", "seed", "image", "mask"})


class Settled(NamedTuple):
    card: ModelCard
    params: Mapping[str, Any]
    steps_total: int
    warnings: tuple[JobWarning, ...]


class Resolver:
    """`drafts.resolve`, faster."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._settled: OrderedDict[Hashable, Settled] = OrderedDict()

    def resolve(self, draft: Draft, card: ModelCard, given: Pictures = NO_PICTURES) -> Resolved:
        """Raises what `drafts.resolve` raises."""
        if given.image or given.mask or any(getattr(draft, name) for name in OPTIONS):
            return resolve(draft, card, self._settings, given)
        check_texts(draft, card, self._settings)
        key = (card.id, not draft.prompt, not draft.negative_prompt, *(getattr(draft, name) for name in PLAIN))
        settled = self._settled.get(key)
        if settled is None or settled.card is not card:  # a worker has announced another card of that model
            settled = self._remember(key, draft, card)
        own = {"prompt": draft.prompt, "negative_prompt": draft.negative_prompt, "seed": seed_of(draft)}
        own["embeddings"] = acting_embeddings(draft, card)
        params = GenerationParams(**{**settled.params, **own})
        return Resolved(params, settled.steps_total, (*settled.warnings, *words_warning(draft, card)))

    def _remember(self, key: Hashable, draft: Draft, card: ModelCard) -> Settled:
        made = settle(draft, card, self._settings)
        params = {f.name: getattr(made.params, f.name) for f in fields(made.params)}
        self._settled[key] = settled = Settled(card, params, made.steps_total, made.warnings)
        if len(self._settled) > MOST:
            self._settled.popitem(last=False)
        return settled
