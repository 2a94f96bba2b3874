"""Calls of many at one time in one write: what is asked for while answers are awaited leaves together, as soon as they are there.

One connection carries all of it, and nothing waits for a timer: who comes alone is sent at once. A caller that goes away takes
nothing with it; its answer is read and dropped.
"""

from __future__ import annotations

import asyncio
from copy import copy
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

Call = tuple[bytes, "asyncio.Future[Any]"]  # a packed command, and who waits for its answer


class Pipe:
    """Commands in the order in which they came, for calls that may be repeated after a lost answer."""

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._waiting: list[Call] = []
        self._carrier: asyncio.Task[None] | None = None

    async def call(self, *args: str | int | float | bytes) -> Any:
        """The answer to one command. Raises RedisError: of its own, or of the connection, which fails all that were on their way."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((hiredis.pack_command(args), answer))  # type: ignore[arg-type]  # its stub knows one argument
        if self._carrier is None:
            self._carrier = asyncio.create_task(self._carry())
        return await answer

    async def _carry(self) -> None:
        """Until nobody waits any more. Whoever comes after the last look at `_waiting` finds no carrier, and begins anew."""
        calls, connection = list[Call](), None
        try:
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            while self._waiting:
                calls, self._waiting = self._waiting, []
                await _exchange(connection, calls)
        except Exception as error:
            for answer in self._unanswered(calls):
                answer.set_exception(copy(error))  # each its own, since every raise adds to a traceback
        finally:
            for answer in self._unanswered(calls):
                answer.cancel()  # the loop is ending
            self._carrier = None
            if connection is not None:
                await self._pool.release(connection)

    def _unanswered(self, calls: list[Call]) -> list[asyncio.Future[Any]]:
        calls, self._waiting = [*calls, *self._waiting], []
        return [answer for _, answer in calls if not answer.done()]


async def _exchange(connection: AbstractConnection, calls: list[Call]) -> None:
    """A refusal is the answer to one call, and its caller's alone."""
    await connection.send_packed_command(b"".join(packed for packed, _ in calls))
    for _, answer in calls:
        try:
            told = await connection.read_response()
        except ResponseError as refusal:
            if not answer.done():
                answer.set_exception(refusal)
        else:
            if not answer.done():
                answer.set_result(told)
