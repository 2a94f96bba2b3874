"""Request headers that every door understands."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Header, Request

from service.errors import InvalidHeader
from service.gateway import Current

IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
WAIT = re.compile(r"wait(?:\s*=\s*\"?([0-9]{1,6})\"?)?", re.IGNORECASE)


async def _wait_s(
    gateway: Current,
    prefer: Annotated[
        list[str] | None,
        Header(description="`wait=N`: answer when the job is done, after N seconds at the latest", examples=["wait=30"]),
    ] = None,
) -> float | None:
    """Seconds of `Prefer: wait=N` (RFC 7240), bounded by the settings. Other preferences are none of ours."""
    for preference in ",".join(prefer or ()).split(","):
        name = re.split(r"[=;\s]", preference.strip(), maxsplit=1)[0].lower()
        if name != "wait":
            continue
        match = WAIT.fullmatch(preference.split(";")[0].strip())
        if match is None:
            raise InvalidHeader("Prefer: wait takes whole seconds, as in wait=30.", param="Prefer")
        longest = gateway.settings.max_wait_s
        return min(float(match[1]), longest) if match[1] else longest
    return None


async def _idempotency_key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="a repeat with the same key and body within a day is the same job",
            examples=["order-1834"],
            json_schema_extra={"pattern": "^[!-~]{1,255}$"},
        ),
    ] = None,
) -> str | None:
    if idempotency_key is not None and not IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise InvalidHeader("Idempotency-Key takes 1 to 255 printable ASCII characters.", param="Idempotency-Key")
    if len(request.headers.getlist("Idempotency-Key")) > 1:
        raise InvalidHeader("Idempotency-Key is given twice.", param="Idempotency-Key")
    return idempotency_key


WaitSeconds = Annotated[float | None, Depends(_wait_s)]
IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]
