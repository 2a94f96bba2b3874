"""The gateway's log: one JSON object a line on stderr. Never a prompt, a path or a query string."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import FilteringBoundLogger

from service.request_ids import add_request_id


def make_log(level: str, stream: TextIO | None = None) -> FilteringBoundLogger:
    """A log of its own; nothing global is configured."""
    log: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            add_request_id,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
    ).bind()  # else every line would put the logger together anew
    return log


def carry_over(log: FilteringBoundLogger) -> None:
    """From now on what libraries tell Python's own logging is told here, in the same form."""
    root = logging.getLogger()
    root.handlers = [_CarryOver(log)]
    root.setLevel(logging.WARNING)


class _CarryOver(logging.Handler):
    """Of an exception only its type: its text and its trace may hold what a client sent."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        extra = {"error": error.__name__} if error else {}
        self._log.log(record.levelno, record.getMessage().strip(), logger=record.name, **extra)
