"""A zip that is written while it is sent: one picture in memory at a time, sizes and checksums in front of each."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import AsyncIterator

File = tuple[str, float, bytes]  # name, Unix seconds, content


class Window(io.RawIOBase):
    """What was written since it was last taken. Seeking back goes no further, which is as far as `zipfile` goes in one file."""

    def __init__(self) -> None:
        super().__init__()
        self._kept, self._start = io.BytesIO(), 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._start + self._kept.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._start:
            raise io.UnsupportedOperation("what was taken cannot be written again")
        self._kept.seek(offset - self._start)
        return offset

    def write(self, data: object) -> int:
        return self._kept.write(data)  # type: ignore[arg-type]

    def take(self) -> bytes:
        """Everything since the last time."""
        data = self._kept.getvalue()
        self._start, self._kept = self._start + len(data), io.BytesIO()
        return data


async def zipped(files: AsyncIterator[File]) -> AsyncIterator[bytes]:
    """The bytes of a zip of these files, stored as they are: pictures are packed already."""
    window = Window()
    with zipfile.ZipFile(window, "w", zipfile.ZIP_STORED) as archive:
        async for name, seconds, content in files:
            archive.writestr(zipfile.ZipInfo(name, time.gmtime(seconds)[:6]), content)
            yield window.take()
    yield window.take()
