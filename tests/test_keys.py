"""Who gets in, and how far: a gateway that wants keys, asked over HTTP with and without them."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml
from redis.asyncio import Redis
from redis.client import Redis as BlockingRedis

import jobs.valkey
from cards import card
from job_samples import Clock, sample_job
from jobs.clients import digest_of
from jobs.connection import connect
from jobs.image_store import LocalImageStore, Signer
from jobs.job_queue import JobQueue
from jobs.registry import Registry, WorkerInfo, pseudonym
from keyed import asking, make_key
from live_gateway import Live, assert_error, depth, running
from redis_farm import until
from service import keyring
from service.catalog import ImageLinks
from service.settings import Settings, SettingsError

PROMPT = {"prompt": "a red apple"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this file: its tests leave each other's clients alone, so that one gateway is enough for most."""
    folder = tmp_path_factory.mktemp("redis")
    process = jobs.valkey.start(folder)
    try:
        yield jobs.valkey.url(folder)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def gateway(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(server, tmp_path_factory.mktemp("data"), card(), keys="required", door_wait_s=1) as live:
        yield live


@pytest.fixture(scope="module")
def key(server: str) -> str:
    return make_key(server, "ada")


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_without_a_key_nothing_is_told_and_nothing_is_queued(gateway: Live, key: str, server: str) -> None:
    before = depth(server)
    for asked in ("GET /jobs", "GET /workers", "GET /models", "GET /jobs/x", "GET /nowhere", "PUT /jobs", "OPTIONS /jobs"):
        method, path = asked.split()
        answer = gateway.http.request(method, path)
        assert_error(answer, 401, "key_missing", "Authorization")
        assert answer.headers["www-authenticate"] == 'Bearer realm="celadon"'
    assert_error(gateway.http.post("/generate", content=b"{"), 401, "key_missing")  # the body is not looked at
    assert_error(gateway.post(PROMPT), 401, "key_missing")
    assert depth(server) == before


def test_what_is_of_no_client_answers_without_a_key(gateway: Live) -> None:
    assert [gateway.http.get(path).status_code for path in ("/healthz", "/readyz", "/metrics", "/openapi.json")] == [200] * 4
    assert gateway.http.get("/healthz", headers={"Authorization": "Bearer wrong"}).status_code == 200


def test_metrics_can_be_closed(server: str, tmp_path: Path, key: str) -> None:
    with running(server, tmp_path, card(), keys="required", open_metrics=False) as live, asking(live, key) as ada:
        assert_error(live.http.get("/metrics"), 401, "key_missing")
        assert ada.get("/metrics").status_code == 200


def test_a_key_is_shown_as_bearer_or_as_the_password_of_any_user(gateway: Live, key: str) -> None:
    for credentials in (f"Bearer {key}", f"bearer   {key}", basic("anybody", key), basic("", key)):
        assert gateway.post(PROMPT, Authorization=credentials).status_code == 202


def test_what_is_no_key_is_refused(gateway: Live, key: str) -> None:
    nothing = ("Bearer", "Bearer cel_", "Bearer " + "x" * 5000, "Basic !", basic("cel_", ""), "Digest a=b", "", key)
    for credentials in (*nothing, "Basic " + base64.b64encode(b"\xff\xfe").decode(), "Basic " + base64.b64encode(key.encode()).decode()):
        answer = gateway.http.get("/jobs", headers={"Authorization": credentials})
        assert_error(answer, 401, "key_invalid")
        assert answer.headers["www-authenticate"] == 'Bearer realm="celadon", error="invalid_token"'


def test_neither_another_key_nor_its_hash_nor_a_part_of_it_opens(gateway: Live, key: str) -> None:
    for wrong in (key[:-1], key[:-1] + ("A" if key[-1] != "A" else "B"), digest_of(key), key.upper(), f"{key} x"):
        assert_error(gateway.http.get("/jobs", headers={"Authorization": f"Bearer {wrong}"}), 401, "key_invalid")
    twice = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
    assert_error(gateway.http.get("/jobs", headers=twice), 401, "key_invalid")


def test_every_door_refuses_in_its_own_shape(gateway: Live) -> None:
    openai = gateway.http.get("/v1/models")
    error = openai.json()["error"]
    assert (openai.status_code, error["type"], error["code"]) == (401, "authentication_error", "key_missing")
    assert openai.headers["x-should-retry"] == "false"
    a1111 = gateway.http.get("/sdapi/v1/options")
    assert a1111.status_code == 401 and a1111.json()["detail"] == a1111.json()["error"]["message"]
    assert "Basic" not in a1111.headers["www-authenticate"]  # a browser would keep it, and send it for other sites


def test_a_key_ends_when_it_is_revoked_or_its_time_is_over(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "KEY_TTL_S", 0.2)
    first, second, short = make_key(server, "ada"), make_key(server, "ada"), make_key(server, "ada", days=1.0 / 86_400)
    with running(server, tmp_path, card(), keys="required") as live, asking(live, first) as one, asking(live, second) as other:
        job = one.post("/generate", json=PROMPT).json()
        with BlockingRedis.from_url(server) as redis:
            redis.hdel("{q0}:apikeys", digest_of(first))
        until(lambda: one.get("/jobs").status_code == 401, "a revoked key is still good")
        assert other.get(f"/jobs/{job['id']}").status_code == 200  # the jobs are the client's, not the key's
        with asking(live, short) as late:
            until(lambda: late.get("/jobs").status_code == 401, "a key is good after its time")


async def test_what_is_known_lasts_while_redis_is_away_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now, answers = 1000.0, ["old", "new", None]
    monkeypatch.setattr(time, "monotonic", lambda: now)

    async def fetch(name: str) -> str | None:
        if not answers:
            raise keyring.RedisError
        return answers.pop(0)

    lately = keyring.Lately(fetch)
    assert await lately.get("known") == "old"
    now += keyring.KEY_TTL_S - 0.1
    assert await lately.get("known") == "old"
    now += 0.2
    assert await lately.get("known") == "new" and await lately.get("unknown") is None
    now += keyring.KEY_TTL_S + keyring.AWAY_S
    assert await lately.get("known") == "new"
    now += 0.1
    with pytest.raises(keyring.RedisError):
        await lately.get("known")


async def test_no_more_is_remembered_than_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "MOST", 2)
    asked: list[str] = []

    async def fetch(name: str) -> str | None:
        asked.append(name)
        return name if name != "nobody" else None

    lately = keyring.Lately(fetch)
    for name in ("a", "b", "nobody", "nobody", "b", "c", "b", "a"):
        await lately.get(name)
    assert asked == ["a", "b", "nobody", "nobody", "c", "a"]


