"""Pictures that come with requests: one bound for all doors, and nothing stays of a request that was refused."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from cards import card
from celadon.client import ApiError, Client
from jobs.image_store import LocalImageStore, NotFound
from jobs.uploads import TooManyKept, UploadCount
from keyed import asking, make_key
from live_gateway import Live, running
from picture_samples import as_file, as_url, sample_mask, sample_picture
from service.brought import Brought
from service.errors import DeadlineUnmeetable, StorageUnavailable
from service.picture_errors import TooManyUploads
from service.settings import Settings

Door = Callable[[httpx2.Client, int], httpx2.Response]


def _text(seed: int) -> str:
    return base64.b64encode(as_file(sample_picture(seed=seed))).decode()


def _native(http: httpx2.Client, seed: int) -> httpx2.Response:
    body = {"prompt": "x", "image": as_url(sample_picture(seed=seed)), "mask": as_url(sample_mask())}
    return http.post("/generate", json=body)


def _edit(http: httpx2.Client, seed: int) -> httpx2.Response:
    return http.post("/v1/images/edits", files={"image": ("a.png", as_file(sample_picture(seed=seed)))}, data={"prompt": "x"})


def _variation(http: httpx2.Client, seed: int) -> httpx2.Response:
    return http.post("/v1/images/variations", files={"image": ("a.png", as_file(sample_picture(seed=seed)))})


def _img2img(http: httpx2.Client, seed: int) -> httpx2.Response:
    return http.post("/sdapi/v1/img2img", json={"prompt": "x", "init_images": [_text(seed)], "width": 64, "height": 64})


def _batch(http: httpx2.Client, seed: int) -> httpx2.Response:
    return http.post("/batches", json=[{"prompt": "x", "image": as_url(sample_picture(seed=seed + more))} for more in (0, 1)])


DOORS: dict[str, Door] = {"generate": _native, "edits": _edit, "variations": _variation, "img2img": _img2img, "batches": _batch}


def stored(live: Live) -> list[Path]:
    return sorted(path for path in live.settings.image_dir.rglob("*") if path.is_file())


@pytest.fixture
def live(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card(), max_uploads=3, door_wait_s=1, rate_per_s=1e-6, rate_burst=1000) as gateway:
        yield gateway


@pytest.mark.parametrize("name", DOORS)
def test_a_door_keeps_nothing_of_what_the_queue_refuses(name: str, redis_url: str, tmp_path: Path) -> None:
    """Neither where the day's pictures are spent, nor where the client's part of the queue is full."""
    keys = [make_key(redis_url, "ada", per_day=1), make_key(redis_url, "bob", max_queued=1)]
    with running(redis_url, tmp_path, card(), keys="required", door_wait_s=1) as live:
        for key, code in zip(keys, ("quota_spent", "client_queue_full"), strict=True):
            with asking(live, key) as http:
                assert http.post("/generate", json={"prompt": "the one"}).status_code == 202
                for seed in range(3):
                    refused = DOORS[name](http, 10 * seed)
                    if name == "batches" and code == "client_queue_full":
                        assert refused.status_code == 400, "more lines than could ever wait"
                    else:
                        assert (refused.status_code, refused.json()["error"]["code"]) == (429, code)
        assert stored(live) == []


@pytest.mark.parametrize("name", DOORS)
def test_every_door_counts_to_the_one_bound(name: str, live: Live) -> None:
    """Two pictures are here already, and one more may come."""
    for seed in (1, 2):
        assert live.http.post("/uploads", files={"file": as_file(sample_picture(seed=seed))}).status_code == 201
    before = stored(live)
    if name in ("generate", "batches"):  # which bring two
        refused = DOORS[name](live.http, 20)
        assert stored(live) == before
    else:
        assert DOORS[name](live.http, 20).status_code == 504  # nobody draws here; the job is queued
        refused = DOORS[name](live.http, 30)
        assert len(stored(live)) == len(before) + 1
        assert DOORS[name](live.http, 20).status_code == 504, "it is here, and no further one"
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_uploads")
    assert 86_000 < int(refused.headers["retry-after"]) <= 86_400


def test_a_deadline_that_cannot_be_met_leaves_no_picture(live: Live) -> None:
    """The queue alone knows of it, when the picture is stored already; one that another job begins with stays."""
    kept = {"prompt": "x", "image": as_url(sample_picture(seed=1))}
    assert live.post(kept).status_code == 202
    before = stored(live)
    for seed in (1, 2, 3, 4, 5):
        late = live.post({"prompt": "x", "image": as_url(sample_picture(seed=seed)), "steps": 50, "deadline_s": 1e-6})
        assert late.status_code == 422, late.text
        assert stored(live) == before and len(before) == 1


def test_a_batch_that_brings_too_many_leaves_none(live: Live) -> None:
    lines = [json.dumps({"prompt": "x", "image": as_url(sample_picture(seed=seed))}) for seed in range(4)]
    with Client(live.url) as client, pytest.raises(ApiError) as refused:
        client.submit_batch("\n".join(lines).encode())
    assert refused.value.code == "invalid_batch", "it would never be let in"
    assert stored(live) == []
    same = [{"prompt": str(n), "image": as_url(sample_picture(seed=9))} for n in range(20)]
    assert live.http.post("/batches", json=same).status_code == 202
    assert len(stored(live)) == 1, "one picture, however many lines begin with it"


def test_a_repeat_with_its_key_is_let_in_where_others_are_not(live: Live) -> None:
    body: dict[str, Any] = {"prompt": "x", "image": as_url(sample_picture(seed=1))}
    first = live.post(body, Idempotency_Key="one")
    for seed in (2, 3):
        live.post({**body, "image": as_url(sample_picture(seed=seed))})
    again = live.post(body, Idempotency_Key="one")
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    other = live.post({**body, "image": as_url(sample_picture(seed=7))}, Idempotency_Key="one")
    assert other.status_code == 409 and len(stored(live)) == 3


@pytest.mark.parametrize("path", ["/generate", "/batches"])
def test_a_repeat_with_its_key_does_not_store_again_what_its_client_deleted(path: str, live: Live) -> None:
    one = {"prompt": "x", "image": as_url(sample_picture(seed=1))}
    said: dict[str, Any] = {"json": [one] if path == "/batches" else one, "headers": {"Idempotency-Key": "one"}}
    first = live.http.post(path, **said)
    (picture,) = stored(live)
    assert live.http.delete(f"/uploads/{picture.parent.name}/{picture.name}").status_code == 204
    again = live.http.post(path, **said)
    assert again.status_code in (200, 202) and again.json()["id"] == first.json()["id"]
    assert stored(live) == []


async def test_places_are_taken_for_all_pictures_or_none_before_one_is_stored(redis: Redis, tmp_path: Path) -> None:
    puts = list[str]()

    class Told(LocalImageStore):
        async def put(self, key: str, data: bytes) -> None:
            puts.append(key)
            await super().put(key, data)

    count = UploadCount(redis)
    brought = Brought(count, Told(tmp_path / "images"), Settings(data_dir=tmp_path, max_uploads=3))
    await brought.keep("ada", "in-1/0.png")
    with pytest.raises(TooManyUploads):
        async with brought.stored("ada", {f"in-{n}/0.png": b"png" for n in (1, 2, 3, 4)}):
            pass
    assert puts == []
    keys = [f"in-{n}/0.png" for n in (1, 2, 3)]
    assert await count.hold("ada", keys, 3, 100) == keys[1:], "no place was taken by the one that was refused"


async def test_the_last_who_holds_a_picture_deletes_it(redis: Redis) -> None:
    count = UploadCount(redis)
    assert await count.hold("ada", ["in-1/0.png"], 1, 100) and await count.hold("ada", ["in-1/0.png"], 1, 100)
    with pytest.raises(TooManyKept):
        await count.hold("ada", ["in-2/0.png"], 1, 100)
    assert not await count.drop("ada", "in-1/0.png"), "the other one may yet be let in"
    assert await count.drop("ada", "in-1/0.png")
    await count.forget("ada", "in-1/0.png")
    assert await count.hold("ada", ["in-2/0.png"], 1, 100), "its place is free"
    assert await count.hold("ada", ["in-2/0.png"], 1, 100)
    await count.keep("ada", "in-2/0.png", 100)
    assert not await count.drop("ada", "in-2/0.png"), "a job begins with it"
    assert not await count.hold("ada", ["in-2/0.png"], 1, 100) and not await count.drop("ada", "in-2/0.png")


async def test_who_comes_while_a_picture_is_deleted_waits_until_it_is(redis: Redis, tmp_path: Path) -> None:
    """Else its picture would be deleted with that of the one before."""
    pictures, others = {"in-1/0.png": b"png"}, list[asyncio.Task[None]]()

    class Slow(LocalImageStore):
        async def delete(self, key: str) -> None:
            others.append(asyncio.create_task(take()))
            done, _ = await asyncio.wait(others, timeout=0.3)
            assert not done
            await super().delete(key)

    async def take() -> None:
        async with brought.stored("ada", pictures):
            pass

    store = Slow(tmp_path / "images")
    brought = Brought(UploadCount(redis), store, Settings(data_dir=tmp_path))
    with pytest.raises(DeadlineUnmeetable):
        async with brought.stored("ada", pictures):
            raise DeadlineUnmeetable()
    await others[0]
    assert await store.read("in-1/0.png") == b"png"


async def test_what_comes_while_its_client_deletes_it_is_not_taken_for_kept(redis: Redis, tmp_path: Path) -> None:
    """Else what is stored again, for a request that is refused, counts nowhere."""
    pictures, others = {"in-1/0.png": b"png"}, list[asyncio.Task[None]]()

    class Slow(LocalImageStore):
        async def delete(self, key: str) -> None:
            await super().delete(key)
            if not others:
                others.append(asyncio.create_task(refused()))
                done, _ = await asyncio.wait(others, timeout=0.3)
                assert not done

    async def refused() -> None:
        with pytest.raises(DeadlineUnmeetable):
            async with brought.stored("ada", pictures):
                raise DeadlineUnmeetable()

    count, store = UploadCount(redis), Slow(tmp_path / "images")
    brought = Brought(count, store, Settings(data_dir=tmp_path, max_uploads=1))
    async with brought.stored("ada", pictures):
        pass
    await brought.delete("ada", "in-1/0.png")
    await others[0]
    assert [path for path in (tmp_path / "images").rglob("*") if path.is_file()] == []
    assert await count.hold("ada", ["in-2/0.png"], 1, 100)


async def test_a_kept_picture_deleted_before_it_is_stored_again_does_not_stay(redis: Redis, tmp_path: Path) -> None:
    pictures = {"in-1/0.png": b"png"}
    store = LocalImageStore(tmp_path / "images")
    brought = Brought(UploadCount(redis), store, Settings(data_dir=tmp_path))
    await brought.keep("ada", "in-1/0.png")
    with pytest.raises(DeadlineUnmeetable):
        async with brought.stored("ada", pictures):
            await brought.delete("ada", "in-1/0.png")
            await store.put("in-1/0.png", b"png")
            raise DeadlineUnmeetable()
    with pytest.raises(NotFound):
        await store.read("in-1/0.png")


async def test_a_picture_that_cannot_be_deleted_stays_and_counts(redis: Redis, tmp_path: Path) -> None:
    """Who sends it again is not kept waiting, and has it."""

    class Stuck(LocalImageStore):
        async def delete(self, key: str) -> None:
            raise OSError("the disk is gone")

    count, store = UploadCount(redis), Stuck(tmp_path / "images")
    brought = Brought(count, store, Settings(data_dir=tmp_path, max_uploads=1))
    for _ in range(2):
        with pytest.raises(DeadlineUnmeetable):
            async with brought.stored("ada", {"in-1/0.png": b"png"}):
                raise DeadlineUnmeetable()
        with pytest.raises(TooManyKept):
            await count.hold("ada", ["in-2/0.png"], 1, 100)
    async with brought.stored("ada", {"in-1/0.png": b"png"}):
        pass
    assert await store.read("in-1/0.png") == b"png"


async def test_nobody_waits_long_for_one_that_died_deleting(redis: Redis, tmp_path: Path) -> None:
    count = UploadCount(redis)
    assert await count.hold("ada", ["in-1/0.png"], 1, 100) and await count.drop("ada", "in-1/0.png")
    with pytest.raises(StorageUnavailable):
        async with Brought(count, LocalImageStore(tmp_path / "images"), Settings(data_dir=tmp_path)).stored("ada", {"in-1/0.png": b"png"}):
            pass
    await count.forget("ada", "in-1/0.png")
    assert await count.hold("ada", ["in-1/0.png"], 1, 100)


async def test_what_redis_hid_stays_and_counts(redis: Redis, tmp_path: Path) -> None:
    """The job may be queued, and begins with it then."""
    count, store = UploadCount(redis), LocalImageStore(tmp_path / "images")
    brought = Brought(count, store, Settings(data_dir=tmp_path, max_uploads=1))
    with pytest.raises(RedisConnectionError):
        async with brought.stored("ada", {"in-1/0.png": b"png"}):
            raise RedisConnectionError()
    assert await store.read("in-1/0.png") == b"png"
    with pytest.raises(TooManyKept):
        await count.hold("ada", ["in-2/0.png"], 1, 100)


@pytest.mark.parametrize("at", ["hold", "put"])
async def test_a_cancel_before_all_are_stored_leaves_none(at: str, redis: Redis, tmp_path: Path) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def pause(here: str) -> None:
        if here == at:
            reached.set()
            await go_on.wait()

    class SlowCount(UploadCount):
        async def hold(self, client: str, keys: Collection[str], most: int, ttl_s: int) -> list[str]:
            held = await super().hold(client, keys, most, ttl_s)
            await pause("hold")
            return held

    class SlowStore(LocalImageStore):
        async def put(self, key: str, data: bytes) -> None:
            await super().put(key, data)
            await pause("put")

    async def take() -> None:
        async with brought.stored("ada", {"in-1/0.png": b"png", "in-2/0.png": b"png"}):
            raise AssertionError("a canceled request goes on")

    brought = Brought(SlowCount(redis), SlowStore(tmp_path / "images"), Settings(data_dir=tmp_path, max_uploads=2))
    task = asyncio.create_task(take())
    await reached.wait()
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path for path in (tmp_path / "images").rglob("*") if path.is_file()] == []
    assert len(await UploadCount(redis).hold("ada", ["in-3/0.png", "in-4/0.png"], 2, 100)) == 2, "both places are free"


async def test_a_cancel_behind_that_is_as_an_end_that_nobody_knows(redis: Redis, tmp_path: Path) -> None:
    """The job may be queued, and begins with it then."""
    reached, store = asyncio.Event(), LocalImageStore(tmp_path / "images")
    brought = Brought(UploadCount(redis), store, Settings(data_dir=tmp_path))

    async def take() -> None:
        async with brought.stored("ada", {"in-1/0.png": b"png"}):
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(take())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.read("in-1/0.png") == b"png"
    with pytest.raises(TooManyKept):
        await UploadCount(redis).hold("ada", ["in-2/0.png"], 1, 100)
