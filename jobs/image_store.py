"""Where the bytes of pictures lie, and the signatures that let a client fetch them for a while.

`ImageStore` is all that the rest of the house knows of it; here is the one on a disk, in `s3_store` the one on S3, and `stores` chooses.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlencode

_KEY = re.compile(r"[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_.-]*)*", re.ASCII)
_EXPIRY = re.compile(r"[0-9]{1,12}", re.ASCII)
_MAX_KEY = 200
THREADS = 8

Answer = TypeVar("Answer")


class NotFound(KeyError):
    """No bytes under this key."""


class BadKey(ValueError):
    """The key is not one that the store would ever have written."""


class BadSignature(ValueError):
    """The signature was not made by us for this key and time."""


class Expired(ValueError):
    """The signature is ours, but its time has passed."""


class StoreAway(OSError):
    """The store does not answer, or not as it should; it may, later."""


class StoreUnfit(StoreAway):
    """The store refuses us, or is not there: waiting alone will not help. The message says what it answered."""


class Damaged(OSError):
    """What was read back is not what was written."""


def image_key(job_id: str, attempt: int, index: int, extension: str) -> str:
    """The attempt is part of the key, so a worker that lost its job cannot overwrite the winner's picture."""
    return f"{job_id}/{attempt}-{index}.{extension}"


class ImageStore(Protocol):
    """Bytes by key. Every method may raise BadKey, and OSError where the store cannot be used, or took too long."""

    async def put(self, key: str, data: bytes) -> None:
        """Writes or replaces, then reads back. Raises Damaged if that differs in size or SHA-256; nothing is left under the key then."""

    async def size(self, key: str) -> int:
        """How many bytes. Raises NotFound."""

    async def read(self, key: str) -> bytes:
        """The bytes. Raises NotFound."""

    async def delete(self, key: str) -> None:
        """Removes the bytes if they are there."""

    async def delete_all(self, job_id: str) -> None:
        """Removes every picture of the job."""

    async def untouched_since(self, moment: float) -> list[str]:
        """The jobs none of whose pictures was stored since that time (Unix seconds)."""

    async def check(self) -> None:
        """Raises OSError if a picture could not be written now."""

    async def link(self, key: str, method: str, seconds: int) -> str | None:
        """A URL of the store's own that answers GET or HEAD for so long; None if it has no such thing. Says nothing of whether there
        are bytes under the key."""


def check_written(data: bytes, found: bytes) -> None:
    """Raises Damaged."""
    if len(found) != len(data):
        raise Damaged(f"{len(data)} bytes were written, {len(found)} can be read")
    if hashlib.sha256(found).digest() != hashlib.sha256(data).digest():
        raise Damaged(f"of {len(data)} bytes some are others than those that were written")


def checked_key(key: str) -> str:
    """The key. Raises BadKey if this service would never write it."""
    if len(key) > _MAX_KEY or not _KEY.fullmatch(key) or ".." in key:
        raise BadKey("not a key of this store")
    return key


class LocalImageStore:
    """Pictures as files below `root`. Whatever can be read is complete: files appear whole, after they reached the disk.

    What takes longer than `timeout_s` raises TimeoutError, which is an OSError; it may still be done later.
    """

    def __init__(self, root: Path, *, timeout_s: float | None = None) -> None:
        self._root, self._timeout_s = root.absolute(), timeout_s
        # threads of its own: those that hang, as on a file server that is away, keep nobody else from working
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")
        self._partial = self._root / ".partial"  # no valid key begins with a dot

    async def put(self, key: str, data: bytes) -> None:
        await self._do(self._write, self._path(key), data)

    async def size(self, key: str) -> int:
        return await self._do(self._size, self._path(key), key)

    async def read(self, key: str) -> bytes:
        try:
            return await self._do(self._path(key).read_bytes)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFound(key) from None

    async def delete(self, key: str) -> None:
        await self._do(self._remove, self._path(key))

    async def untouched_since(self, moment: float) -> list[str]:
        """A job is touched by removing a picture, too; the time is that of this machine."""
        return await self._do(self._untouched_since, moment)

    async def delete_all(self, job_id: str) -> None:
        await self._do(shutil.rmtree, self._path(job_id), ignore_errors=True)

    async def check(self) -> None:
        await self._do(self._probe)

    async def link(self, key: str, method: str, seconds: int) -> str | None:
        checked_key(key)
        return None

    async def _do(self, work: Callable[..., Answer], *args: object, **named: object) -> Answer:
        async with asyncio.timeout(self._timeout_s):
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **named))

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _size(self, path: Path, key: str) -> int:
        if not path.is_file():
            raise NotFound(key)
        return path.stat().st_size

    def _write(self, path: Path, data: bytes) -> None:
        self._partial.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=self._partial)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            check_written(data, Path(partial).read_bytes())
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        for folder in (path.parent, path.parent.parent):  # the names must outlive a power cut too
            _sync_folder(folder)

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        try:
            if path.parent != self._root:
                path.parent.rmdir()
        except OSError:
            pass  # other pictures of the job are still there

    def _untouched_since(self, moment: float) -> list[str]:
        """A folder's own time is that of the last name that came or went in it."""
        try:
            with os.scandir(self._root) as entries:
                folders = [entry for entry in entries if _KEY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []  # no picture was ever stored
        return [folder.name for folder in folders if folder.stat(follow_symlinks=False).st_mtime < moment]

    def _probe(self) -> None:
        self._partial.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._partial) as file:
            file.write(b"ok")
            file.flush()


class Signer:
    """Signs keys with an expiry. With two secrets the first signs and both are accepted: that is how one is replaced.

    GET and HEAD share a signature. The message is "GET", key, expiry and key id, one a line (HMAC-SHA256, RFC 2104).
    """

    def __init__(self, secret: bytes | Sequence[bytes]) -> None:
        secrets = (secret,) if isinstance(secret, bytes) else tuple(secret)
        if not secrets or not all(secrets):
            raise ValueError("a signer needs at least one secret, and none may be empty")
        self._secrets = {hashlib.sha256(b"kid" + s).hexdigest()[:8]: s for s in secrets}
        self._current = next(iter(self._secrets))

    def sign(self, key: str, expires: int) -> str:
        """The query string that opens `key` until `expires` (Unix seconds)."""
        signature = self._signature(key, str(expires), self._current)
        return urlencode({"exp": expires, "kid": self._current, "sig": signature})

    def verify(self, key: str, exp: str | int, kid: str, sig: str, now: float) -> None:
        """Raises BadSignature, or Expired if the signature is good and `now` (Unix seconds) is past `exp`."""
        exp = str(exp)
        if not _EXPIRY.fullmatch(exp) or kid not in self._secrets:
            raise BadSignature("the signature is not valid")
        if not hmac.compare_digest(self._signature(key, exp, kid).encode(), sig.encode("utf-8", "replace")):
            raise BadSignature("the signature is not valid")
        if now >= int(exp):
            raise Expired("the link has expired")

    def _signature(self, key: str, exp: str, kid: str) -> str:
        message = "\n".join(("GET", key, exp, kid)).encode("utf-8", "replace")
        return hmac.new(self._secrets[kid], message, hashlib.sha256).hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
