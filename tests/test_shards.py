"""One behaviour on one server, on several shards of one server, and on a real Cluster; and what only several shards do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.connection import ServerUnfit, connect
from jobs.events import EventLog
from jobs.hooks import HookQueue
from jobs.job import Job, JobError, JobStatus, JobWarning, Webhook
from jobs.job_queue import ALONE_FROM, IdempotencyConflict, JobQueue, QueueFull, Standing
from jobs.look import look
from jobs.primary import NotPrimary
from jobs.registry import Registry
from jobs.scripts import sources
from jobs.shards import Shards, make_id, open_shards, shard_of
from service.probes import takes_writes
from tests.job_samples import MODEL, sample_image, sample_job
from tests.redis_farm import ENCODED, ClusterFarm, Node, until
from tests.test_registry import CARD, worker

CLIENTS = [f"client-{n}" for n in range(24)]
URL = "https://example.org/hook"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterFarm]:
    farm = ClusterFarm(tmp_path_factory.mktemp("cluster"), down_ms=30_000)  # nobody dies here
    yield farm
    farm.close()


@pytest.fixture(params=["one shard", "three shards", "Cluster"])
async def shards(request: pytest.FixtureRequest) -> AsyncIterator[Shards]:
    """Empty shards."""
    if request.param == "Cluster":
        cluster = request.getfixturevalue("cluster")
        cluster.empty()
        opened = open_shards(cluster.url)
    else:
        opened = open_shards(request.getfixturevalue("redis_url"), 3 if request.param == "three shards" else 1)
    yield opened
    await opened.aclose()


@pytest.fixture
async def three(redis_url: str) -> AsyncIterator[Shards]:
    opened = open_shards(redis_url, 3)
    yield opened
    await opened.aclose()


@pytest.fixture
def queue(shards: Shards) -> JobQueue:
    return JobQueue(shards)


async def advance(shards: Shards, now: float) -> None:
    """The time that the scripts of all shards see."""
    await shards.each(lambda shard: shard.redis.set(shard.key("clock"), now))


def sample(queue: JobQueue, client: str = "ada", **fields: object) -> Job:
    return sample_job(client, id=queue.new_id(client), **fields)  # type: ignore[arg-type]


async def submitted(queue: JobQueue, client: str = "ada", **fields: object) -> Job:
    return (await queue.submit(sample(queue, client, **fields))).job


def client_of(shards: Shards, number: int) -> str:
    """A client whose jobs are in that shard."""
    return next(client for client in CLIENTS if shards.of_client(client) is shards.all[number])


async def test_a_job_goes_its_way(queue: JobQueue, shards: Shards) -> None:
    jobs = [await submitted(queue, client) for client in CLIENTS]
    assert await queue.depth() == {"queued": 24, "running": 0}
    claimed = [job for _ in CLIENTS for job in await queue.claim("w1", [MODEL], 1)]
    assert {job.id for job in claimed} == {job.id for job in jobs}
    assert await queue.claim("w1", [MODEL], 1) == []
    renewal = await queue.renew("w1", {job.id: 1 for job in jobs} | {make_id(0): 1})
    assert len(renewal.lost) == 1 and not renewal.lost & {job.id for job in jobs}
    for job in jobs:
        assert await queue.progress("w1", 1, job.id, 5, preview="data:x") is Standing.HELD
        assert await queue.checkpoint("w1", 1, job.id, b"\xff\x00", steps_done=5)
        saved = await queue.load_checkpoint(job.id)
        assert saved is not None and saved.data == b"\xff\x00"
        assert await queue.finish("w1", 1, job.id, [sample_image(job)], [JobWarning("late", "Late.")])
        assert not await queue.finish("w2", 1, job.id, [])
        done = await queue.get(job.id)
        assert done is not None and (done.status, done.images) == (JobStatus.SUCCEEDED, (sample_image(job),))
        assert [e.type for e in await EventLog(shards).read(job.id)] == ["queued", "started", "progress", "succeeded"]
    assert await queue.depth() == {"queued": 0, "running": 0}


async def test_what_is_canceled_released_or_failed(queue: JobQueue) -> None:
    for client in CLIENTS[:6]:
        job = await submitted(queue, client)
        assert await queue.position(job.id) == 0 and (await queue.outlook(job.id)) is not None
        [held] = await queue.claim("w1", [MODEL], 9)
        assert await queue.release("w1", 1, job.id)
        assert [again.attempt for again in await queue.claim("w2", [MODEL], 9)] == [2]
        assert (await queue.cancel(job.id)).cancel_requested  # type: ignore[union-attr]
        assert (await queue.renew("w2", {job.id: 2})).canceled == {held.id}
        assert await queue.cancel_running("w2", 2, job.id)
        waiting = await submitted(queue, client)
        assert (await queue.cancel(waiting.id)).status is JobStatus.CANCELED  # type: ignore[union-attr]
        broken = await submitted(queue, client)
        await queue.claim("w1", [MODEL], 1)
        assert await queue.fail("w1", 1, broken.id, JobError("broken", "It broke."))
        assert [found.id for found in (await queue.list_jobs(client)).jobs] == [broken.id, waiting.id, job.id]
    assert await queue.cancel(make_id(0)) is None and await queue.get(make_id(2)) is None
    assert not await queue.was_here(make_id(1))


async def test_a_key_is_one_job_and_equal_requests_share_a_run(queue: JobQueue) -> None:
    for client in CLIENTS[:6]:
        first = await queue.submit(sample(queue, client), idempotency_key="k", fingerprint="a")
        again = await queue.submit(sample(queue, client), idempotency_key="k", fingerprint="a")
        assert (again.job.id, again.created) == (first.job.id, False)
        with pytest.raises(IdempotencyConflict):
            await queue.submit(sample(queue, client), idempotency_key="k", fingerprint="b")
        await queue.cancel(first.job.id)
        leader, follower = [(await queue.submit(sample(queue, client, reuse=True), reuse_fingerprint="f")).job for _ in range(2)]
        [job] = await queue.claim("w1", [MODEL], 9)
        assert job.id == leader.id and await queue.finish("w1", 1, leader.id, [sample_image(leader)])
        assert (await queue.get(follower.id)).images == (sample_image(leader),)  # type: ignore[union-attr]


async def test_the_lost_come_back_and_become_dead_letters(queue: JobQueue, shards: Shards) -> None:
    now = 1_000_000.0
    await advance(shards, now)
    jobs = [await submitted(queue, client) for client in CLIENTS[:6]]
    for n in range(5):
        claimed = [job for m in range(9) for job in await queue.claim(f"w{n}-{m}", [MODEL], 9)]  # the suspicious one by one
        assert {job.id for job in claimed} == {job.id for job in jobs}
        now += 15
        await advance(shards, now)
        assert await queue.reap() == 6
    assert {job.id for job in await queue.dead()} == {job.id for job in jobs}
    assert len(await queue.dead(limit=2)) == 2
    successors = [await queue.retry(job.id) for job in jobs]
    assert [await queue.retry(job.id) for job in jobs] == successors
    assert await queue.dead() == [] and await queue.depth() == {"queued": 6, "running": 0}


async def test_webhooks_of_every_shard_are_delivered(queue: JobQueue, shards: Shards) -> None:
    hooks = HookQueue(shards)
    jobs = [await submitted(queue, client, webhook=Webhook(URL, ("canceled",))) for client in CLIENTS[:6]]
    for job in jobs:
        await queue.cancel(job.id)
    due = [*await hooks.due("w1", 4), *await hooks.due("w1", 9)]
    assert {delivery.job_id for delivery in due} == {job.id for job in jobs}
    for delivery in due:
        assert await hooks.failed("w1", delivery.id, "status 500", retry_in_s=None)
    assert len(await hooks.dead()) == 6 and len(await hooks.dead(limit=2)) == 2
    assert all([await hooks.redeliver(delivery.id) for delivery in due])
    assert all([await hooks.delivered("w2", delivery.id) for delivery in await hooks.due("w2", 9)])


async def test_what_there_is_once(shards: Shards) -> None:
    registry = Registry(shards)
    await registry.announce(CARD)
    assert await registry.cards() == {"toy": CARD}
    assert await registry.image_secret() == await Registry(shards).image_secret()
    await registry.beat(worker("w1"))
    assert [w.id for w in await registry.workers()] == ["w1"]
    for shard in shards.all:  # estimates need the workers
        assert await shard.redis.zcard(shard.key("at:toy")) == 1
    await registry.leave("w1")
    assert await registry.workers() == []


async def test_who_waits_for_work_is_woken_by_any_shard(queue: JobQueue) -> None:
    for client in CLIENTS[:6]:
        await queue.claim("w0", [MODEL], 1)
        waiting = asyncio.create_task(queue.wait_for_work([MODEL]))
        job = await submitted(queue, client)
        began = asyncio.get_running_loop().time()
        await waiting
        assert asyncio.get_running_loop().time() - began < 1.5
        assert [claimed.id for claimed in await queue.claim("w1", [MODEL], 1)] == [job.id]


async def test_clients_spread_and_their_ids_tell_where(three: Shards) -> None:
    queue = JobQueue(three)
    jobs = [await submitted(queue, client) for client in CLIENTS]
    pending = await three.each(lambda shard: shard.redis.scard(shard.key("pending")))
    assert sum(pending) == 24 and min(pending) > 0
    for job in jobs:
        assert three.all[shard_of(job.id)] is three.of_client(job.client)
    with pytest.raises(ValueError, match="not in the shard"):
        await queue.submit(sample_job(client_of(three, 1), id=make_id(2)))
    assert [shard_of(id_) for id_ in (make_id(0), make_id(12), "job-1", "0" * 32, f"{'0' * 32}s0", f"{'0' * 32}s01")] == [0, 12, 0, 0, 0, 0]


async def test_shards_take_turns(three: Shards) -> None:
    queue = JobQueue(three)
    for n in (0, 1, 2):
        for _ in range(4 if n != 1 else 1):
            await submitted(queue, client_of(three, n))
    order = [shard_of(job.id) for _ in range(9) for job in await queue.claim("w1", [MODEL], 1)]
    assert order == [0, 1, 2, 0, 2, 0, 2, 0, 2]


async def test_a_job_that_kills_workers_runs_alone_whatever_shard_the_others_are_of(three: Shards) -> None:
    queue, now = JobQueue(three), 1_000_000.0
    await advance(three, now)
    suspicious = await submitted(queue, client_of(three, 1))
    for _ in range(ALONE_FROM):
        await queue.claim("lost", [MODEL], 1)
        now += 15
        await advance(three, now)
        await queue.reap()
    innocent = [await submitted(queue, client_of(three, n)) for n in (0, 2, 0, 2)]
    queue = JobQueue(three)  # another process
    held = await queue.claim("w1", [MODEL], 1)
    assert held[0].id == innocent[0].id
    assert await queue.claim("w1", [MODEL], 1, held) == []  # it has met the suspicious one, and must become idle
    assert await queue.claim("w1", [MODEL], 1, held) == []
    assert await queue.finish("w1", 1, innocent[0].id, [])
    alone = await queue.claim("w1", [MODEL], 9)
    assert [job.id for job in alone] == [suspicious.id]
    assert await queue.claim("w1", [MODEL], 9, alone) == []
    assert await queue.finish("w1", 3, suspicious.id, [])
    assert {job.id for job in await queue.claim("w1", [MODEL], 9)} == {job.id for job in innocent[1:]}


async def test_a_shard_that_is_away_leaves_the_others_at_work(redis_url: str, tmp_path: Path) -> None:
    async with connect(redis_url) as there, connect(f"unix://{tmp_path}/nobody") as away:
        shards = Shards([there, away])
        queue = JobQueue(shards)
        near, far = client_of(shards, 0), client_of(shards, 1)
        await there.set("{q0}:shards", 2)
        for _ in range(2):
            await submitted(queue, near)
        with pytest.raises(RedisConnectionError):
            await submitted(queue, far)
        jobs = [job for _ in range(2) for job in await queue.claim("w1", [MODEL], 1)]
        assert len(jobs) == 2
        with pytest.raises(RedisConnectionError):
            await queue.claim("w1", [MODEL], 1)  # nothing there, and who knows what is here
        held = {job.id: 1 for job in jobs} | {make_id(1): 1}
        assert await queue.renew("w0", held) == await queue.renew("w0", {job.id: 1 for job in jobs})
        assert (await queue.renew("w1", held)).lost == frozenset()
        began = asyncio.get_running_loop().time()
        await queue.wait_for_work([MODEL], 0.3)
        assert asyncio.get_running_loop().time() - began > 0.2
        await submitted(queue, near)
        with pytest.raises(RedisConnectionError):
            await queue.reap()
        await takes_writes(shards)  # ready for some is ready
        with pytest.raises(RedisConnectionError):
            await takes_writes(Shards([away, away]))


async def test_all_processes_mean_the_same_number_of_shards(redis_url: str, redis: Redis) -> None:
    first, second = open_shards(redis_url, 3), open_shards(redis_url, 2)
    try:
        await first.check()
        with pytest.raises(ServerUnfit, match="CELADON_SHARDS=3"):
            await second.check()
        with pytest.raises(ServerUnfit, match="laid out in 3 shards"):
            await JobQueue(second).submit(sample_job(id=second.new_id("ada")))
        await JobQueue(first).submit(sample_job(id=first.new_id("ada")))
    finally:
        await first.aclose()
        await second.aclose()


async def test_a_queue_from_before_the_number_was_kept_is_one_shard(redis_url: str, redis: Redis) -> None:
    await redis.set("{q0}:seq", 1)
    shards = open_shards(redis_url, 4)
    with pytest.raises(ServerUnfit, match="CELADON_SHARDS=1"):
        await shards.check()
    await shards.aclose()
    await Shards.of(redis).check()


async def test_estimates_share_the_workers_among_the_shards_in_which_jobs_wait(three: Shards) -> None:
    queue, near = JobQueue(three), client_of(three, 0)
    await submitted(queue, near)
    alone = await queue.forecast(sample(queue, near))
    for n in (1, 1, 2):
        await submitted(queue, client_of(three, n))
    await queue.reap()  # sees where jobs wait, and tells it the next time
    await queue.reap()
    shared = await queue.forecast(sample(queue, near))
    assert (shared.predicted_s, shared.position) == (alone.predicted_s, alone.position)
    assert shared.eta_s - shared.predicted_s == pytest.approx(3 * (alone.eta_s - alone.predicted_s), rel=1e-3)


async def test_bounds_are_of_each_shard(three: Shards) -> None:
    queue = JobQueue(three, max_queued=1)
    for n in range(3):
        await submitted(queue, client_of(three, n))
        with pytest.raises(QueueFull):
            await submitted(queue, client_of(three, n))


async def test_a_server_and_a_cluster_are_told_apart(cluster: ClusterFarm, tmp_path: Path) -> None:
    plain = Node(tmp_path)
    until(lambda: plain.ask("PING"), "the server did not start")
    wrong = {
        f"redis://:{ENCODED}@{cluster.nodes[0].name}": "written redis.cluster://",
        f"redis+cluster://{plain.name}": f"{plain.name} is no node of a Cluster",
    }
    for url, said in wrong.items():
        async with aclosing(open_shards(url)) as shards:
            with pytest.raises(ServerUnfit, match=said):
                await shards.check()
    plain.kill()


async def test_what_is_seen_of_a_cluster(cluster: ClusterFarm, redis_url: str) -> None:
    cluster.empty()
    seen = await look(cluster.url)
    assert seen.text.endswith(", a Cluster of 3 primaries and 3 replicas, 6 shards") and "min-replicas-to-write" in seen.remedy
    assert (await look(cluster.url, 4)).text.endswith(", 4 shards"), "to look at it decides nothing"
    alone = await look(redis_url)
    assert alone.text.startswith("Valkey 9.") and "shard" not in alone.text and not alone.remedy


@pytest.fixture
async def client(cluster: ClusterFarm) -> AsyncIterator[tuple[JobQueue, str, ClusterFarm]]:
    """A queue on an empty Cluster, and a client whose jobs are in shard 0."""
    cluster.empty()
    async with aclosing(open_shards(cluster.url)) as shards:
        yield JobQueue(shards), client_of(shards, 0), cluster


async def test_who_asks_a_node_that_became_a_replica_is_answered_by_the_primary(client: tuple[JobQueue, str, ClusterFarm]) -> None:
    queue, name, cluster = client
    first = await submitted(queue, name)
    old = cluster.primary_of("{q0}")
    replica = next(node for node in cluster.nodes if node.info("master_port") == old.port)
    replica.ask("CLUSTER", "FAILOVER")
    until(lambda: cluster.whole() and cluster.primary_of("{q0}") is replica, "the replica did not take over")
    second = await submitted(queue, name)
    assert [job.id for job in await queue.claim("w1", [MODEL], 2)] == [first.id, second.id]


async def test_a_shard_goes_along_with_its_slot(client: tuple[JobQueue, str, ClusterFarm]) -> None:
    queue, name, cluster = client
    job = await submitted(queue, name)
    slot, old = key_slot(b"{q0}"), cluster.primary_of("{q0}")
    new = cluster.primary_of("{q1}")
    assert new is not old
    there, here = str(new.ask("CLUSTER", "MYID")), str(old.ask("CLUSTER", "MYID"))
    new.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
    old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
    with pytest.raises(NotPrimary):  # key by key: whatever it would be, it would be half a shard
        await queue.claim("w1", [MODEL], 1)
    for node in (new, old):
        node.ask("CLUSTER", "SETSLOT", slot, "STABLE")
    old.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", there)
    until(lambda: cluster.primary_of("{q0}") is new, "the slot did not move")
    assert [found.id for found in await queue.claim("w1", [MODEL], 1)] == [job.id]


def test_the_number_from_which_a_job_runs_alone_is_that_of_the_scripts() -> None:
    assert f"local ALONE_FROM = {ALONE_FROM} " in sources()["claim"]


@pytest.mark.parametrize(("left", "said"), [("2", "left by a newer release"), ("0", "left by an older release"), ("x", "update this one")])
async def test_keys_of_another_layout_are_not_touched(redis: Redis, left: str, said: str) -> None:
    await redis.set("{q0}:layout", left)
    for work in (Shards.of(redis).check, lambda: JobQueue(redis).submit(sample_job())):
        with pytest.raises(ServerUnfit, match=said):
            await work()
    assert await redis.keys("*") == ["{q0}:layout"]


async def test_keys_of_before_there_was_a_layout_are_of_the_first(redis: Redis) -> None:
    await redis.set("{q0}:shards", 1)
    await JobQueue(redis).submit(sample_job())
    assert await redis.get("{q0}:layout") == "1"
