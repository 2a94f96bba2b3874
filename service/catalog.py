"""What the gateway reads from Redis and remembers for a moment: the models' cards, and the secret of image URLs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from redis.exceptions import RedisError

from jobs.image_store import Signer
from jobs.registry import Registry
from pipelines.card import ModelCard
from service.errors import NoModel, UnknownModel, shown
from service.option_values import nearest
from service.settings import Settings

CARDS_TTL_S = 1.0  # a new worker's card is seen within a second; an empty catalog is never remembered
SECRET_TTL_S = 30.0  # made once, but all gateways must find together again after a Redis was emptied

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """A value fetched again after `ttl_s`; while Redis is away the last one is good enough. An empty one is not kept."""

    def __init__(self, fetch: Callable[[], Awaitable[Value]], ttl_s: float) -> None:
        self._fetch, self._ttl_s = fetch, ttl_s
        self._value: Value | None = None
        self._fresh_until = 0.0

    async def get(self) -> Value:
        """Raises RedisError only if there was never a value."""
        old = self._value
        if old is not None:
            if time.monotonic() < self._fresh_until:
                return old
            self._fresh_until = time.monotonic() + self._ttl_s  # one asks; the others take the old one meanwhile
        try:
            value = await self._fetch()
        except RedisError:
            if old is None:
                raise
            return old
        self._value, self._fresh_until = value or None, time.monotonic() + self._ttl_s
        return value


def alias(model: str | None, settings: Settings) -> str | None:
    """The model that a name behind /v1 stands for."""
    return settings.openai_models.get(model, model) if model else model


class Catalog:
    """The models that workers have announced. The gateway knows models only from here."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._cards = Remembered(self._fetch, CARDS_TTL_S)
        self._registry, self._default = registry, settings.default_model

    async def cards(self) -> Mapping[str, ModelCard]:
        """By id, the default model first."""
        return await self._cards.get()

    async def _fetch(self) -> Mapping[str, ModelCard]:
        cards = await self._registry.cards()
        return {model: cards[model] for model in sorted(cards, key=lambda m: (m != self._default, m))}

    async def card(self, model: str | None) -> ModelCard:
        """The card of that model, or of the default one. Raises UnknownModel, NoModel, RedisError."""
        cards = await self.cards()
        if not cards:
            raise NoModel()
        if model is None and self._default and self._default not in cards:
            raise NoModel("No worker has announced the default model yet.")
        if model is None:
            return next(iter(cards.values()))
        if model not in cards:
            raise UnknownModel(f"There is no model {shown(model)!r}.{nearest(model, cards)}", param="model")
        return cards[model]


class ImageLinks:
    """Makes and checks signed image URLs. Nothing of a URL is stored: it is made when a job is told.

    They are signed by the newest secret of the settings and checked by all of them, so that one can be replaced; where none is set,
    by one that lies in Redis.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._made = Remembered(registry.image_secret, SECRET_TTL_S)
        self._set = settings.signing_secrets
        self._ttl_s = settings.image_ttl_s

    async def _signer(self) -> Signer:
        return Signer(self._set or await self._made.get())

    async def sign(self, keys: list[str]) -> list[str]:
        """`/images/{key}?...` for each key, good for `image_ttl_s`. Raises RedisError."""
        if not keys:
            return []
        signer = await self._signer()
        expires = int(time.time()) + self._ttl_s
        return [f"/images/{key}?{signer.sign(key, expires)}" for key in keys]

    async def verify(self, key: str, exp: str, kid: str, sig: str) -> None:
        """Raises jobs.image_store.BadSignature, jobs.image_store.Expired, RedisError."""
        (await self._signer()).verify(key, exp, kid, sig, int(time.time()))