def test_the_use_of_a_key_is_written_down(gateway: Live, server: str) -> None:
    key = make_key(server, "eve")
    with asking(gateway, key) as ada, BlockingRedis.from_url(server, decode_responses=True) as redis:
        ada.get("/jobs")
        assert abs(float(redis.hget("{q0}:apikeysused", digest_of(key))) - time.time()) < 60
        assert key not in str([redis.hgetall(name) for name in ("{q0}:apikeys", "{q0}:apikeysused")])


# Where no keys are needed


def test_on_loopback_a_key_is_not_looked_at(server: str, tmp_path: Path) -> None:
    with running(server, tmp_path, card()) as live:
        for credentials in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "nonsense"}):
            assert live.post(PROMPT, **credentials).status_code == 202
        assert len(live.http.get("/jobs").json()["jobs"]) == 3
        assert "security" not in live.http.get("/openapi.json").text


def test_on_loopback_names_of_the_internet_are_refused(server: str, tmp_path: Path, key: str) -> None:
    """A page that made its own name point to 127.0.0.1, or a proxy that nobody said anything of."""
    before = depth(server)
    with running(server, tmp_path, card()) as live:
        for host in ("evil.example.com", "Evil.Example.com:7860", "127.0.0.1.example.com", "localhost.", "evil.example.com."):
            answer = live.http.get("/jobs", headers={"Host": host})
            assert (answer.status_code == 403) == ("example" in host.lower()), host
        assert_error(live.http.post("/generate", json=PROMPT, headers={"Host": "evil.example.com"}), 403, "host_refused")
        assert depth(server) == before
        for host in ("localhost:7860", "a.localhost", "127.0.0.1", "[::1]:7860", "10.0.0.7:80", "gateway:7860"):
            assert live.http.get("/jobs", headers={"Host": host}).status_code == 200, host
    with running(server, tmp_path, card(), keys="required") as live:  # who has a key may come by any name
        assert live.http.get("/jobs", headers={"Host": "a.example.com", "Authorization": f"Bearer {key}"}).status_code == 200


