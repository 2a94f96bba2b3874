"""Where the bytes of pictures lie, and the signatures that let a client fetch them for a while."""

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
from typing import TypeVar
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


def image_key(job_id: str, attempt: int, index: int, extension: str) -> str:
    """The attempt is part of the key, so a worker that lost its job cannot overwrite the winner's picture."""
    return f"{job_id}/{attempt}-{index}.{extension}"


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
        """Writes or replaces. Raises BadKey, OSError."""
        await self._do(self._write, self._path(key), data)

    async def open(self, key: str) -> Path:
        """The file that holds the bytes. Raises NotFound, BadKey."""
        path = self._path(key)
        if not await self._do(path.is_file):
            raise NotFound(key)
        return path

    async def read(self, key: str) -> bytes:
        """The bytes. Raises NotFound, BadKey."""
        try:
            return await self._do(self._path(key).read_bytes)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFound(key) from None

    async def delete(self, key: str) -> None:
        """Removes the bytes if they are there. Raises BadKey."""
        await self._do(self._remove, self._path(key))

    async def untouched_since(self, moment: float) -> list[str]:
        """The jobs whose pictures were all stored, or removed, before that time (Unix seconds of this machine)."""
        return await self._do(self._untouched_since, moment)

    async def delete_all(self, job_id: str) -> None:
        """Removes every picture of the job. Raises BadKey."""
        await self._do(shutil.rmtree, self._path(job_id), ignore_errors=True)

    async def check(self) -> None:
        """Raises OSError if a picture could not be written now."""
        await self._do(self._probe)

    async def _do(self, work: Callable[..., Answer], *args: object, **named: object) -> Answer:
        async with asyncio.timeout(self._timeout_s):
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **named))

    def _path(self, key: str) -> Path:
        if len(key) > _MAX_KEY or not _KEY.fullmatch(key) or ".." in key:
            raise BadKey("not a key of this store")
        return self._root / key

    def _write(self, path: Path, data: bytes) -> None:
        self._partial.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=self._partial)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
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
