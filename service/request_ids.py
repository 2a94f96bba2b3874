"""The id of the request that this code works for: the log has it in every line, and a job that it makes keeps it."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

from structlog.typing import EventDict

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CURRENT: ContextVar[str] = ContextVar("request_id", default="")


def accepted(given: str) -> str:
    """The client's own id, if it is harmless, so that its log and ours can be laid side by side; else a new one."""
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)


def add_request_id(_log: object, _method: str, told: EventDict) -> EventDict:
    """A structlog processor."""
    if current := CURRENT.get():
        told.setdefault("request_id", current)
    return told
