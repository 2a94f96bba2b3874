"""`rediss+sentinel://` and `rediss+cluster://`: a job's whole way over real TLS, and nobody spoken to whose certificate is not trusted."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from jobs.address import parse
from jobs.image_store import image_key
from jobs.job_queue import JobQueue
from jobs.primary import Cluster, FollowingTlsConnection, Sentinels
from jobs.shards import open_shards
from tests.fleet import free_port
from tests.job_samples import MODEL, sample_image, sample_job
from tests.redis_farm import ENCODED, PASSWORD, PRIMARY, SERVER, Node, until
from tests.tls_proxy import TlsDoor, certificate

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def doors(files: tuple[Path, Path]) -> Iterator[tuple[TlsDoor, TlsDoor]]:
    found = TlsDoor(*files), TlsDoor(*files)
    yield found
    for door in found:
        door.close()


@pytest.fixture(params=["sentinel", "cluster"])
def address(request: pytest.FixtureRequest, doors: tuple[TlsDoor, TlsDoor], tmp_path: Path) -> Iterator[str]:
    """One server behind the first door; behind the second a sentinel that knows it by the first."""
    first, second = doors
    cluster = ("--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", str(first.port))
    cluster += ("--cluster-port", str(free_port()))
    nodes = [Node(tmp_path, *SERVER, *(cluster if request.param == "cluster" else ()))]
    first.server = nodes[0].port
    try:
        until(lambda: nodes[0].ask("PING"), "the server did not start")
        if request.param == "cluster":
            nodes[0].ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            until(lambda: "cluster_state:ok" in str(nodes[0].ask("CLUSTER", "INFO")), "the Cluster did not come up")
            yield f"rediss+cluster://:{ENCODED}@127.0.0.1:{first.port}"
        else:
            config = tmp_path / "sentinel.conf"
            config.write_text(f'sentinel monitor {PRIMARY} 127.0.0.1 {first.port} 1\nsentinel auth-pass {PRIMARY} "{PASSWORD}"\n')
            nodes.append(Node(tmp_path, str(config), mode="--sentinel"))
            second.server = nodes[1].port
            with nodes[1].client(None) as client:
                until(lambda: client.sentinel_master(PRIMARY)["flags"] == "master", "the sentinel does not see the server")
            yield f"rediss+sentinel://:{ENCODED}@127.0.0.1:{second.port}/{PRIMARY}"
    finally:
        for node in nodes:
            node.kill()


async def test_a_job_goes_its_way_over_tls(address: str, doors: tuple[TlsDoor, TlsDoor], files: tuple[Path, Path]) -> None:
    shards = open_shards(f"{address}?ssl_ca_certs={files[0]}")
    try:
        await shards.check()
        queue = JobQueue(shards)
        job = (await queue.submit(sample_job(id=queue.new_id("ada")))).job
        [claimed] = await queue.claim("w", [MODEL], 1)
        assert claimed.id == job.id and await queue.finish("w", 1, job.id, [sample_image(job)])
        done = await queue.get(job.id)
        assert done and done.images[0].key == image_key(job.id, 1, 0, "png")
    finally:
        await shards.aclose()
    assert doors[0].encrypted > 0 and (doors[1].encrypted > 0) is ("sentinel" in address)


async def test_a_certificate_that_nobody_signed_is_not_trusted(address: str, doors: tuple[TlsDoor, TlsDoor]) -> None:
    shards = open_shards(address)  # with the authorities of this machine
    try:
        with pytest.raises(RedisError):
            await shards.check()
    finally:
        await shards.aclose()
    assert doors[0].encrypted == doors[1].encrypted == 0


def test_what_the_address_says_reaches_every_client(files: tuple[Path, Path]) -> None:
    cert, key = files
    options = f"ssl_ca_certs={cert}&ssl_certfile={cert}&ssl_keyfile={key}&ssl_check_hostname=false"
    wanted = {"ssl_ca_certs": str(cert), "ssl_certfile": str(cert), "ssl_keyfile": str(key), "ssl_check_hostname": False}
    for url in (f"rediss+sentinel://a/{PRIMARY}?sentinel_username=guard&{options}", f"rediss+cluster://a?{options}"):
        assert parse(url).tls == wanted
        shards = open_shards(url)
        clients: list[Redis] = list(shards.clients)
        asking = shards.guide._sentinel.sentinels if isinstance(shards.guide, Sentinels) else []
        asking = list(shards.guide._nodes.values()) if isinstance(shards.guide, Cluster) else asking
        assert clients and asking
        for client in clients:
            assert client.connection_pool.connection_class is FollowingTlsConnection
        for client in (*clients, *asking):
            connection = client.connection_pool.make_connection()
            assert (connection.ca_certs, connection.certfile, connection.keyfile) == (str(cert), str(cert), str(key))
            assert connection.check_hostname is False and connection.cert_reqs == ssl.CERT_REQUIRED
