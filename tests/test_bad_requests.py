"""Bad requests of many kinds: the right status, the one shape, a stable code, and nothing is ever queued."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis.client import Redis as BlockingRedis

from cards import card
from live_gateway import Live, assert_error, running

GOOD: dict[str, Any] = {"prompt": "a red apple"}
JSON = {"Content-Type": "application/json"}
SECRET_PROMPT = "sesame-of-the-forty-thieves"
HOOK = "https://hooks.example.com/celadon"
BAD_HOOKS = [
    "hooks.example.com",
    "http://hooks.example.com/",
    "ftp://hooks.example.com/",
    "javascript:alert(1)",
    "https://",
    "https://localhost/",
    "https://hooks/",
    "https://127.0.0.1/",
    "https://0x7f000001/",
    "https://2130706433/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://10.1.2.3/",
    "https://169.254.169.254/latest/meta-data/",
    "https://metadata.google.internal/",
    "https://me:secret@hooks.example.com/",
    "https://hooks.example.com:22/",
    "https://hooks.example.com/#part",
    "https://hooks.example.com\\@10.0.0.1/",
    "https://hooks.example.com/\r\nHost: x",
    "https://hooks.exämple.com/",
    " https://hooks.example.com/",
]


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One for the whole file: a bad request leaves nothing behind, and every test here checks just that."""
    with BlockingRedis.from_url(valkey) as client:
        client.flushall()
    with running(valkey, tmp_path_factory.mktemp("data"), card(), max_body_bytes=20_000, max_pixels=16_384, max_images=4) as live:
        yield live


@pytest.fixture(autouse=True)
def nothing_queued(gateway: Live, valkey: str) -> Iterator[None]:
    """After each test the server holds the model's card, perhaps the secret of image URLs and the number of shards, and nothing else."""
    yield
    with BlockingRedis.from_url(valkey, decode_responses=True) as client:
        assert set(client.keys("*")) - {"{q0}:cards", "{q0}:layout", "{q0}:secret", "{q0}:shards"} == set()


def fields(code: str, param: str | None = None, /, **wrong: Any) -> Any:
    name = ",".join(f"{k}={str(v)[:24]}" for k, v in wrong.items())
    return pytest.param(GOOD | wrong, code, param or next(iter(wrong)), id=f"{code}:{name}")


