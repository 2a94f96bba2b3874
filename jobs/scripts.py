"""The Lua scripts of the queue, each behind the shared prelude, called by digest and loaded when the server lacks them."""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from jobs.pipe import Pipe
from jobs.primary import NotPrimary

NAME = re.compile(r"[A-Za-z_]\w*")
STATEMENT = re.compile(r"^(?:--[^\n]*\n)*(?:local |\w+ = )", re.MULTILINE)  # what begins one at the outermost level
DEFINED = re.compile(r"^(?:local (?!function\b)[\w, ]+|local function \w+|\w+ =)", re.MULTILINE)
PRELUDE = ("prelude", "prelude_queue", "prelude_work", "prelude_end")  # in this order: later parts call earlier ones


@functools.cache
def sources() -> Mapping[str, str]:
    """Name -> text of each script in `lua/`, what it needs of the prelude behind its shebang line, which must stay the first."""
    texts = {f.name.removesuffix(".lua"): f.read_text("utf-8") for f in (files("jobs") / "lua").iterdir() if f.name.endswith(".lua")}
    prelude = _blocks("\n".join(texts.pop(part) for part in PRELUDE))
    return {name: text.replace("\n", f"\n{_needed(prelude, text)}\n", 1) for name, text in texts.items()}


def _blocks(prelude: str) -> list[tuple[set[str], str]]:
    """Its statements at the outermost level, each with the comment before it: the names that they give a meaning, and their text."""
    statements = [found.start() for found in STATEMENT.finditer(prelude)]
    texts = [prelude[start:end] for start, end in itertools.pairwise([*statements, len(prelude)])]
    return [(_names(DEFINED.search(text)[0]), text.strip("\n")) for text in texts]  # type: ignore[index]


def _names(text: str) -> set[str]:
    """Every word outside comments that could be a name."""
    return set(NAME.findall(re.sub("--.*", "", text))) - {"local", "function"}


def _needed(blocks: Sequence[tuple[set[str], str]], script: str) -> str:
    """Those that the script uses, through others or at once: Lua makes every function anew in every call."""
    wanted, unread = _names(script), True
    while unread:
        used = [text for names, text in blocks if names & wanted]
        found = _names("\n".join(used))
        unread, wanted = not found <= wanted, wanted | found
    return "\n".join(text for names, text in blocks if names & wanted)


def head(name: str) -> str:
    """What a script takes and answers, as its first comment says it."""
    lines = (files("jobs") / "lua" / f"{name}.lua").read_text("utf-8").split("\n")[1:]
    return "\n".join(line[3:] for line in itertools.takewhile(lambda line: line.startswith("--"), lines))


class Scripts:
    """Runs the scripts on one shard: every call names the shard as its only key, e.g. `{q0}`."""

    def __init__(self, redis: Redis, shard: str) -> None:
        self.redis = redis
        self._root = "{" + shard + "}"
        self._scripts = {name: redis.register_script(text) for name, text in sources().items()}
        self._pipe = Pipe(redis)

    def key(self, name: str) -> str:
        return f"{self._root}:{name}"

    async def run(self, name: str, *args: str | int | float | bytes) -> Any:
        """The script's reply. Raises redis.exceptions.RedisError (OutOfMemoryError where the server is full)."""
        return await self._scripts[name](keys=[self._root], args=args)

    async def run_beside(self, name: str, *args: str | int | float | bytes) -> Any:
        """As `run`, in one write with those of others who call at this time."""
        try:
            return await self._pipe.call("EVALSHA", self._scripts[name].sha, 1, self._root, *args)
        except (NoScriptError, NotPrimary):  # it has not been run: `run` loads it, and finds the one who may
            return await self.run(name, *args)

    async def run_each(self, name: str, calls: Iterable[Sequence[str | int | float]]) -> list[Any]:
        """The replies to several calls that are sent at once; others' commands may come between them. Raises as `run` does."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for args in calls:
                await self._scripts[name](keys=[self._root], args=args, client=pipe)
            return await pipe.execute()


if __name__ == "__main__":  # for other languages: the whole text of a script, or the names of all
    print(sources()[sys.argv[1]] if len(sys.argv) > 1 else "\n".join(sorted(sources())))
