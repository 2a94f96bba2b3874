"""Which store holds the pictures, as the settings say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.image_store import ImageStore, LocalImageStore, StoreAway, StoreUnfit

if TYPE_CHECKING:
    from jobs.s3_store import S3ImageStore

S3_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/((?:[A-Za-z0-9][A-Za-z0-9_-]*/)*[A-Za-z0-9][A-Za-z0-9_-]*))?/?")
ENDPOINT = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
FIRST_LOOK_S = 15.0


class ExtraMissing(Exception):
    """The storage that is asked for wants packages that are not installed. The message says which."""


def checked_storage(value: str) -> str:
    """The value of CELADON_STORAGE. Raises ValueError, which says what it should be."""
    if value and not S3_URL.fullmatch(value):
        raise ValueError("must be s3://bucket or s3://bucket/prefix, or empty for the folder `images` of CELADON_DATA_DIR")
    return value


def checked_endpoint(value: str) -> str:
    """Raises ValueError."""
    if value and not ENDPOINT.fullmatch(value.rstrip("/")):
        raise ValueError("must be http:// or https://, a host and perhaps a port, as in https://minio.example.com:9000")
    return value.rstrip("/")


def open_store(
    storage: str, data_dir: Path, *, endpoint: str = "", public_endpoint: str = "", timeout_s: float | None = None
) -> ImageStore:
    """Asks nobody yet. Raises ExtraMissing."""
    if match := S3_URL.fullmatch(storage):
        return _s3()(match[1], match[2] or "", endpoint=endpoint, public_endpoint=public_endpoint, timeout_s=timeout_s)
    return LocalImageStore(data_dir / "images", timeout_s=timeout_s)


async def check_reachable(storage: str, endpoint: str) -> None:
    """A first look at a store that is not on this machine. Raises ExtraMissing; StoreUnfit, or StoreAway where it may yet come, with a
    message for whoever starts the process."""
    if not storage:
        return
    where = f"CELADON_STORAGE: {storage}{f' at {endpoint}' if endpoint else ''}"
    try:
        await open_store(storage, Path(), endpoint=endpoint, timeout_s=FIRST_LOOK_S).check()
    except StoreUnfit as error:
        raise StoreUnfit(f"{where} cannot be used: {error}. Check the bucket's name, AWS_ACCESS_KEY_ID and what it may do.") from None
    except TimeoutError:
        raise StoreAway(f"{where} cannot be reached: no answer within {FIRST_LOOK_S:.0f} s") from None
    except OSError as error:
        raise StoreAway(f"{where} cannot be reached: {error}") from None


def _s3() -> type[S3ImageStore]:
    try:
        from jobs.s3_store import S3ImageStore
    except ImportError:
        raise ExtraMissing("CELADON_STORAGE: pictures on S3 want the package obstore: pip install 'celadon[s3]'") from None
    return S3ImageStore