FIELDS = [
    pytest.param({**GOOD, "output_quality": 50}, "invalid_value", "output_quality", id="quality of png"),
    pytest.param({**GOOD, "output_format": "jpeg", "output_quality": 0}, "invalid_value", "output_quality", id="no quality"),
    pytest.param({**GOOD, "output_format": "webp", "output_quality": 101}, "invalid_value", "output_quality", id="too much quality"),
    # types: a bool is no int, a float no int, a text no number
    fields("invalid_value", prompt=1),
    fields("invalid_value", prompt=None),
    fields("invalid_value", prompt=["a"]),
    fields("invalid_value", negative_prompt=None),
    fields("invalid_value", negative_prompt={}),
    fields("invalid_value", width="64"),
    fields("invalid_value", width=True),
    fields("invalid_value", height=64.0),
    fields("invalid_value", height=64.5),
    fields("invalid_value", steps=True),
    fields("invalid_value", steps="20"),
    fields("invalid_value", steps=[20]),
    fields("invalid_value", guidance="5"),
    fields("invalid_value", guidance=False),
    fields("invalid_value", sampler=3),
    fields("invalid_value", schedule=False),
    fields("invalid_value", sampler_options=[]),
    fields("invalid_value", sampler_options=None),
    fields("invalid_value", schedule_options="rho=7"),
    fields("invalid_value", seed=1.0),
    fields("invalid_value", seed="7"),
    fields("invalid_value", seed=True),
    fields("invalid_value", num_images="2"),
    fields("invalid_value", num_images=None),
    fields("invalid_value", model=1),
    fields("invalid_value", output_format=1),
    fields("invalid_value", output_format="gif"),
    fields("invalid_value", output_format="PNG"),
    fields("invalid_value", preview=1),
    fields("invalid_value", preview="yes"),
    # ranges
    fields("invalid_value", prompt="x" * 2001),
    fields("invalid_value", negative_prompt="x" * 2001),
    fields("invalid_value", steps=0),
    fields("invalid_value", steps=-1),
    fields("invalid_value", steps=121),  # of the model
    fields("invalid_value", steps=10**30),
    fields("invalid_value", "steps", sampler="heun", steps=1),  # of the sampler
    fields("invalid_value", "steps", schedule="karras", steps=101),  # of the schedule
    fields("invalid_value", guidance=-0.1),
    fields("invalid_value", guidance=50.1),
    fields("invalid_value", guidance=10**400),
    fields("invalid_value", seed=-1),
    fields("invalid_value", seed=2**32),
    fields("invalid_value", seed=2**64),
    fields("invalid_value", num_images=0),
    fields("invalid_value", num_images=5),
    fields("invalid_value", width=0),
    fields("invalid_value", width=-64),
    fields("invalid_size", width=63),
    fields("invalid_size", height=4),
    fields("invalid_size", width=264),
    fields("invalid_size", height=136),
    fields("invalid_size", width=2**40),
    pytest.param(GOOD | {"width": 256, "height": 128}, "invalid_size", None, id="invalid_size:max_pixels"),
    # text that no file and no screen could hold
    fields("invalid_value", prompt="a\x00b"),
    fields("invalid_value", prompt="a\x1b[31mred"),
    fields("invalid_value", negative_prompt="\x07"),
    # names
    fields("unknown_sampler", sampler="eulre"),
    fields("unknown_sampler", sampler="../../etc/passwd"),
    fields("unknown_sampler", sampler="é" * 2000),
    fields("invalid_value", sampler=""),
    fields("unknown_schedule", schedule="karass"),
    fields("unknown_schedule", schedule="\x00"),
    fields("unknown_model", model="celadon-tset"),
    fields("unknown_model", model="/etc/passwd"),
    fields("unknown_model", model="celadon:test"),
    # options
    fields("unknown_option", "sampler_options.eta", sampler="euler", sampler_options={"eta": 1.0}),
    fields("unknown_option", "schedule_options.rho", schedule_options={"rho": 7}),
    fields("unknown_option", "sampler_options.x", sampler="ddim", sampler_options={"x": 1}),
    fields("invalid_value", "sampler_options.eta", sampler="ddim", sampler_options={"eta": 1.5}),
    fields("invalid_value", "sampler_options.eta", sampler="ddim", sampler_options={"eta": -1}),
    fields("invalid_value", "sampler_options.eta", sampler="ddim", sampler_options={"eta": True}),
    fields("invalid_value", "sampler_options.eta", sampler="ddim", sampler_options={"eta": "1"}),
    fields("invalid_value", "sampler_options.eta", sampler="ddim", sampler_options={"eta": None}),
    fields("invalid_value", "sampler_options.eta", sampler="ddim", sampler_options={"eta": 10**400}),
    fields("invalid_value", "sampler_options.order", sampler_options={"order": 2.0}),
    fields("invalid_value", "sampler_options.solver", sampler_options={"solver": "euler"}),
    fields("invalid_value", "sampler_options.solver", sampler_options={"solver": 1}),
    fields("invalid_value", "schedule_options.rho", schedule="karras", schedule_options={"rho": [7]}),
    # guidance
    fields("invalid_value", guidance_options=[]),
    fields("invalid_value", guidance_options=None),
    fields("invalid_value", "guidance_options.variant", guidance_options={"variant": "agp"}),
    fields("invalid_value", "guidance_options.variant", guidance_options={"variant": 3}),
    fields("invalid_value", "guidance_options.variant", guidance_options={"variant": "dynamic_thresholding"}),
    fields("unknown_option", "guidance_options.eta", guidance_options={"eta": 0.5}),
    fields("unknown_option", "guidance_options.zero_init", guidance_options={"variant": "apg", "zero_init": 1}),
    fields("invalid_value", "guidance_options.rescale", guidance_options={"rescale": 1.01}),
    fields("invalid_value", "guidance_options.momentum", guidance_options={"variant": "apg", "momentum": 1}),
    fields("invalid_value", "guidance_options.zero_init", guidance_options={"variant": "zero_star", "zero_init": 1.5}),
    fields("invalid_value", "guidance_options.curve", guidance_options={"curve": "cubic"}),
    fields("invalid_value", "guidance_options.final", guidance_options={"final": 2}),
    fields("invalid_value", "guidance_options", guidance_options={"start": 0.5, "end": 0.5}),
    fields("invalid_value", "guidance_options", guidance_options={"scales": [5, 4]}, steps=3),
    fields("invalid_value", "guidance_options", guidance_options={"scales": [5, 4], "curve": "linear"}, steps=2),
    fields("invalid_value", "guidance_options.scales", guidance_options={"scales": 5}),
    fields("invalid_value", "guidance_options", guidance_options={"pag_scale": 1, "seg_scale": 1}),
    fields("invalid_value", "guidance_options.pag_scale", guidance_options={"pag_scale": -1}),
    fields("invalid_value", "guidance_options.scales.1", guidance_options={"scales": [5, True]}, steps=2),
    fields("invalid_value", "guidance_options.scales.0", guidance_options={"scales": [51]}, steps=1),
    fields("invalid_value", "guidance", guidance_options={"scales": [5, 4]}, steps=2, guidance=4),
    # how the job is served
    fields("invalid_value", priority="1"),
    fields("invalid_value", priority=True),
    fields("invalid_value", priority=1.0),
    fields("invalid_value", priority=None),
    fields("invalid_value", priority=-101),
    fields("invalid_value", priority=101),
    fields("invalid_value", priority=10**30),
    fields("invalid_value", service_class=1),
    fields("invalid_value", service_class=None),
    fields("invalid_value", service_class="urgent"),
    fields("invalid_value", service_class="Batch"),
    fields("invalid_value", deadline_s="10"),
    fields("invalid_value", deadline_s=True),
    fields("invalid_value", deadline_s=[10]),
    fields("invalid_value", deadline_s=0),
    fields("invalid_value", deadline_s=-1.5),
    fields("invalid_value", deadline_s=2_592_001),
    fields("invalid_value", deadline_s=10**400),
    fields("invalid_value", reuse=1, seed=1),
    fields("invalid_value", reuse="yes", seed=1),
    fields("invalid_value", reuse=None, seed=1),
    fields("invalid_value", reuse=True),  # without a seed
    fields("invalid_value", reuse=True, seed=None),
    fields("invalid_value", webhook=HOOK),
    fields("invalid_value", webhook=[]),
    fields("missing_field", "webhook.url", webhook={}),
    fields("invalid_value", "webhook.url", webhook={"url": 1}),
    fields("invalid_value", "webhook.url", webhook={"url": None}),
    fields("invalid_value", "webhook.url", webhook={"url": ""}),
    fields("invalid_value", "webhook.url", webhook={"url": HOOK + "x" * 2048}),
    fields("unknown_field", "webhook.secret", webhook={"url": HOOK, "secret": "s"}),
    fields("unknown_field", "webhook.URL", webhook={"url": HOOK, "URL": HOOK}),
    fields("invalid_value", "webhook.events", webhook={"url": HOOK, "events": []}),
    fields("invalid_value", "webhook.events", webhook={"url": HOOK, "events": "failed"}),
    fields("invalid_value", "webhook.events", webhook={"url": HOOK, "events": None}),
    fields("invalid_value", "webhook.events", webhook={"url": HOOK, "events": ["failed", "failed"]}),
    fields("invalid_value", "webhook.events.0", webhook={"url": HOOK, "events": ["progress"]}),
    fields("invalid_value", "webhook.events.1", webhook={"url": HOOK, "events": ["failed", 1]}),
    *(fields("webhook_refused", "webhook.url", webhook={"url": url}) for url in BAD_HOOKS),
    # fields that there are not, or not yet
    fields("unknown_field", prompts="a"),
    fields("invalid_value", kind="text_to_video"),
    fields("unknown_field", deadline=10),
    fields("unknown_field", dry_run=True),  # it belongs into the address
    fields("unknown_field", Prompt="a"),
    fields("unknown_field", __class__="x"),
]


