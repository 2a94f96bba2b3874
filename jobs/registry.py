"""Who is there: the models that workers have announced, the workers that are alive, and the secret that gateways share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from jobs.figures import oldest
from jobs.shards import Shards
from pipelines.card import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process as it describes itself. `slots` images fit at once, `busy` of them are taken."""

    id: str
    models: tuple[str, ...]
    device: str
    backend: str
    slots: int
    busy: int
    version: str
    started_at: float
    ready: bool


def pseudonym(worker_id: str) -> str:
    """What a worker is called before those who need not know its host: the same as long as it lives. Its id ends in what nobody guesses."""
    return f"worker-{hashlib.sha256(worker_id.encode()).hexdigest()[:12]}"


class Registry:
    """What workers and gateways know of each other. It lies in the first shard; that a worker lives is told to all of them."""

    def __init__(self, redis: Redis | Shards) -> None:
        self._shards = Shards.of(redis)
        self._redis, self._scripts = self._shards.first.redis, self._shards.first
        self._read: dict[str, tuple[str, ModelCard]] = {}

    async def announce(self, card: ModelCard) -> None:
        """Makes a model known for good: jobs for it are accepted also while no worker is up."""
        await self._scripts.run("announce", card.id, json.dumps(card.to_dict()))

    async def cards(self) -> dict[str, ModelCard]:
        """Every model ever announced, by id. As long as a card says the same, it is the same object."""
        texts = cast(dict[str, str], await self._redis.hgetall(self._scripts.key("cards")))
        self._read = {id_: self._card(id_, text) for id_, text in sorted(texts.items())}
        return {id_: card for id_, (_, card) in self._read.items()}

    def _card(self, id_: str, text: str) -> tuple[str, ModelCard]:
        before, card = self._read.get(id_, ("", None))
        return (text, card) if card and before == text else (text, ModelCard.from_dict(json.loads(text)))

    async def beat(self, worker: WorkerInfo, ttl_s: float = 15) -> None:
        """Shows the worker as alive for the next `ttl_s` seconds."""
        told = json.dumps(dataclasses.asdict(worker))
        await self._shards.each(lambda shard: shard.run("beat", worker.id, ttl_s, told))

    async def leave(self, worker_id: str) -> None:
        """Takes a worker that ends in good order off the list at once."""
        await self._shards.each(lambda shard: shard.run("leave", worker_id))

    async def workers(self) -> list[WorkerInfo]:
        """The workers that are alive, by id."""
        found = [json.loads(text) for text in await self._scripts.run("workers")]
        return sorted((WorkerInfo(**{**w, "models": tuple(w["models"])}) for w in found), key=lambda w: w.id)

    async def waiting(self) -> dict[str, float]:
        """Model -> seconds for which the oldest of its jobs that wait has waited."""
        return await oldest(self._shards)

    async def image_secret(self) -> bytes:
        """32 bytes that sign image URLs: made by the first gateway, the same for all of them ever after.

        Asked for before it is made: a server that is full or read-only tells it, but refuses even a SET that changes nothing."""
        key = self._scripts.key("secret")
        if not (kept := await self._redis.get(key)):
            await self._redis.set(key, secrets.token_hex(32), nx=True)
            kept = await self._redis.get(key)
        return bytes.fromhex(cast(str, kept))
