"""`celadon gateway`: one HTTP server process."""

from __future__ import annotations

import socket
import sys
from typing import Any

from celadon.settings import of_gateway
from celadon.supervisor import StartRefused


def run(*, fd: int | None, **overrides: Any) -> None:
    """Serve until SIGINT or SIGTERM, on the inherited listening socket `fd` or on one of its own.

    Raises StartRefused naming each variable at fault, or saying that there is no key yet where one is needed. The exit status is 3 where
    storage is away and may come.
    """
    from jobs.connection import ServerUnfit
    from jobs.image_store import StoreAway, StoreUnfit
    from jobs.stores import ExtraMissing
    from service.app import START_FAILED, serve
    from service.keyring import NoKeys

    try:
        serve(of_gateway(**overrides), None if fd is None else socket.socket(fileno=fd))
    except (NoKeys, ExtraMissing, ServerUnfit, StoreUnfit) as error:
        raise StartRefused(str(error)) from error
    except StoreAway as error:
        print(error, file=sys.stderr)
        sys.exit(START_FAILED)
