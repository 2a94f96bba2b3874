"""The commands about API keys: `celadon keys add`, `list`, `revoke` and `limit`. They talk to Redis, not to a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from celadon.settings import of_gateway
from celadon.supervisor import StartRefused

if TYPE_CHECKING:
    from jobs.clients import ApiKey, Clients, ClientTerms
    from jobs.shards import Shards

Value = TypeVar("Value")
DAY_S = 86_400.0

app = typer.Typer(help="API keys: make, list and revoke them; say what a client may.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The client's name: whose the jobs are. Several keys may have one.", show_default=False)]
Days = Annotated[float | None, typer.Option(min=0.001, help="After so many days the key is good no more.", show_default=False)]
TERMS: dict[str, Any] = {  # the options that say what a client may, of `add` and `limit`
    "weight": Annotated[float | None, typer.Option(min=0.001, help="Share of the workers; 1 unless said otherwise.", show_default=False)],
    "class_": Annotated[
        str | None,
        typer.Option("--class", help="Of jobs that name none, and the best they may name; - is normal, and any.", show_default=False),
    ],
    "rate": Annotated[float | None, typer.Option(min=-1, help="Jobs a second in the long run; 0: any number.", show_default=False)],
    "burst": Annotated[int | None, typer.Option(min=-1, help="Jobs at once after a pause.", show_default=False)],
    "max_queued": Annotated[int | None, typer.Option(min=-1, help="Jobs that may wait.", show_default=False)],
    "per_day": Annotated[int | None, typer.Option(min=0, help="Pictures a day (UTC); 0: any number.", show_default=False)],
}


def with_terms(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options in place of `wanted`, which holds what they say."""
    own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != "wanted"]
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in TERMS.items()]

    @functools.wraps(command)
    def run(**said: Any) -> None:
        command(wanted=_wanted(**{name: said.pop(name) for name in TERMS}), **said)

    run.__signature__ = inspect.Signature([one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + more)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*own, *more)}
    del run.__wrapped__  # typer would look behind it
    return run


@app.command()
@with_terms
def add(name: Name, wanted: dict[str, Any], days: Days = None) -> None:
    """Make a key and print it: this once, since only its hash is kept. What a client may is said for all its keys.

    --rate, --burst and --max-queued of -1 are the service's own.
    """

    async def make(clients: Clients, shards: Shards) -> str:
        await _say_terms(clients, shards, name, wanted)  # first: there is no moment in which the key may more
        now = time.time()
        return await clients.add_key(name, now, now + days * DAY_S if days else None)

    key = _ask(make)
    Console(stderr=True).print(f"[green]✓[/] a key of {escape(name)}, shown this once:", highlight=False)
    typer.echo(key)


@app.command("list")
def list_() -> None:
    """All keys, by what may be shown of them, and what their clients may."""

    async def look(clients: Clients, shards: Shards) -> list[tuple[ApiKey, ClientTerms]]:
        return [(key, await clients.terms(key.client)) for key in await clients.keys()]

    found = _ask(look)
    if not found:
        Console().print("[dim]no keys[/]")
        return
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
    for column in ("id", "client", "key", "made", "used", "until", "may"):
        table.add_column(column, no_wrap=column in ("id", "key"))
    for key, terms in found:
        until = _day(key.expires_at) + ("" if key.good(time.time()) else " (over)")
        table.add_row(key.id, escape(key.client), key.hint, _day(key.created_at), _day(key.used_at), until, _may(terms))
    Console().print(table)


@app.command()
def revoke(ids: Annotated[list[str], typer.Argument(help="Ids as `celadon keys list` shows them.", show_default=False)]) -> None:
    """Make keys good no more: gateways know it within five seconds. Jobs and pictures stay, and are seen by the client's other keys."""

    async def forget(clients: Clients, shards: Shards) -> list[ApiKey]:
        kept = await clients.keys()
        found = [[key for key in kept if key.id == id_] for id_ in ids]
        if unknown := [id_ for id_, keys in zip(ids, found, strict=True) if len(keys) != 1]:
            raise StartRefused(f"there is no key {unknown[0]!r}: `celadon keys list` shows their ids; nothing was revoked")
        for (key,) in found:
            await clients.revoke(key.digest)
        return [key for (key,) in found]

    for key in _ask(forget):
        Console().print(f"[green]✓[/] {key.id} of {escape(key.client)} is revoked", highlight=False)


@app.command()
@with_terms
def limit(name: Name, wanted: dict[str, Any]) -> None:
    """Change what a client may, for all its keys. What is not named stays; without any option it is told.

    --rate, --burst and --max-queued of -1 are the service's own.
    """

    async def say(clients: Clients, shards: Shards) -> ClientTerms:
        if not any(key.client == name for key in await clients.keys()):
            raise StartRefused(f"no key is of {name!r}: `celadon keys list` shows the clients; nothing was changed")
        return await _say_terms(clients, shards, name, wanted)

    terms = _ask(say)
    Console().print(f"{escape(name)}: {_may(terms)}", highlight=False)


