"""Whatever JSON comes: it is a job, or a 4xx of the one shape; and the queue holds exactly the jobs that were accepted."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.client import Redis as BlockingRedis

from cards import SAMPLERS, SCHEDULES, card
from live_gateway import Live, assert_error, depth, running
from service.api.native import GenerateRequest

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["png", "jpeg", "celadon-test"])
NAMES = st.sampled_from([info.id for info in (*SAMPLERS, *SCHEDULES)])
OPTIONS = st.dictionaries(
    st.sampled_from(["eta", "rho", "order", "solver", "s_noise", "variant", "scales", "curve", "final"]) | st.text(), SCALARS, max_size=3
)
VALUES = st.recursive(SCALARS | NAMES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
SMALL = st.integers(-2, 300) | st.sampled_from([8, 64, 72, 128])
HOOKS = st.fixed_dictionaries(
    {"url": st.text() | st.sampled_from(["https://hooks.example.com/", "https://10.0.0.1/"])}, optional={"events": VALUES}
)
# A deadline that passes while this runs would end a job that is counted below: LIKELY knows only long and hopeless ones.
FIELDS = st.sampled_from(sorted({*GenerateRequest.model_fields, "kind", ""} - {"deadline_s"}))
LIKELY = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["a red apple", "", "é\n猫 🍎"])},
    optional={
        "width": st.sampled_from([8, 64, 256, 264]),
        "steps": st.integers(1, 130),
        "guidance": st.floats(0, 51) | st.just(1),
        "guidance_options": st.fixed_dictionaries(
            {},
            optional={
                "variant": st.sampled_from(["cfg", "apg", "TCFG", "cfg_zero_star", "thresholding"]),
                "start": st.floats(0, 1),
                "curve": st.sampled_from(["linear", "constant"]),
                "final": st.floats(0, 51),
                "scales": st.lists(st.floats(0, 51), max_size=3),
                "eta": st.floats(0, 1),
            },
        ),
        "sampler": st.sampled_from([info.id for info in SAMPLERS]),
        "schedule": st.sampled_from([info.id for info in SCHEDULES]),
        "seed": st.integers(0, 2**32),
        "preview": st.booleans(),
        "priority": st.integers(-101, 101),
        "service_class": st.sampled_from(["interactive", "normal", "batch", "urgent"]),
        "deadline_s": st.sampled_from([1e-6, 1e5, 2_592_000, 1e9]),
        "webhook": st.none() | HOOKS,
        "reuse": st.booleans(),
    },
)
WRONG = st.dictionaries(FIELDS, VALUES | SMALL | OPTIONS | HOOKS, max_size=5).map(lambda wrong: {"prompt": "a red apple"} | wrong)
BODIES = LIKELY | WRONG | VALUES


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with BlockingRedis.from_url(valkey) as client:
        client.flushall()
    with running(valkey, tmp_path_factory.mktemp("data"), card()) as live:
        yield live


def test_any_json_is_a_job_or_a_clean_refusal(gateway: Live) -> None:
    accepted = 0

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(BODIES)
    def send(body: object) -> None:
        nonlocal accepted
        answer = gateway.http.post("/generate", content=json.dumps(body), headers={"Content-Type": "application/json"})
        if answer.status_code == 202:
            accepted += 1
            assert answer.json()["progress"]["steps_total"] >= 1
            assert answer.json()["params"]["prompt"] == body["prompt"]  # type: ignore[index]
        else:
            code = answer.json()["error"]["code"]
            assert_error(answer, 422 if code == "deadline_unmeetable" else 400, code)

    send()
    assert 10 <= accepted < 290  # else this says little about one of the two
    assert depth(gateway.settings.redis_url) == {"queued": accepted, "running": 0}


def test_any_bytes_are_a_clean_refusal(gateway: Live) -> None:
    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.binary(max_size=200))
    def send(body: bytes) -> None:
        answer = gateway.http.post("/generate", content=body, headers={"Content-Type": "application/json"})
        assert_error(answer, 400, answer.json()["error"]["code"])

    send()


def test_any_path_is_a_clean_refusal(gateway: Live) -> None:
    words = st.sampled_from(
        [
            "jobs",
            "images",
            "events",
            "retry",
            "webhooks",
            "deliveries",
            "..",
            "%2e%2e",
            "%00",
            "%ff",
            "generate",
            "a",
            "",
            "%0a",
            ";",
            "*",
            "{q0}",
            "\\",
        ]
    )

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.lists(words, min_size=1, max_size=6).map("/".join), st.sampled_from(["GET", "HEAD", "DELETE"]))
    def send(path: str, method: str) -> None:
        answer = gateway.http.request(method, f"{gateway.url}/{path}?exp=1&kid=a&sig=b")
        if answer.status_code == 200:  # `..` leads to the studio page
            assert answer.headers["content-type"].startswith("text/html") and method != "DELETE"
            return
        assert answer.status_code in (400, 403, 404, 405)
        if method != "HEAD":
            assert_error(answer, answer.status_code, answer.json()["error"]["code"])

    send()
