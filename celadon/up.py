"""`celadon up`: the whole service on one machine. Valkey, the gateway and the workers, each a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from celadon import data_dir as data_dirs
from celadon import generate, logs, pictures
from celadon.client import CeladonError, Client
from celadon.settings import check_redis, check_storage, of_gateway, of_worker
from celadon.supervisor import Child, StartRefused, Supervisor

if TYPE_CHECKING:
    from jobs.registry import Registry, WorkerInfo
    from service.settings import Settings

START_S = 30.0  # Valkey and the gateway answer within this, or the start is refused
WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}
METRICS_PORT = "CELADON_WORKER_METRICS_PORT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to start, with everything checked that can be checked before."""

    settings: Settings
    data_dir: Path  # absolute
    workers: int
    worker_stop_s: float
    model: str
    first_prompt: str
    show_logs: bool

    @property
    def embedded(self) -> bool:
        return not self.settings.redis_url


def run(*, workers: int, first_prompt: str, show_logs: bool, console: Console, **overrides: Any) -> None:
    """Start everything and serve until SIGINT or SIGTERM. Raises StartRefused."""
    plan = make_plan(workers, first_prompt, show_logs, overrides)
    try:
        with data_dirs.own(plan.data_dir) as lock, listen(plan.settings.host, plan.settings.port) as listener:
            asyncio.run(Up(plan, listener, lock, console).serve())
    except data_dirs.DataDirBusy as error:
        raise StartRefused(str(error)) from error
    except OSError as error:
        raise StartRefused(f"the data folder {plan.data_dir} cannot be used: {error.strerror or error}") from error
    finally:
        console.show_cursor(True)