def test_on_loopback_pages_of_other_origins_change_nothing(server: str, tmp_path: Path) -> None:
    """A browser sends forms, and POSTs without a body, wherever a page wants; who is no browser says nothing of pages."""
    with running(server, tmp_path, card(), cors_origins="http://localhost:3000") as live:
        before = depth(server)
        own = f"http://127.0.0.1:{live.port}"
        others = (
            {"Origin": "https://evil.example.com"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": own, "Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        )
        for page in others:
            batch = live.http.post("/batches", files={"file": ("a.jsonl", b'"a red apple"')}, headers=page)
            assert_error(batch, 403, "host_refused")
            assert live.http.post("/sdapi/v1/interrupt", headers=page).status_code == 403
            assert live.http.get("/jobs", headers=page).status_code == 200  # which it cannot read
        assert depth(server) == before
        named = {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "cross-site"}
        for page in ({"Origin": own}, {"Sec-Fetch-Site": "same-origin"}, named):
            assert live.http.post("/generate", json=PROMPT, headers=page).status_code == 202


@pytest.mark.parametrize(("settings", "needed"), [
    ({}, False),
    ({"host": "localhost"}, False),
    ({"host": "127.0.0.3"}, False),
    ({"host": "::1"}, False),
    ({"host": "0.0.0.0"}, True),
    ({"host": ""}, True),
    ({"host": "::"}, True),
    ({"host": "10.0.0.7"}, True),
    ({"host": "celadon.example.com"}, True),
    ({"host": "localhost.example.com"}, True),
    ({"host": "0.0.0.0", "published_host": "127.0.0.1"}, False),
    ({"host": "0.0.0.0", "published_host": "0.0.0.0"}, True),
    ({"public_url": "https://pictures.example.com"}, True),
    ({"public_url": "http://localhost:8080"}, False),
    ({"keys": "required"}, True),
    ({"host": "0.0.0.0", "keys": "none"}, False),
])  # fmt: skip
def test_who_needs_a_key_is_told_by_the_address(settings: dict[str, str], needed: bool) -> None:
    assert Settings(**settings).keys_in_force is needed  # type: ignore[arg-type]


def test_the_document_tells_where_a_key_is_needed(gateway: Live) -> None:
    document = gateway.http.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "basic"}
    paths = document["paths"]
    assert paths["/jobs"]["get"]["security"] == [{"bearer": []}, {"basic": []}]
    unguarded = {path for path in paths if not next(iter(paths[path].values()))["security"]}
    assert unguarded == {"/healthz", "/readyz", "/metrics", "/images/{key}"}


async def test_workers_are_shown_without_their_hosts_where_keys_are_asked_for(redis_url: str, tmp_path: Path) -> None:
    """In the list of workers, and in what a job tells of those that were lost with it; whoever asks without keys runs it all."""
    name = "gpu7.inner.example-4711-a1b2c3"
    worker = WorkerInfo(id=name, models=(), device="cpu", backend="torch", slots=8, busy=0, version="1", started_at=1.0, ready=True)
    redis = connect(redis_url)
    queue, clock = JobQueue(redis), Clock(redis, 1_000_000.0)
    await clock.advance(0)

    def ask(keys: str) -> tuple[list[str], list[str]]:
        key = make_key(redis_url, "ada")
        with running(redis_url, tmp_path, card(), keys=keys) as live, asking(live, key) as http:
            job = http.get(f"/jobs/{job_id}").json() if keys == "required" else {"losses": []}
            return [w["id"] for w in http.get("/workers").json()], [loss["worker"] for loss in job["losses"]]

    job = sample_job("ada", model=card().id, id="0" * 32)
    job_id = job.id
    await queue.submit(job)
    await queue.claim(name, [card().id], 1)
    await clock.advance(60)
    await queue.reap()
    await Registry(redis).beat(worker)
    told, lost = await asyncio.to_thread(ask, "required")
    assert told == lost == [pseudonym(name)] and re.fullmatch("worker-[0-9a-f]{12}", told[0])
    assert pseudonym(name) != pseudonym(name[:-1]), "of each its own"
    assert (await asyncio.to_thread(ask, "none"))[0] == [name]
    await redis.aclose()


# Browsers


