"""A span for each call of Redis, behind the span that it is made for: the request's in a gateway, that of the job's request in a worker.

A span names the script or the command and the shard, never what goes with it: records hold prompts. Calls that are made for nobody in
particular (reaping, renewing, waiting for work) have none, and neither has anything where nobody asked for traces.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from jobs.scripts import Scripts
from jobs.shards import Shards
from jobs.tracing import Tracing

Parent = Callable[[str, Sequence[Any]], str]  # of a script and its arguments: the traceparent behind which its span stands, or nothing
WITHIN = frozenset({"EVALSHA", "SCRIPT LOAD", "XREAD", "BLPOP"})  # parts of a script's call, and those that wait for others


def nobody(script: str, args: Sequence[Any]) -> str:
    return ""


def watch(shards: Shards, tracing: Tracing, parent: Parent = nobody) -> None:
    """From now on calls by these shards have spans, if there are any at all."""
    if tracing.provider is None:
        return
    for shard in shards.all:
        for way in ("run", "run_beside"):
            setattr(shard, way, _script(getattr(shard, way), shard, tracing, parent))
    for redis in shards.clients:
        for way, traced in (("execute_command", _command), ("pipeline", _pipeline)):
            setattr(redis, way, traced(getattr(redis, way), tracing))


def _script(plain: Callable[..., Awaitable[Any]], shard: Scripts, tracing: Tracing, parent: Parent) -> Callable[..., Awaitable[Any]]:
    async def run(name: str, *args: Any) -> Any:
        with tracing.within(parent(name, args)), tracing.call(f"redis {name}", operation=name, namespace=shard.key("").strip("{}:")):
            return await plain(name, *args)

    return run


def _command(plain: Callable[..., Awaitable[Any]], tracing: Tracing) -> Callable[..., Awaitable[Any]]:
    async def execute_command(*args: Any, **options: Any) -> Any:
        name = str(args[0])
        if name in WITHIN:
            return await plain(*args, **options)
        with tracing.call(f"redis {name}", operation=name):
            return await plain(*args, **options)

    return execute_command


def _pipeline(plain: Callable[..., Any], tracing: Tracing) -> Callable[..., Any]:
    def pipeline(*args: Any, **options: Any) -> Any:
        made = plain(*args, **options)
        execute = made.execute

        @functools.wraps(execute)
        async def traced(*args: Any, **options: Any) -> Any:
            with tracing.call("redis pipeline", operation="pipeline"):
                return await execute(*args, **options)

        made.execute = traced
        return made

    return pipeline
