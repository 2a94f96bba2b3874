"""Pictures appear whole, keys cannot leave the store, and links open only what was signed, for as long as was signed."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import S3Store

from jobs.image_store import (
    BadKey,
    BadSignature,
    Damaged,
    Expired,
    ImageStore,
    LocalImageStore,
    NotFound,
    Signer,
    image_key,
)
from jobs.stores import open_store
from s3_server import BUCKET, S3Server

KEY = image_key("0f3c-ab", 2, 0, "png")
NEW, OLD = b"n" * 32, b"o" * 32


pytestmark = pytest.mark.timeout(200)  # the first test on S3 starts the server


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    """Empty, of each kind."""
    if request.param == "disk":
        return open_store("", tmp_path)
    server: S3Server = request.getfixturevalue("s3")
    return open_store(f"s3://{BUCKET}/tests/{uuid.uuid4().hex}", tmp_path, endpoint=server.endpoint)


async def keys(store: ImageStore, *candidates: str) -> list[str]:
    """Those of the candidates under which there is something."""
    found = []
    for key in candidates:
        with suppress(NotFound):
            await store.size(key)
            found.append(key)
    return found


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


OTHER = image_key("0f3c-ab", 2, 1, "png")


async def test_put_read_replace_delete(store: ImageStore) -> None:
    await store.put(KEY, b"one")
    await store.put(KEY, b"two" * 100_000)
    assert await store.read(KEY) == b"two" * 100_000
    assert await store.size(KEY) == 300_000
    await store.delete(KEY)
    await store.delete(KEY)
    assert await keys(store, KEY) == []


async def test_a_disk_keeps_no_empty_folders(tmp_path: Path) -> None:
    store = open_store("", tmp_path)
    await store.put(KEY, b"x")
    assert files(tmp_path) == [f"images/{KEY}"]
    await store.delete(KEY)
    assert not (tmp_path / "images" / "0f3c-ab").exists()


async def test_deleting_one_picture_leaves_its_neighbours(store: ImageStore) -> None:
    for key in (KEY, OTHER):
        await store.put(key, b"x")
    await store.delete(KEY)
    assert await keys(store, KEY, OTHER) == [OTHER]


async def test_the_pictures_of_a_job_are_found_by_their_age_and_deleted_together(store: ImageStore) -> None:
    assert await store.untouched_since(1e12) == []
    await store.check()  # leaves nothing that looks like a job
    old = [image_key("old", attempt, 0, "png") for attempt in (1, 2)]
    for key in (*old, image_key("oldest", 1, 0, "png")):
        await store.put(key, b"x")
    assert await store.untouched_since(time.time() - 60) == []
    assert sorted(await store.untouched_since(time.time() + 60)) == ["old", "oldest"]
    await store.delete_all("old")
    await store.delete_all("never-was")
    assert await keys(store, *old, image_key("oldest", 1, 0, "png")) == ["oldest/1-0.png"]
    assert await store.untouched_since(time.time() + 60) == ["oldest"]
    with pytest.raises(BadKey):
        await store.delete_all("..")


async def test_a_job_is_as_young_as_its_youngest_picture(tmp_path: Path) -> None:
    store = LocalImageStore(tmp_path)
    for key in (image_key("old", 1, 0, "png"), image_key("young", 1, 0, "png")):
        await store.put(key, b"x")
    os.utime(tmp_path / "old", (1000, 1000))
    assert await store.untouched_since(1000) == []
    assert await store.untouched_since(1001) == ["old"]  # and not the folder of unfinished writes


async def test_what_is_not_there_is_not_found(store: ImageStore) -> None:
    await store.put(KEY, b"x")
    for key in ("0f3c-ab/9-0.png", "0f3c-ab", "nobody/1-0.png", f"{KEY}/more"):
        with pytest.raises(NotFound):
            await store.read(key)
        with pytest.raises(NotFound):
            await store.size(key)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"?" + data[1:], lambda data: b""], ids=["cut", "changed", "empty"]
)
async def test_a_write_that_went_wrong_is_seen(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    """On its way to the disk, or to the server."""
    put = obstore.put

    def broken_disk(handle: int) -> None:
        written = os.pread(handle, 1000, 0)
        os.ftruncate(handle, 0)
        os.pwrite(handle, damage(written), 0)

    def broken_wire(client: S3Store, key: str, data: bytes, **options: Any) -> Any:
        return put(client, key, damage(data), **options)

    with monkeypatch.context() as broken:
        broken.setattr("jobs.image_store.os.fsync", broken_disk)
        broken.setattr("jobs.s3_store.obstore.put", broken_wire)
        with pytest.raises(Damaged):
            await store.put(KEY, b"a picture")
    assert await keys(store, KEY) == []
    await store.put(KEY, b"a picture")
    assert await store.read(KEY) == b"a picture"


TRICKS = (
    "../secret|a/../../secret|/etc/passwd|a//b|a/|.|..|.partial/x|a/.hidden|"
    "a\\..\\b|A/b|a/b\n|a\x00b|%2e%2e/a|a/..|a/b..c|~root|é/a|a:b|a b"
)


@pytest.mark.parametrize("key", [*TRICKS.split("|"), "", "a" * 201])
async def test_path_tricks_are_refused(store: ImageStore, tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    for act in (store.read(key), store.size(key), store.put(key, b"x"), store.delete(key), store.link(key, "GET", 9)):
        with pytest.raises(BadKey):
            await act
    assert files(tmp_path) == ["secret"]


@given(st.text(max_size=30))
def test_no_key_leads_outside(key: str) -> None:
    store = LocalImageStore(Path("/store"))
    try:
        path = store._path(key)
    except BadKey:
        return
    assert os.path.normpath(path).startswith("/store/")


async def test_a_reader_never_sees_half_a_picture(store: ImageStore) -> None:
    pictures = [bytes([n]) * 300_000 for n in range(12)]
    await store.put(KEY, pictures[0])

    async def write() -> None:
        for picture in pictures:
            await store.put(KEY, picture)

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await store.read(KEY) in pictures
    await writing


async def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalImageStore(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.image_store.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        await store.put(KEY, b"x")
    assert files(tmp_path) == []


async def test_check_says_when_nothing_can_be_written(tmp_path: Path) -> None:
    await LocalImageStore(tmp_path / "new" / "images").check()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        await LocalImageStore(tmp_path / "file").check()


def signed(signer: Signer, key: str = KEY, expires: int = 1000) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(signer.sign(key, expires)).items()}


def test_a_signature_opens_its_key_until_it_expires() -> None:
    signer = Signer(NEW)
    query = signed(signer)
    assert set(query) == {"exp", "kid", "sig"}
    signer.verify(KEY, **query, now=999.9)
    with pytest.raises(Expired):
        signer.verify(KEY, **query, now=1000)


@pytest.mark.parametrize(
    "forged",
    [
        {"exp": "2000"},
        {"exp": "01000"},
        {"exp": " 1000"},
        {"exp": "+1000"},
        {"exp": "1e3"},
        {"exp": ""},
        {"exp": "9" * 30},
        {"exp": "١٠٠٠"},
        {"kid": ""},
        {"kid": "00000000"},
        {"sig": ""},
        {"sig": "0" * 64},
        {"sig": "é\ud800"},
        {"key": "0f3c-ab/2-1.png"},
        {"key": KEY + "\n1000"},
    ],
)
def test_forgeries_are_refused_whatever_the_time(forged: dict[str, str]) -> None:
    signer = Signer(NEW)
    query = {"key": KEY, **signed(signer), **forged}
    for now in (0.0, 5000.0):
        with pytest.raises(BadSignature):
            signer.verify(**query, now=now)


def test_a_changed_letter_of_the_signature_is_refused() -> None:
    signer = Signer(NEW)
    query = signed(signer)
    for n, letter in enumerate(query["sig"]):
        other = query["sig"][:n] + ("0" if letter != "0" else "1") + query["sig"][n + 1 :]
        with pytest.raises(BadSignature):
            signer.verify(KEY, query["exp"], query["kid"], other, now=0)


def test_secrets_can_be_replaced() -> None:
    before, during, after = Signer(OLD), Signer((NEW, OLD)), Signer(NEW)
    during.verify(KEY, **signed(before), now=0)
    after.verify(KEY, **signed(during), now=0)
    with pytest.raises(BadSignature):
        after.verify(KEY, **signed(before), now=0)
    with pytest.raises(ValueError, match="secret"):
        Signer(b"")
    with pytest.raises(ValueError, match="secret"):
        Signer(())
