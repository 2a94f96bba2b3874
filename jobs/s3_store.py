"""Pictures on S3, or what speaks its protocol. Keys of access are found as every program of that world finds them: AWS_ACCESS_KEY_ID
and AWS_SECRET_ACCESS_KEY, or the role of the machine or pod. They are in no setting, message or log of ours.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import obstore
from obstore.exceptions import BaseError, UnauthenticatedError
from obstore.exceptions import PermissionDeniedError as Denied
from obstore.store import S3Store

from jobs.image_store import THREADS, Damaged, NotFound, StoreAway, StoreUnfit, check_written, checked_key
from pipelines.params import EXTENSIONS, MEDIA_TYPES

PROBE = ".probe"  # no valid key begins with a dot
RETRIES: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}  # of one request; whoever asks decides about more
ANSWER_S = 15.0
AT_ONCE = 1000  # what one listing, or one request to delete, holds at most
CODE = re.compile(r"<Code>(\w{1,64})</Code>")  # of S3's answer
UNFIT = frozenset({"NoSuchBucket", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidBucketName", "PermanentRedirect"})
MEDIA_TYPE_OF = {EXTENSIONS[name]: media_type for name, media_type in MEDIA_TYPES.items()}

Answer = TypeVar("Answer")


class S3ImageStore:
    """`prefix` stands before every key, so that a bucket may hold other things, too. A `public_endpoint` is how clients reach what we
    reach at `endpoint`. What takes longer than `timeout_s` raises TimeoutError; it may still be done later."""

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint: str = "", public_endpoint: str = "", timeout_s: float | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")
        self._s3 = _open(bucket, prefix, endpoint)
        self._links = _open(bucket, prefix, public_endpoint) if public_endpoint else self._s3

    async def put(self, key: str, data: bytes) -> None:
        await self._do(self._put, checked_key(key), data)

    async def size(self, key: str) -> int:
        return await self._do(self._size, checked_key(key))

    async def read(self, key: str) -> bytes:
        return await self._do(self._read, checked_key(key))

    async def delete(self, key: str) -> None:
        await self._do(obstore.delete, self._s3, checked_key(key))

    async def delete_all(self, job_id: str) -> None:
        await self._do(self._delete_all, checked_key(job_id))

    async def untouched_since(self, moment: float) -> list[str]:
        """By the server's clock. Asks for the names of all pictures, a thousand a request, so that only a request is bounded in time."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _told, self._untouched_since, moment)

    async def check(self) -> None:
        await self._do(self._store, PROBE, b"ok")

    async def link(self, key: str, method: str, seconds: int) -> str | None:
        """Presigned (Signature Version 4). Nobody is asked, unless the keys of access come from a service that hands them out."""
        verb: Any = method
        return str(await self._do(obstore.sign, self._links, verb, checked_key(key), timedelta(seconds=seconds)))

    async def _do(self, work: Callable[..., Answer], *args: object) -> Answer:
        """In a thread: the library's own coroutines abort the process now and then, where it ends soon after one of them (0.12.1)."""
        async with asyncio.timeout(self._timeout_s):
            return await asyncio.get_running_loop().run_in_executor(self._threads, _told, work, *args)

    def _put(self, key: str, data: bytes) -> None:
        attributes = {
            "Content-Type": MEDIA_TYPE_OF.get(key.rpartition(".")[2], "application/octet-stream"),
            "Content-Disposition": f'inline; filename="celadon-{key.replace("/", "-")}"',
            "Cache-Control": "private, max-age=300",
        }
        self._store(key, data, attributes)
        try:
            check_written(data, self._read(key))
        except Damaged:
            obstore.delete(self._s3, key)
            raise

    def _store(self, key: str, data: bytes, attributes: Any = None) -> None:
        obstore.put(self._s3, key, data, attributes=attributes, use_multipart=False)

    def _size(self, key: str) -> int:
        return obstore.head(self._s3, key)["size"]

    def _read(self, key: str) -> bytes:
        return bytes(obstore.get(self._s3, key).bytes())

    def _delete_all(self, job_id: str) -> None:
        for chunk in obstore.list(self._s3, job_id, chunk_size=AT_ONCE):
            obstore.delete(self._s3, [entry["path"] for entry in chunk])

    def _untouched_since(self, moment: float) -> list[str]:
        newest: dict[str, float] = {}
        for chunk in obstore.list(self._s3, chunk_size=AT_ONCE):
            for entry in chunk:
                job_id, slash, _ = entry["path"].partition("/")
                if slash:
                    newest[job_id] = max(entry["last_modified"].timestamp(), newest.get(job_id, 0.0))
        return [job_id for job_id, stored_at in newest.items() if stored_at < moment]


def _told(work: Callable[..., Answer], *args: object) -> Answer:
    """The answer. What the library raises, and what it says, is translated: its messages are pages long and hold addresses."""
    try:
        return work(*args)
    except (FileNotFoundError, BaseError) as error:
        raise _translated(error) from None


def _translated(error: Exception) -> Exception:
    match = CODE.search(str(error))
    code = match[1] if match else ""
    if isinstance(error, (Denied, UnauthenticatedError)) or code in UNFIT:
        return StoreUnfit(code or "access denied")
    if isinstance(error, FileNotFoundError):
        return NotFound()
    return StoreAway(code or "no answer")


def _open(bucket: str, prefix: str, endpoint: str) -> S3Store:
    options: Any = {"timeout": f"{ANSWER_S:.0f}s", "connect_timeout": "5s", "allow_http": endpoint.startswith("http://")}
    place: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    return S3Store(bucket, prefix=prefix or None, client_options=options, retry_config=RETRIES, **place)
