"""The settings of gateway and worker, read for the commands: whatever is wrong refuses the start in one way."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from celadon.supervisor import StartRefused

if TYPE_CHECKING:
    from jobs.look import Seen
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


def check_storage(settings: Settings) -> None:
    """Raises StartRefused if pictures are to lie elsewhere and could not be stored there now."""
    from jobs.stores import ExtraMissing, check_reachable

    try:
        asyncio.run(check_reachable(settings.storage, settings.s3_endpoint))
    except (ExtraMissing, OSError) as error:
        raise StartRefused(str(error)) from error


def check_redis(url: str, shards: int) -> Seen:
    """What answers there. Raises StartRefused if nothing does, or if it is not fit to keep jobs."""
    import redis

    from jobs.address import without_secret
    from jobs.connection import ServerUnfit
    from jobs.look import look

    try:
        return asyncio.run(look(url, shards))
    except ServerUnfit as error:
        raise StartRefused(f"CELADON_REDIS_URL: {error}") from error
    except (redis.RedisError, OSError) as error:
        raise StartRefused(f"CELADON_REDIS_URL: no answer from {without_secret(url)}: {error}") from error