@pytest.mark.parametrize(("body", "code", "param"), FIELDS)
def test_a_bad_field_is_refused_by_name(gateway: Live, body: dict[str, Any], code: str, param: str | None) -> None:
    answer = gateway.http.post("/generate", content=json.dumps(body), headers=JSON)
    assert_error(answer, 400, code, param)


BODIES = [
    pytest.param(b"", "invalid_json", id="empty"),
    pytest.param(b"{", "invalid_json", id="cut short"),
    pytest.param(b"{'prompt': 'a'}", "invalid_json", id="single quotes"),
    pytest.param(b'{"prompt": "a",}', "invalid_json", id="trailing comma"),
    pytest.param(b'{"prompt": "a"} {}', "invalid_json", id="two values"),
    pytest.param(b"prompt=a", "invalid_json", id="form"),
    pytest.param(b'{"prompt": "a", "prompt": "b"}', "invalid_json", id="repeated key"),
    pytest.param(b'{"prompt": "a", "guidance": NaN}', "invalid_json", id="NaN"),
    pytest.param(b'{"prompt": "a", "guidance": Infinity}', "invalid_json", id="Infinity"),
    pytest.param(b'{"prompt": "a", "guidance": -Infinity}', "invalid_json", id="-Infinity"),
    pytest.param(b'{"prompt": "a", "guidance": 1e999}', "invalid_json", id="1e999"),
    pytest.param(b'{"prompt": "a", "sampler_options": {"eta": NaN}}', "invalid_json", id="NaN in options"),
    pytest.param(b'{"prompt": "a", "steps": 1' + b"0" * 9000 + b"}", "invalid_json", id="9000 digits"),
    pytest.param(b'{"prompt": "\xff\xfe"}', "invalid_json", id="no UTF-8"),
    pytest.param('{"prompt": "a"}'.encode("utf-16"), "invalid_json", id="UTF-16"),
    pytest.param(b'\xef\xbb\xbf{"prompt": "a"}', "invalid_json", id="byte order mark"),
    pytest.param(b'{"prompt": "\\ud800"}', "invalid_json", id="half a surrogate pair"),
    pytest.param(b'{"prompt": "a", "\\udfff": 1}', "invalid_json", id="half a pair as a key"),
    pytest.param(b'{"prompt": "raw\x00nul"}', "invalid_json", id="raw NUL"),
    pytest.param(b'{"prompt": "a", "sampler_options": {"x": ' + b"[" * 40 + b"]" * 40 + b"}}", "invalid_json", id="40 deep"),
    pytest.param(b"[" * 9000, "invalid_json", id="9000 deep"),
    pytest.param(b"[]", "invalid_value", id="a list"),
    pytest.param(b"null", "invalid_value", id="null"),
    pytest.param(b'"a red apple"', "invalid_value", id="a text"),
    pytest.param(b"1", "invalid_value", id="a number"),
    pytest.param(b"{}", "missing_field", id="no prompt"),
]