def make_plan(workers: int, first_prompt: str, show_logs: bool, overrides: dict[str, Any]) -> Plan:
    """Read and check the settings of gateway and workers alike. Raises StartRefused naming each variable at fault."""
    settings = of_gateway(**overrides)
    worker = of_worker(redis_url=settings.redis_url or "unix:///embedded")
    if settings.redis_url:
        check_redis(settings.redis_url, settings.shards)
    check_storage(settings)
    return Plan(
        settings=settings,
        data_dir=settings.data_dir.resolve(),
        workers=workers,
        worker_stop_s=worker.drain_s + 10,
        model=worker.model,
        first_prompt=first_prompt,
        show_logs=show_logs,
    )


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """The listening socket. The gateway inherits it, so that clients wait, and are not refused, while it starts again."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise StartRefused(
            f"port {port} of {host} cannot be opened ({error.strerror}): free it, or choose another with --port (0 takes any)"
        ) from error
    with listener:
        yield listener


class Up:
    """One run of the service: its children, its start screen, its end."""

    def __init__(self, plan: Plan, listener: socket.socket, lock: int, console: Console) -> None:
        self.plan, self.listener, self.lock, self.console = plan, listener, lock, console
        self.logs = plan.data_dir / "logs"
        host, port = plan.settings.host, listener.getsockname()[1]
        self.url = f"http://{WILDCARDS.get(host, f'[{host}]' if ':' in host else host)}:{port}"
        self.started = time.time()
        self.supervisor = Supervisor(self._report, on_signal=self._stopping)

    async def serve(self) -> None:
        """Start, serve and stop. Raises StartRefused."""
        self.supervisor.listen()
        self.logs.mkdir(exist_ok=True)
        follow = asyncio.create_task(logs.follow(self.logs, self._print_log)) if self.plan.show_logs else None
        self._screen()
        refusal: StartRefused | None = None
        try:
            await self._start()
        except StartRefused as error:
            refusal = error
            self.supervisor.stop()
        await self.supervisor.run()
        if follow:
            follow.cancel()
        if name := self.supervisor.refused:
            refusal = StartRefused(f"{name} refuses to start:\n{logs.tail(self.logs / f'{name}.log')}")
        if refusal:
            raise refusal
        self.console.print(f"Stopped. Jobs and pictures stay in {escape(str(self.plan.data_dir))}.", highlight=False, soft_wrap=True)

    async def _start(self) -> None:
        """Valkey first, since the others need it; then gateway and workers at once."""
        if self.plan.embedded:
            await self._stage("Valkey", self._valkey(), self._valkey_answers)
        for child in (self._gateway(), *(self._worker(number) for number in range(1, self.plan.workers + 1))):
            await self.supervisor.add(child)
        await self._stage("gateway", None, self._gateway_answers)
        data_dirs.write_service(self.plan.data_dir, data_dirs.Service(self.url, os.getpid()))
        with self.console.status("workers load the model"):
            ready = await self.supervisor.until(self._workers_ready())
        if ready:
            self.console.print("[bold green]Ready.[/] Ctrl-C stops everything.\n")
            if self.plan.first_prompt:
                threading.Thread(target=self._first_picture, daemon=True).start()

    async def _stage(self, name: str, child: Child | None, answers: Callable[[], Any]) -> None:
        if child:
            await self.supervisor.add(child)
        begun = time.monotonic()

        async def answered() -> None:
            while not await answers():
                if time.monotonic() - begun > START_S:
                    raise StartRefused(f"{name} does not answer after {START_S:g} s\n{logs.tail(self.logs / f'{name.lower()}.log')}")
                await asyncio.sleep(0.02)

        if await self.supervisor.until(answered()):
            self._done(name, begun)

    def _valkey(self) -> Child:
        from jobs import valkey

        valkey.socket_path(self.plan.data_dir).parent.mkdir(mode=0o700, exist_ok=True)
        command = [*valkey.command(self.plan.data_dir), "--logfile", ""]  # to standard output, as all the others
        return self._child("valkey", command, stage=0, death_signal="SIGTERM", pass_fds=(self.lock,))

    def _gateway(self) -> Child:
        command = self._celadon("gateway", "--fd", str(self.listener.fileno()))
        return self._child("gateway", command, stage=1, stop_s=self.plan.settings.request_drain_s + 5, pass_fds=(self.listener.fileno(),))

    def _worker(self, number: int) -> Child:
        child = self._child(f"worker-{number}", self._celadon("worker"), stage=2, stop_s=self.plan.worker_stop_s)
        if (port := child.env.get(METRICS_PORT, "0")) != "0":  # two workers cannot have one port
            child.env = {**child.env, METRICS_PORT: str(int(port) + number - 1)}
        return child

    def _celadon(self, *arguments: str) -> list[str]:
        # -P: a folder called `jobs` where the user stands must not be taken for ours.
        return [sys.executable, "-P", "-m", "celadon", *arguments]

    def _child(self, name: str, command: list[str], **options: Any) -> Child:
        log = self.logs / f"{name}.log"
        logs.rotate(log)
        return Child(name, command, self._environment(), log, **options)

    def _environment(self) -> dict[str, str]:
        """What every child is told; the address of Redis may hold a password and never stands in an argument."""
        return os.environ | {
            "CELADON_REDIS_URL": self._redis_url(),
            "CELADON_DATA_DIR": str(self.plan.data_dir),
            "CELADON_HOST": self.plan.settings.host,
            "CELADON_PORT": str(self.listener.getsockname()[1]),
            "PYTHONUNBUFFERED": "1",
        }

    async def _valkey_answers(self) -> bool:
        from jobs import valkey

        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_unix_connection(valkey.url(self.plan.data_dir).removeprefix("unix://"))
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
            return answer.startswith(b"+PONG")  # while it reads its data from the disk it says -LOADING
        return False

    async def _gateway_answers(self) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            async with httpx2.AsyncClient(base_url=self.url, trust_env=False, timeout=5) as http:
                return (await http.get("/healthz")).is_success
        return False

    async def _workers_ready(self) -> None:
        """Wait for every worker we started; one that dies meanwhile is started again and waited for."""
        from jobs.registry import Registry
        from jobs.shards import open_shards

        begun, seen = time.monotonic(), 0
        async with contextlib.aclosing(open_shards(self._redis_url(), self.plan.settings.shards)) as shards:
            while seen < self.plan.workers:
                infos = await self._started_here(Registry(shards))
                for info in infos[seen:]:
                    self._done(f"worker   {', '.join(info.models)} on {info.device}, {info.backend}", begun)
                seen = max(seen, len(infos))
                await asyncio.sleep(0.1)

    async def _started_here(self, registry: Registry) -> list[WorkerInfo]:
        """Workers that are ready, as Redis tells: a gateway may want a key for that."""
        from redis import RedisError

        with contextlib.suppress(RedisError, OSError):
            return [worker for worker in await registry.workers() if worker.ready and worker.started_at > self.started - 1]
        return []

    def _redis_url(self) -> str:
        from jobs import valkey

        return valkey.url(self.plan.data_dir) if self.plan.embedded else self.plan.settings.redis_url

    def _first_picture(self) -> None:
        try:
            with Client(self.url, api_key=generate.api_key()) as client:
                job = pictures.draw(client, self.console, self.plan.first_prompt)
                for image in job.images:
                    key = client.local(image.url).partition("?")[0].removeprefix("/images/")
                    place = self.plan.settings.storage.rstrip("/") or self.plan.settings.image_dir.resolve()
                    self.console.print(f"  [bold]{escape(image.url)}[/]\n  {escape(f'{place}/{key}')}", highlight=False, soft_wrap=True)
        except (CeladonError, OSError) as error:
            self.console.print(f"[red]✗[/] the first picture failed: {escape(str(error))}")

    def _screen(self) -> None:
        from jobs.address import without_secret

        plan, table = self.plan, Table.grid(padding=(0, 2))
        redis = "embedded Valkey" if plan.embedded else without_secret(plan.settings.redis_url)
        rows = {"Service": self.url, "API": f"{self.url}/openapi.json", "Data": plan.data_dir, "Logs": self.logs, "Redis": redis}
        rows |= {"Model": plan.model, "Workers": plan.workers}
        for name, value in rows.items():
            table.add_row(f"  [dim]{name}[/]", escape(str(value)))
        self.console.print(f"\n[bold]Celadon[/] {version('celadon')}\n", highlight=False)
        self.console.print(table)
        if plan.settings.keys_in_force:
            self.console.print("  Requests need an API key: `celadon keys add NAME` makes one.", highlight=False)
        elif not plan.settings.only_this_machine:
            self.console.print("  [yellow]Whoever reaches this address may use the service.[/]")
        self.console.print()

    def _done(self, name: str, begun: float) -> None:
        self.console.print(f"[green]✓[/] {escape(name)} [dim]{time.monotonic() - begun:.1f} s[/]", highlight=False)

    def _report(self, name: str, line: str) -> None:
        """What happened to a child, and the last words of its log."""
        last = logs.tail(self.logs / f"{name}.log", lines=3)
        self.console.print(f"[yellow]![/] {escape(name)} {escape(line)}\n[dim]{escape(last)}[/]", highlight=False, soft_wrap=True)

    def _stopping(self) -> None:
        self.console.print("\nStopping: workers finish or hand back what they hold. Once more kills.", highlight=False)

    def _print_log(self, name: str, line: str) -> None:
        self.console.print(f"[dim]{name:>9} |[/] {escape(line)}", highlight=False, soft_wrap=True)
