"""Pictures of strangers, made plain by a process that may use little (`workers.clean_picture`): the gateway itself decodes nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from service.picture_errors import InvalidPicture, PictureMoves, PictureTooLarge, PictureTruncated, UploadsBusy

CLEANER = "workers.clean_picture"
AT_ONCE = 2  # processes; each takes a core while it works
WAITING = 128  # pictures
WAITING_BYTES = 256 << 20  # of them
PATIENCE_S = 40.0

REFUSED: Mapping[str, type[InvalidPicture]] = {
    "unreadable": InvalidPicture,
    "truncated": PictureTruncated,
    "moves": PictureMoves,
    "too_large": PictureTooLarge,
}


@dataclass(frozen=True, slots=True)
class Plain:
    """A PNG that holds pixels and nothing else."""

    png: bytes
    width: int
    height: int
    transparent: bool


class Cleaner:
    def __init__(self) -> None:
        self._turns, self._inside, self._bytes = asyncio.Semaphore(AT_ONCE), 0, 0

    async def clean(self, data: bytes, most_pixels: int, param: str) -> Plain:
        """Raises InvalidPicture and its kin, which name `param`; UploadsBusy."""
        if self._inside >= AT_ONCE + WAITING or (self._inside and self._bytes + len(data) > WAITING_BYTES):
            raise UploadsBusy()
        self._inside, self._bytes = self._inside + 1, self._bytes + len(data)
        try:
            async with self._turns:
                said = await _run(data, most_pixels, param)
        finally:
            self._inside, self._bytes = self._inside - 1, self._bytes - len(data)
        about, _, png = said.partition(b"\n")
        told = json.loads(about)
        if "refused" in told:
            raise REFUSED[told["refused"]](param=param)
        return Plain(png, told["width"], told["height"], told["transparent"])


async def _run(data: bytes, most_pixels: int, param: str) -> bytes:
    """The answer. A process that fails, is killed for what it uses, or is not done in time, says that the picture is no good. It knows
    nothing of this one's environment."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-I", "-m", CLEANER, str(most_pixels))
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, env={})
    try:
        async with asyncio.timeout(PATIENCE_S):
            said, _ = await process.communicate(data)
    except TimeoutError:
        raise InvalidPicture("The picture takes too long to be read.", param=param) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise InvalidPicture("The picture cannot be read with the memory and time that it may take.", param=param)
    return said
