"""The settings of gateway and worker, read for the commands: whatever is wrong refuses the start in one way."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from celadon.supervisor import StartRefused

if TYPE_CHECKING:
    from service.settings import Settings
    from workers.settings import WorkerSettings


def of_gateway(**overrides: Any) -> Settings:
    """From CELADON_* and the options that were given (None is not given). Raises StartRefused naming each variable at fault."""
    from service.settings import Settings, SettingsError

    try:
        return Settings.from_environment(**{name: value for name, value in overrides.items() if value is not None})
    except SettingsError as error:
        raise StartRefused(str(error)) from error


def of_worker(**overrides: Any) -> WorkerSettings:
    """The same for a worker."""
    from pydantic import ValidationError

    from service.settings import unknown_names
    from workers.settings import WorkerSettings

    if faults := unknown_names(os.environ):
        raise StartRefused("\n".join(faults))
    try:
        return WorkerSettings(**overrides)
    except ValidationError as error:
        faults = [f"CELADON_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
        raise StartRefused("\n".join(faults)) from error


def check_redis(url: str) -> str:
    """What answers there, for example `Valkey 9.1.2`. Raises StartRefused if nothing does, or if it is not fit to keep jobs."""
    import redis

    from jobs.connection import ServerUnfit

    shown = without_secret(url)
    try:
        return asyncio.run(_server_at(url))
    except ServerUnfit as error:
        raise StartRefused(f"CELADON_REDIS_URL: {error}") from error
    except (redis.RedisError, OSError, ValueError) as error:
        raise StartRefused(f"CELADON_REDIS_URL: no answer from {shown}: {str(error).replace(url, shown)}") from error


async def _server_at(url: str) -> str:
    from jobs.connection import check_server, connect

    async with connect(url) as redis:
        await check_server(redis)
        info: dict[str, Any] = await redis.info("server")
    name = "valkey" if "valkey_version" in info else "redis"
    return f"{name.capitalize()} {info[f'{name}_version']}"


def without_secret(url: str) -> str:
    """The URL without user and password, fit to be shown."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
