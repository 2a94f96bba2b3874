"""Keys as people use them: made on the command line, shown by the clients of others, against real processes; and what the logs keep."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import openai
import pytest
import webuiapi
from redis.client import Redis as BlockingRedis
from typer.testing import CliRunner

import jobs.valkey
from celadon.__main__ import app
from fleet import Fleet
from jobs.clients import KEY, digest_of
from training.toy import write_toy

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy

PROMPT = "sesame of the forty thieves"


def celadon(data_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, on that data folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CELADON_")}
    told = inherited | {"CELADON_DATA_DIR": str(data_dir), "COLUMNS": "160"} | environment
    return subprocess.run([sys.executable, "-m", "celadon", *arguments], env=told, capture_output=True, text=True, timeout=60)


@dataclass(frozen=True)
class Shop:
    """A service that wants keys, and the key of one client."""

    fleet: Fleet
    key: str
    other: str
    redis_url: str
    folder: Path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    server = jobs.valkey.start(folder)
    url = jobs.valkey.url(folder)
    key, other = (celadon(folder, "keys", "add", name).stdout.strip() for name in ("shop", "other"))
    fleet = Fleet(url, folder, write_toy(folder / "toy"), key=key, CELADON_KEYS="required")
    try:
        fleet.gateway()
        fleet.worker()
        yield Shop(fleet, key, other, url, folder)
    finally:
        fleet.close()
        server.terminate()
        server.wait()


def test_the_openai_client_draws_with_its_key_and_the_url_opens_without(shop: Shop) -> None:
    with openai.OpenAI(base_url=f"{shop.fleet.url}/v1", api_key=shop.key) as sdk:
        assert [model.id for model in sdk.models.list()] == ["toy"]
        found = sdk.images.generate(prompt=PROMPT, size="128x128")
    picture = httpx2.get(found.data[0].url, trust_env=False)
    assert picture.content == base64.b64decode(found.data[0].b64_json)
    assert httpx2.get(f"{shop.fleet.url}/jobs/{found.model_extra['id']}", headers=bearer(shop.other), trust_env=False).status_code == 404
    stranger = openai.OpenAI(base_url=f"{shop.fleet.url}/v1", api_key="sk-wrong")
    with stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.images.generate(prompt=PROMPT)
    assert refused.value.code == "key_invalid" and refused.value.type == "authentication_error"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a1111s_client_draws_with_the_key_as_password(shop: Shop) -> None:
    api = webuiapi.WebUIApi(host="127.0.0.1", port=shop.fleet.port, steps=4)
    api.set_auth("anybody", shop.key)
    found = api.txt2img(prompt=PROMPT, seed=7, width=128, height=128)
    assert found.images[0].size == (128, 128) and api.get_progress()["state"]["job_count"] == 0
    assert shop.fleet.job(found.info["job_id"])["status"] == "succeeded"
    api.set_auth("anybody", "wrong")
    with pytest.raises(RuntimeError, match="401"):
        api.txt2img(prompt=PROMPT)
    api.session.close()


def test_the_commands_show_the_key_of_the_environment(shop: Shop) -> None:
    made = shop.fleet.finished(shop.fleet.submit(prompt=PROMPT)["id"])
    told = celadon(shop.folder, "jobs", "show", made["id"], CELADON_URL=shop.fleet.url, CELADON_API_KEY=shop.key)
    assert made["id"] in told.stdout and "succeeded" in told.stdout
    for key, code in (("", "key_missing"), (shop.other, "job_not_found")):
        refused = celadon(shop.folder, "jobs", "show", made["id"], CELADON_URL=shop.fleet.url, CELADON_API_KEY=key)
        assert refused.returncode == 1 and code in refused.stderr
    drawn = celadon(shop.folder, "generate", PROMPT, "-o", str(shop.folder / "a.png"), CELADON_URL=shop.fleet.url, CELADON_API_KEY=shop.key)
    assert drawn.returncode == 0, drawn.stderr


def test_keys_are_listed_limited_and_revoked(shop: Shop) -> None:
    added = celadon(shop.folder, "keys", "add", "night", "--class", "batch", "--weight", "0.5", "--per-day", "9", "--days", "2")
    key = added.stdout.strip()
    assert KEY.fullmatch(key) and key not in added.stderr
    with BlockingRedis.from_url(shop.redis_url, decode_responses=True) as redis:
        assert redis.hget("{q0}:weight", "night") == "0.5"
        assert digest_of(key) in redis.hgetall("{q0}:apikeys") and key not in str(redis.hgetall("{q0}:apikeys"))
    listed = celadon(shop.folder, "keys", "list").stdout
    (row,) = [line for line in listed.splitlines() if " night " in line]
    assert f"cel_…{key[-4:]}" in row and "weight 0.5, class batch, per day 9" in row and key not in listed
    limited = celadon(shop.folder, "keys", "limit", "night", "--rate", "2", "--class", "-")
    assert limited.stdout.strip() == "night: weight 0.5, rate 2, per day 9"
    gone = celadon(shop.folder, "keys", "revoke", row.split()[0])
    assert gone.returncode == 0 and "night" in gone.stdout
    assert httpx2.get(f"{shop.fleet.url}/jobs", headers=bearer(key), trust_env=False).status_code == 401
    assert "night" not in celadon(shop.folder, "keys", "list").stdout


@pytest.mark.parametrize(("arguments", "said"), [
    (("add", "a:b"), "no name of a client"),
    (("add", "ada", "--class", "best"), "interactive, normal, batch"),
    (("add", "ada", "--burst", "0"), "at least 1"),
    (("add", "ada", "--rate", "-0.5"), "0 or more"),
    (("revoke", "00000000"), "there is no key '00000000'"),
    (("limit", "shopp", "--rate", "1"), "no key is of 'shopp'"),
])  # fmt: skip
def test_what_cannot_be_is_said_and_nothing_is_done(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("CELADON_DATA_DIR", str(shop.folder))
    with BlockingRedis.from_url(shop.redis_url) as redis:
        before = [redis.hgetall(f"{{q0}}:{name}") for name in ("apikeys", "clients", "weight")]
        refused = CliRunner().invoke(app, ["keys", *arguments])
        assert refused.exit_code != 0 and said in re.sub(r"[\s│]+", " ", refused.stderr) and refused.stdout == ""
        assert [redis.hgetall(f"{{q0}}:{name}") for name in ("apikeys", "clients", "weight")] == before


def test_the_logs_hold_neither_prompts_nor_keys(shop: Shop) -> None:
    """Of gateway and worker, after all that was asked above."""
    wrong = "cel_" + "A" * 43
    httpx2.get(f"{shop.fleet.url}/jobs/{wrong}?key={wrong}", headers=bearer(wrong), trust_env=False)
    shop.fleet.finished(shop.fleet.submit(prompt=PROMPT, negative_prompt=PROMPT)["id"])
    text = (shop.folder / "log").read_text()
    assert '"client": "shop"' in text and '"status": 401' in text
    for secret in ("sesame", shop.key, shop.other, wrong, base64.b64encode(f"anybody:{shop.key}".encode()).decode()):
        assert secret not in text
    kept = b"".join(path.read_bytes() for path in shop.folder.rglob("*.aof"))
    assert shop.key.encode() not in kept and digest_of(shop.key).encode() in kept


# A start without keys


def test_a_gateway_that_others_can_reach_does_not_start_without_a_key(tmp_path: Path) -> None:
    refused = celadon(tmp_path, "up", "--host", "0.0.0.0", "--port", "0", "--workers", "0")
    assert refused.returncode == 2 and "celadon keys add NAME" in refused.stderr + refused.stdout
    key = celadon(tmp_path, "keys", "add", "shop").stdout.strip()  # the embedded server is started for the moment
    assert KEY.fullmatch(key)
    assert not jobs.valkey.answers(tmp_path)
