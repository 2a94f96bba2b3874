"""Celadon for Python: `from celadon import Client, AsyncClient`. Neither is loaded before it is asked for, nor anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celadon.async_client import AsyncClient
    from celadon.client import Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> type[Client] | type[AsyncClient]:
    if name == "Client":
        from celadon.client import Client

        return Client
    if name == "AsyncClient":
        from celadon.async_client import AsyncClient

        return AsyncClient
    raise AttributeError(f"module 'celadon' has no attribute {name!r}")
