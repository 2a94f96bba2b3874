"""Real Redis landscapes out of the Valkey binary: a primary with replicas and sentinels, and a Cluster. All on 127.0.0.1."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from redis.client import Redis
from redis.exceptions import RedisError

from jobs import valkey
from tests.fleet import free_port

START_S = 60.0
PRIMARY = "kiln"
PASSWORD = "p@ss/w:rd"  # every character of it must be percent-encoded in an address
ENCODED = "p%40ss%2Fw%3Ard"
DOWN_MS = 1500  # without an answer, after which a node is taken for dead


class Node:
    """One server process."""

    def __init__(self, folder: Path, *options: str, mode: str = "") -> None:
        self.port = free_port()
        self.name = f"127.0.0.1:{self.port}"
        self.folder = folder / str(self.port)
        self.folder.mkdir()
        self._command = [str(valkey.binary()), *options, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self._command += ["--logfile", str(self.folder / "log"), *([mode] if mode else [])]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(valkey.mortal(self._command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def client(self, password: str | None = PASSWORD) -> Redis:
        return Redis(host="127.0.0.1", port=self.port, password=password, decode_responses=True, socket_timeout=2)

    def ask(self, *command: str | int) -> object:
        """Raises RedisError of a command that it refuses, or while it does not answer."""
        with self.client() as client:
            return client.execute_command(*command)

    def info(self, field: str) -> object:
        with self.client() as client:
            return client.info().get(field)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def until(condition: Callable[[], object], what: str) -> None:
    """Asks again and again; servers that do not answer yet are no answer."""
    limit = time.monotonic() + START_S
    while time.monotonic() < limit:
        with contextlib.suppress(RedisError, OSError):
            if condition():
                return
        time.sleep(0.02)
    raise TimeoutError(what)


SERVER = ("--appendonly", "no", "--save", "", "--repl-diskless-sync-delay", "0", "--requirepass", PASSWORD, "--masterauth", PASSWORD)


class SentinelFarm:
    """One primary with `replicas`, watched by three sentinels that ask for the same password."""

    def __init__(self, folder: Path, replicas: int = 1) -> None:
        self.servers = [Node(folder, *SERVER)]
        self.servers += [Node(folder, *SERVER, "--replicaof", "127.0.0.1", str(self.servers[0].port)) for _ in range(replicas)]
        until(lambda: self.servers[0].info("connected_slaves") == replicas, "replicas did not come")
        self.sentinels = [self._sentinel(folder) for _ in range(3)]
        for sentinel in self.sentinels:
            until(lambda asked=sentinel: self._knows_all(asked, replicas), "sentinels did not find each other")
        hosts = ",".join(sentinel.name for sentinel in self.sentinels)
        self.url = f"redis+sentinel://:{ENCODED}@{hosts}/{PRIMARY}?sentinel_password={ENCODED}"

    def _sentinel(self, folder: Path) -> Node:
        config = folder / f"sentinel-{free_port()}.conf"  # a sentinel writes down what it learns
        config.write_text(
            f'requirepass "{PASSWORD}"\n'
            f"sentinel monitor {PRIMARY} 127.0.0.1 {self.servers[0].port} 2\n"
            f'sentinel auth-pass {PRIMARY} "{PASSWORD}"\n'
            f"sentinel down-after-milliseconds {PRIMARY} {DOWN_MS}\n"
            f"sentinel failover-timeout {PRIMARY} 4000\n"
        )
        return Node(folder, str(config), mode="--sentinel")

    def _knows_all(self, sentinel: Node, replicas: int) -> bool:
        with sentinel.client() as client:
            state = client.sentinel_master(PRIMARY)
        return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == replicas)

    @property
    def primary(self) -> Node:
        """As the first sentinel says."""
        with self.sentinels[0].client() as client:
            port = client.sentinel_get_master_addr_by_name(PRIMARY)[1]
        return next(server for server in self.servers if server.port == int(port))

    def close(self) -> None:
        for node in (*self.sentinels, *self.servers):
            node.kill()


class ClusterFarm:
    """Three primaries with a replica each; who is silent for `down_ms` is taken for dead."""

    def __init__(self, folder: Path, down_ms: int = DOWN_MS) -> None:
        self._timeout = ("--cluster-node-timeout", str(down_ms), "--cluster-require-full-coverage", "no")
        self.nodes = [Node(folder, *SERVER, *self._options()) for _ in range(6)]
        for node in self.nodes:
            until(lambda asked=node: asked.ask("PING"), "a node did not start")
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port, self._bus(node))
        for number, node in enumerate(self.nodes[:3]):
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * 16384 // 3, (number + 1) * 16384 // 3 - 1)
        for number, node in enumerate(self.nodes[3:]):
            primary = str(self.nodes[number].ask("CLUSTER", "MYID"))
            until(lambda asked=node, known=primary: known in str(asked.ask("CLUSTER", "NODES")), "nodes did not meet")
            node.ask("CLUSTER", "REPLICATE", primary)
        until(self.whole, "the Cluster did not come up")
        self.url = f"redis+cluster://:{ENCODED}@" + ",".join(node.name for node in self.nodes)

    def _options(self) -> tuple[str, ...]:
        return ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), *self._timeout)

    def _bus(self, node: Node) -> str:
        with node.client() as client:
            return str(client.config_get("cluster-port")["cluster-port"])

    def whole(self) -> bool:
        """Whether every node sees every slot served by a primary, and a replica that is in step with it."""
        links = [node.info("master_link_status") for node in self.nodes]
        return links.count("up") == links.count(None) == 3 and all(self._sees_all(node) for node in self.nodes)

    def _sees_all(self, node: Node) -> bool:
        with node.client() as client:
            rows = client.execute_command("CLUSTER", "SLOTS")
            ok = "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO"))
        return ok and sum(row[1] - row[0] + 1 for row in rows) == 16384 and all(len(row) == 4 for row in rows)

    def primary_of(self, key: str) -> Node:
        """Who serves this key, as the first node that answers says."""
        for node in self.nodes:
            with contextlib.suppress(RedisError, OSError), node.client() as client:
                slot = client.execute_command("CLUSTER", "KEYSLOT", key)
                for low, high, primary, *_ in client.execute_command("CLUSTER", "SLOTS"):
                    if low <= slot <= high:
                        return next(n for n in self.nodes if n.port == primary[1])
        raise LookupError(key)

    def empty(self) -> None:
        """Forget every key, on whoever is a primary now."""
        for node in self.nodes:
            with contextlib.suppress(RedisError, OSError):
                node.ask("FLUSHALL")

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