@pytest.mark.parametrize(("body", "code"), BODIES)
def test_a_body_that_is_no_strict_json_object_is_refused(gateway: Live, body: bytes, code: str) -> None:
    answer = gateway.http.post("/generate", content=body, headers=JSON)
    assert_error(answer, 400, code)


@pytest.mark.parametrize(
    "media_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json; charset=latin-1", "json"],
)
def test_a_body_of_another_kind_is_refused(gateway: Live, media_type: str) -> None:
    answer = gateway.http.post("/generate", content=json.dumps(GOOD), headers={"Content-Type": media_type})
    assert_error(answer, 415, "unsupported_media_type")


def test_a_huge_body_is_refused_before_it_is_read(gateway: Live) -> None:
    """Only the head is sent: the answer does not wait for the rest."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999999999999\r\n\r\n")
        head = client.recv(65536)
    assert head.startswith(b"HTTP/1.1 413 ") and b'"body_too_large"' in head


def test_a_huge_body_in_one_piece_is_refused(gateway: Live) -> None:
    assert_error(gateway.post(GOOD | {"prompt": "x" * 30_000}), 413, "body_too_large")


def test_a_huge_body_in_chunks_is_refused(gateway: Live) -> None:
    answer = gateway.http.post("/generate", content=(b"x" * 1000 for _ in range(60)), headers=JSON)
    assert_error(answer, 413, "body_too_large")


def test_a_body_just_within_the_limit_is_read(gateway: Live) -> None:
    body = json.dumps(GOOD | {"steps": 0}).encode()
    assert_error(gateway.http.post("/generate", content=body + b" " * (20_000 - len(body)), headers=JSON), 400, "invalid_value", "steps")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Prefer", "wait=abc"),
        ("Prefer", "wait=-1"),
        ("Prefer", "wait=1.5"),
        ("Prefer", "wait="),
        ("Prefer", "respond-async, wait=99999999999"),
        ("Prefer", "wait 5"),
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "x" * 256),
        ("Idempotency-Key", "two words"),
        ("Idempotency-Key", "tab\there"),
    ],
)
def test_a_bad_header_is_refused_by_name(gateway: Live, name: str, value: str) -> None:
    assert_error(gateway.http.post("/generate", json=GOOD, headers={name: value}), 400, "invalid_header", name)


def test_a_key_of_other_bytes_or_a_second_one_is_refused(gateway: Live) -> None:
    for values in ([b"\xff\xfe"], [b"one", b"two"], [b"one", b"one"]):
        answer = gateway.http.post("/generate", json=GOOD, headers=[(b"Idempotency-Key", value) for value in values])
        assert_error(answer, 400, "invalid_header", "Idempotency-Key")


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("dry_run=1", "invalid_value", "dry_run"),
        ("dry_run=yes", "invalid_value", "dry_run"),
        ("dry_run=", "invalid_value", "dry_run"),
        ("dry_run=True", "invalid_value", "dry_run"),
        ("dryrun=true", "unknown_field", "dryrun"),
        ("dry_run=true&x=1", "unknown_field", "x"),
    ],
)
def test_a_bad_query_queues_nothing(gateway: Live, query: str, code: str, param: str) -> None:
    assert_error(gateway.http.post(f"/generate?{query}", json=GOOD), 400, code, param)


@pytest.mark.parametrize("body", [GOOD | {"steps": 0}, GOOD | {"webhook": {"url": "https://10.0.0.1/"}}, {}, [], GOOD | {"x": 1}])
def test_a_dry_run_of_a_bad_request_is_a_bad_request(gateway: Live, body: object) -> None:
    answer = gateway.http.post("/generate?dry_run=true", json=body)
    assert_error(answer, 400, answer.json()["error"]["code"])


def test_a_dry_run_of_a_good_request_leaves_nothing_either(gateway: Live) -> None:
    assert gateway.http.post("/generate?dry_run=true", json=GOOD).status_code == 200


def test_names_that_are_nearly_right_are_answered_with_what_was_meant(gateway: Live) -> None:
    message = assert_error(gateway.post(GOOD | {"sampler": "dpmp_2m"}), 400, "unknown_sampler")
    assert "Did you mean dpmpp_2m" in message and "Known: ddim, dpmpp_2m, euler, euler_a, heun." in message
    message = assert_error(gateway.post(GOOD | {"schedule": "karas"}), 400, "unknown_schedule")
    assert "Did you mean karras" in message and "linspace" in message


def test_what_a_client_wrote_comes_back_short_and_printable(gateway: Live) -> None:
    body = gateway.post(GOOD | {"sampler": "x\x1b\n" * 3000}).text
    assert len(body) < 500 and "\\u001b" not in body and "\x1b" not in body


def test_no_answer_repeats_a_prompt(gateway: Live) -> None:
    for wrong in ({"steps": 0}, {"sampler": "x"}, {"prompt": SECRET_PROMPT + "\x00"}, {"prompt": SECRET_PROMPT * 200}, {"no": 1}):
        assert SECRET_PROMPT not in gateway.post({"prompt": SECRET_PROMPT} | wrong).text


def test_fifty_kinds_at_least() -> None:
    assert len(FIELDS) + len(BODIES) > 100


def test_refusing_is_fast(gateway: Live) -> None:
    """No bad request may cost more than a good one by an order: fifty of the worst in one second each at most."""
    worst = [GOOD | {"prompt": "a " * 999, "sampler": "z" * 9000}, GOOD | {"x" * 9000: 1}]
    for body in worst:
        started = time.perf_counter()
        assert gateway.post(body).status_code == 400
        assert time.perf_counter() - started < 1.0