@app.command("webhook-secret")
def webhook_secret(
    name: Annotated[str, typer.Argument(help="Whose webhooks it signs; `default` is everybody where there are no keys.")] = "default",
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one. It signs beside the old one until --retire.")] = False,
    retire: Annotated[bool, typer.Option("--retire", help="Let the old one sign no more, when the receiver knows the new one.")] = False,
) -> None:
    """Print the secret that signs a client's webhooks, the newest if there are two."""
    if rotate and retire:
        raise typer.BadParameter("the receiver needs both for a while", param_hint="--retire")

    async def tell(clients: Clients, shards: Shards) -> bytes:
        from jobs.hook_secrets import HookSecrets

        secrets = HookSecrets(shards)
        if name != "default" and not any(key.client == name for key in await clients.keys()):
            raise StartRefused(f"no key is of {name!r}: `celadon keys list` shows the clients")
        kept = await (secrets.rotate(name) if rotate else secrets.retire(name) if retire else secrets.of(name))
        return kept[0]

    from jobs.hook_signature import show_secret

    typer.echo(show_secret(_ask(tell)))


def _wanted(
    weight: float | None, class_: str | None, rate: float | None, burst: int | None, max_queued: int | None, per_day: int | None
) -> dict[str, Any]:
    """The terms that were named; -1 and - stand for None. Raises a usage error on a class that there is not."""
    from jobs.job import SERVICE_CLASSES

    if class_ not in (None, "-", *SERVICE_CLASSES):
        raise typer.BadParameter(f"one of {', '.join(SERVICE_CLASSES)}, or -", param_hint="--class")
    if burst == 0 or max_queued == 0:
        raise typer.BadParameter("at least 1, or -1 for the service's own", param_hint="--burst" if burst == 0 else "--max-queued")
    if rate is not None and -1 < rate < 0:
        raise typer.BadParameter("0 or more, or -1 for the service's own", param_hint="--rate")
    said = {"weight": weight, "service_class": class_, "rate_per_s": rate, "burst": burst, "max_queued": max_queued, "per_day": per_day}
    return {name: None if value in (-1, "-") else value for name, value in said.items() if value is not None}


async def _say_terms(clients: Clients, shards: Shards, name: str, wanted: dict[str, Any]) -> ClientTerms:
    from jobs.job_queue import JobQueue

    terms = dataclasses.replace(await clients.terms(name), **wanted)
    if wanted:
        await clients.set_terms(name, terms)
        await JobQueue(shards).set_weight(name, terms.weight)
    return terms


def _may(terms: ClientTerms) -> str:
    """What is not as for everybody."""
    said = {
        "weight": None if terms.weight == 1 else terms.weight,
        "class": terms.service_class,
        "rate": terms.rate_per_s,
        "burst": terms.burst,
        "queued": terms.max_queued,
        "per day": terms.per_day or None,
    }
    words = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in said.items() if value is not None]
    return ", ".join(words) or "-"


def _day(moment: float | None) -> str:
    return "-" if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")


def _ask(work: Callable[[Clients, Shards], Awaitable[Value]]) -> Value:
    """Do it with the Redis of the settings. What cannot be is said in one line."""
    from redis import RedisError

    from celadon.__main__ import fail
    from jobs.clients import Clients
    from jobs.connection import ServerUnfit
    from jobs.shards import open_shards

    async def ask(url: str, count: int) -> Value:
        async with contextlib.aclosing(open_shards(url, count)) as shards:
            await shards.agree()  # weights lie in the shard of their client
            return await work(Clients(shards), shards)

    try:
        with _redis() as (url, count):
            return asyncio.run(ask(url, count))
    except (RedisError, OSError) as error:
        raise fail(f"no answer from Redis: {type(error).__name__}", 1) from error
    except (StartRefused, ServerUnfit, ValueError) as error:
        raise fail(str(error), 1) from error


@contextlib.contextmanager
def _redis() -> Iterator[tuple[str, int]]:
    """Address and number of shards. The embedded server is started for the moment where no service runs. Raises StartRefused."""
    from celadon import data_dir as data_dirs
    from jobs import valkey

    settings = of_gateway()
    url = settings.redis_url or valkey.url(settings.data_dir)
    if settings.redis_url or data_dirs.read_service(settings.data_dir) or valkey.answers(settings.data_dir):
        yield url, settings.shards
        return
    try:
        with data_dirs.own(settings.data_dir):
            server = valkey.start(settings.data_dir)
            try:
                yield url, settings.shards
            finally:
                server.terminate()
                server.wait()
    except (data_dirs.DataDirBusy, RuntimeError) as error:
        raise StartRefused(str(error)) from error
