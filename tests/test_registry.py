"""What workers announce is what gateways read; the dead are forgotten, models and the secret are not."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError

from jobs.hooks import HookQueue
from jobs.registry import Registry, WorkerInfo
from jobs.shards import Shards
from pipelines.card import Defaults, GuidanceInfo, ModelCard, OptionInfo, SamplerInfo, ScheduleInfo
from tests.job_samples import Clock

CARD = ModelCard(
    id="toy",
    title="Toy",
    description="A model for tests",
    license="Apache-2.0",
    hash="abc",
    prediction_type="epsilon",
    width=64,
    height=64,
    max_width=512,
    max_height=512,
    size_multiple=8,
    max_steps=150,
    max_prompt_tokens=77,
    defaults=Defaults(),
    samplers=(
        SamplerInfo(
            id="ddim", name="DDIM", aliases=("k_ddim",), evals_first=(1,), options={"eta": OptionInfo(default=0.0, minimum=0, maximum=1)}
        ),
    ),
    schedules=(ScheduleInfo(id="karras", name="Karras", curve=(1.5, -2.5)),),
    guidances=(GuidanceInfo(id="cfg", name="CFG", options={"scales": OptionInfo(default=(), many=True)}),),
    words=("apple", "red"),
)


def worker(id_: str, **fields: object) -> WorkerInfo:
    known = {
        "models": ("toy",),
        "device": "cpu",
        "backend": "torch",
        "slots": 4,
        "busy": 1,
        "version": "0.1.0",
        "started_at": 1.5,
        "ready": True,
    }
    return WorkerInfo(**{"id": id_, **known, **fields})  # type: ignore[arg-type]


async def test_cards_come_back_as_announced_and_stay(redis: Redis) -> None:
    registry = Registry(redis)
    assert await registry.cards() == {}
    await registry.announce(CARD)
    await registry.announce(CARD)
    assert await registry.cards() == {"toy": CARD}
    assert await redis.ttl("{q0}:cards") == -1


def test_a_card_of_before_guidance_had_variants_is_still_read() -> None:
    data = CARD.to_dict()
    del data["guidances"]
    assert ModelCard.from_dict(data).guidances == ()


async def test_workers_live_as_long_as_they_beat(redis: Redis, clock: Clock) -> None:
    registry = Registry(redis)
    assert await registry.workers() == []
    await registry.beat(worker("b"))
    await clock.advance(10)
    await registry.beat(worker("a", busy=3))
    assert await registry.workers() == [worker("a", busy=3), worker("b")]
    await clock.advance(5)
    assert await registry.workers() == [worker("a", busy=3)]
    await registry.beat(worker("a", busy=4), ttl_s=1)
    assert await redis.hkeys("{q0}:workers") == ["a"]  # nothing is left of the dead
    await clock.advance(1)
    assert await registry.workers() == []


async def test_a_worker_that_leaves_is_gone_at_once(redis: Redis) -> None:
    registry = Registry(redis)
    for id_ in "ab":
        await registry.beat(worker(id_))
    await registry.leave("a")
    await registry.leave("never-there")
    assert await registry.workers() == [worker("b")]
    assert await redis.zrange("{q0}:beats", 0, -1) == ["b"]


async def test_all_gateways_share_one_secret(redis: Redis) -> None:
    secrets = await asyncio.gather(*(Registry(redis).image_secret() for _ in range(10)))
    assert len(set(secrets)) == 1
    assert len(secrets[0]) == 32


async def test_what_is_known_is_told_by_a_server_that_takes_no_writes(redis: Redis) -> None:
    """A gateway that starts then must open pictures."""
    secret = await Registry(redis).image_secret()
    await Shards.of(redis).agree()
    await redis.replicaof("127.0.0.1", "9")
    try:
        assert await Registry(redis).image_secret() == secret
        await Shards.of(redis).agree()
        with pytest.raises(ReadOnlyError):
            await HookQueue(redis).secrets.of("ada")  # nobody had asked for that one
    finally:
        await redis.replicaof("NO", "ONE")