def test_other_origins_may_not_ask_unless_they_are_named(server: str, tmp_path: Path, key: str) -> None:
    page = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with running(server, tmp_path, card(), keys="required") as live:
        assert not [name for name in live.http.options("/generate", headers=page).headers if name.startswith("access-control")]
    origins = "https://app.example.com, http://localhost:3000"
    with running(server, tmp_path, card(), keys="required", cors_origins=origins) as live, asking(live, key) as ada:
        asked = live.http.options("/generate", headers=page)
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "https://app.example.com"
        other = live.http.options("/generate", headers=page | {"Origin": "https://evil.example.com"})
        assert "origin" in assert_error(other, 400, "cors_refused") and "access-control-allow-origin" not in other.headers
        assert other.headers["vary"].startswith("Origin")
        put = live.http.options("/v1/images/generations", headers=page | {"Access-Control-Request-Method": "PUT"})
        error = put.json()["error"]
        assert (put.status_code, error["type"], error["code"]) == (400, "invalid_request_error", "cors_refused")
        assert "method" in error["message"] and error["request_id"] == put.headers["x-request-id"]
        answer = ada.post("/generate", json=PROMPT, headers={"Origin": "http://localhost:3000"})
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "Location" in answer.headers["access-control-expose-headers"] and "access-control-allow-credentials" not in answer.headers
        refused = live.http.get("/jobs", headers={"Origin": "https://app.example.com"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://app.example.com"


@pytest.mark.parametrize(("name", "value"), [
    ("CELADON_CORS_ORIGINS", "*"),
    ("CELADON_CORS_ORIGINS", "https://app.example.com/"),
    ("CELADON_CORS_ORIGINS", "app.example.com"),
    ("CELADON_URL_SECRETS", "short"),
    ("CELADON_KEYS", "yes"),
])  # fmt: skip
def test_a_setting_that_would_open_too_much_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as refused:
        Settings.from_environment()
    assert "short" not in str(refused.value)


def test_every_answer_has_the_security_headers(gateway: Live, key: str) -> None:
    with asking(gateway, key) as ada:
        for answer in (
            gateway.http.get("/jobs"),
            ada.get("/jobs"),
            ada.get("/nowhere"),
            gateway.http.get("/healthz"),
            ada.post("/generate", json=3),
        ):
            assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["referrer-policy"] == "no-referrer" and answer.headers["cache-control"] == "no-store"
            assert "default-src 'none'" in answer.headers["content-security-policy"] and "server" not in answer.headers


# Image URLs


async def test_a_picture_opens_with_its_url_alone_and_secrets_can_be_replaced(server: str, tmp_path: Path) -> None:
    old, new = b"old-secret-" + b"1" * 32, b"new-secret-" + b"2" * 32
    await LocalImageStore(tmp_path / "images").put("job1/1-0.png", b"\x89PNG picture")

    def signed(secret: bytes, expires: float = 60) -> str:
        return "/images/job1/1-0.png?" + Signer(secret).sign("job1/1-0.png", int(time.time() + expires))

    with running(server, tmp_path, card(), keys="required", url_secrets=f"{new.decode()}, {old.decode()}") as live:
        assert [live.http.get(signed(secret)).status_code for secret in (new, old)] == [200, 200]
        assert live.http.get(signed(old, expires=-1)).status_code == 410
        redis = connect(server)
        of_redis = signed(await Registry(redis).image_secret())
        await redis.aclose()
        for wrong in (signed(b"third" * 9), signed(new).replace("job1", "job2"), of_redis, "/images/job1/1-0.png"):
            assert_error(live.http.get(wrong), 403, "bad_signature")
    with running(server, tmp_path, card(), keys="required", url_secrets=new.decode()) as live:
        assert [live.http.get(signed(secret)).status_code for secret in (new, old)] == [200, 403]


async def test_links_are_signed_by_the_newest_secret(redis: Redis) -> None:
    settings = Settings(url_secrets="n" * 32 + "," + "o" * 32)  # type: ignore[arg-type]
    (link,) = await ImageLinks(Registry(redis), settings).sign(["a/1-0.png"])
    said = httpx2.URL(link).params
    Signer(b"n" * 32).verify("a/1-0.png", said["exp"], said["kid"], said["sig"], time.time())


def test_the_compose_file_wants_keys_where_it_publishes_beyond_this_machine() -> None:
    gateway = yaml.safe_load((Path(__file__).parent.parent / "docker-compose.yml").read_text())["services"]["gateway"]
    (port,) = gateway["ports"]
    assert port.startswith(gateway["environment"]["CELADON_PUBLISHED_HOST"] + ":") and "CELADON_HOST" in port
    assert gateway["environment"]["CELADON_KEYS"] == "${CELADON_KEYS:-}"  # empty is auto
