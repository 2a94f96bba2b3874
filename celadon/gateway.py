"""`celadon gateway`: one HTTP server process."""

from __future__ import annotations

import socket
from typing import Any

from celadon.settings import of_gateway


def run(*, fd: int | None, **overrides: Any) -> None:
    """Serve until SIGINT or SIGTERM, on the inherited listening socket `fd` or on one of its own.

    Raises StartRefused naming each variable at fault.
    """
    from service.app import serve

    serve(of_gateway(**overrides), None if fd is None else socket.socket(fileno=fd))
