"""One trace from the HTTP request to the worker's spans, and one request id in all logs: real processes, and a real receiver of OTLP."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from jobs.job_queue import JobQueue
from jobs.redis_spans import watch
from jobs.shards import Shards
from jobs.tracing import Tracing, open_tracing
from tests.fleet import Fleet, shared
from tests.job_samples import sample_job
from tests.test_docs import ROOT
from training.toy import write_toy

pytestmark = pytest.mark.timeout(300)  # whole processes start here

OURS = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
PROMPT = "a heron that no span and no line may hold"
WORKER_SPANS = {"claim", "encode", "steps", "decode", "store"}
HERE = "http://127.0.0.1:4318"


class Receiver(ThreadingHTTPServer):
    """Keeps the spans of `POST /v1/traces`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[dict[str, Any]] = []
        self.bodies = b""
        self.came = threading.Condition()
        threading.Thread(target=self.serve_forever, name="otlp", daemon=True).start()

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self.came:
            self.bodies += body
            for resource in request.resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    told = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
                    times = span.start_time_unix_nano, span.end_time_unix_nano
                    self.spans.append({"service": service, "name": span.name, "trace": span.trace_id.hex(), "id": span.span_id.hex(),
                                       "parent": span.parent_span_id.hex(), "times": times, **told})  # fmt: skip
            self.came.notify_all()

    def wait_for(self, names: set[str], trace: str) -> list[dict[str, Any]]:
        """All spans of a trace, as soon as it has these."""

        def there() -> bool:
            return names <= {span["name"] for span in self.spans if span["trace"] == trace}

        with self.came:
            assert self.came.wait_for(there, 60), [(span["name"], span["trace"]) for span in self.spans]
            return [span for span in self.spans if span["trace"] == trace]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.server.take(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver
        receiver.shutdown()


@pytest.fixture(scope="module")
def fleet(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder, model = tmp_path_factory.mktemp("traces"), tmp_path_factory.mktemp("model") / "toy"
    write_toy(model, prediction="v_prediction", seed=1)
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_port}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with shared(folder, model, **told) as service:
        yield service


def test_one_trace_leads_from_the_request_to_the_picture(fleet: Fleet, receiver: Receiver) -> None:
    headers = {"traceparent": f"00-{OURS}-{PARENT}-01", "X-Request-Id": "order-77"}
    job = fleet.finished(fleet.submit(headers, prompt=PROMPT, num_images=2, steps=3)["id"])
    spans = receiver.wait_for({"POST /generate", *WORKER_SPANS}, OURS)
    (request,) = (span for span in spans if span["name"] == "POST /generate")
    assert request["service"] == "celadon-gateway" and request["parent"] == PARENT
    assert request["http.route"] == "/generate" and request["celadon.request_id"] == "order-77"
    spans = receiver.wait_for({"redis submit", "redis finish"}, OURS)
    calls = [span for span in spans if span["name"].startswith("redis ")]
    assert {span["service"] for span in calls if span["name"] == "redis submit"} == {"celadon-gateway"}
    assert {span["service"] for span in calls if span["name"] == "redis finish"} == {"celadon-worker"}
    assert {span["parent"] for span in calls} - {span["id"] for span in calls} == {request["id"]}  # one that is sent again stands within
    assert {span["db.operation.name"] for span in calls} >= {"submit", "finish"} and {span["db.system.name"] for span in calls} == {"redis"}
    assert not {"reap", "renew", "claim"} & {span["db.operation.name"] for span in calls}  # they are made for nobody in particular
    behind = [span for span in spans if span is not request and span not in calls]
    assert {span["name"] for span in behind} == WORKER_SPANS
    assert {(span["service"], span["parent"], span["celadon.job"]) for span in behind} == {("celadon-worker", request["id"], job["id"])}
    of_first = {span["name"]: span["times"] for span in behind if span.get("celadon.image", 0) == 0}
    begins = [of_first[name][0] for name in ("claim", "encode", "steps", "decode", "store")]
    assert begins == sorted(begins) and all(begin <= end for begin, end in of_first.values())
    assert b"heron" not in receiver.bodies


def test_every_line_about_a_job_has_the_request_and_none_the_prompt(fleet: Fleet) -> None:
    job = fleet.finished(fleet.submit({"X-Request-Id": "order-78"}, prompt=PROMPT)["id"])
    fleet.until(lambda: f"event='recorded' job='{job['id']}'" in (fleet.folder / "log").read_text())
    lines = [line for line in (fleet.folder / "log").read_text().splitlines() if job["id"] in line]
    gateway = [json.loads(line) for line in lines if line.startswith("{")]
    worker = [line for line in lines if not line.startswith("{")]
    assert [line["event"] for line in gateway] == ["submitted"] and gateway[0]["request_id"] == "order-78"
    assert len(worker) >= 2 and all("request_id='order-78'" in line for line in worker)
    assert "heron" not in (fleet.folder / "log").read_text()


def test_a_request_without_an_id_gets_one_that_its_job_keeps(fleet: Fleet) -> None:
    answer = fleet.client.post("/generate", json={"prompt": PROMPT, "steps": 3}, headers={"X-Request-Id": "no spaces\tplease"})
    made = answer.headers["X-Request-Id"]
    assert len(made) == 32 and made.isalnum()
    fleet.finished(answer.json()["id"])
    fleet.until(lambda: f"job='{answer.json()['id']}' request_id='{made}'" in (fleet.folder / "log").read_text())


def test_probes_and_metrics_make_no_spans(fleet: Fleet, receiver: Receiver) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/samplers"):
        assert fleet.client.get(path, headers={"traceparent": f"00-{OURS[::-1]}-{PARENT}-01"}).status_code == 200
    found = {span["name"] for span in receiver.wait_for({"GET /samplers"}, OURS[::-1])}
    assert {name for name in found if not name.startswith("redis ")} == {"GET /samplers"}


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("module", ["service.app", "workers.serving"])
def test_nothing_is_loaded_that_is_not_asked_for(module: str, hidden: bool) -> None:
    """Nor needed: without the extra everything is as it was. redis-py looks for the SDK itself, and loads its metrics where it is."""
    hide = "sys.modules['opentelemetry.sdk'] = sys.modules['opentelemetry.exporter'] = None" if hidden else "pass"
    script = (
        f"import os, sys\n{hide}\nimport {module}, jobs.tracing\nprint(jobs.tracing.open_tracing('x', '1', {{}})[0].provider, *sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, check=True, timeout=50)
    provider, *loaded = run.stdout.split()
    assert provider == "None" and module in loaded
    assert not {name for name in loaded if name.startswith(("opentelemetry.exporter.", "opentelemetry.sdk.trace.export"))}


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ],
)
def test_what_cannot_be_is_said(told: dict[str, str], why: str) -> None:
    tracing, said = open_tracing("x", "1", told)
    assert tracing.provider is None and said.partition(":")[0] == why


def test_where_the_extra_is_missing_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.tracing.find_spec", lambda name: None)
    tracing, said = open_tracing("x", "1", {"OTEL_EXPORTER_OTLP_ENDPOINT": HERE})
    assert tracing.provider is None and "pip install celadon[otel]" in said


async def test_calls_of_redis_have_spans_behind_their_own_span_and_nobody_elses(redis: Redis) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    shards, tracing = Shards.of(redis), Tracing(provider)
    watch(shards, tracing)
    queue = JobQueue(shards)
    await queue.submit(sample_job())  # in no span
    await queue.reap()
    assert memory.get_finished_spans() == ()
    with tracing.within(f"00-{OURS}-{PARENT}-01"):
        for _ in range(2):
            await redis.script_flush()
            await queue.submit(sample_job())
        await queue.depth()
        await redis.hgetall("{q0}:none")
        with pytest.raises(ResponseError):
            await redis.hget("{q0}:seq", PROMPT)
    spans = memory.get_finished_spans()
    names = [span.name for span in spans]
    assert {"redis submit", "redis pipeline", "redis HGETALL", "redis HGET"} <= set(names) and names.count(
        "redis submit"
    ) == 4  # each in vain, and again
    assert {f"{span.context.trace_id:032x}" for span in spans} == {OURS}
    failed = next(span for span in spans if span.name == "redis HGET")
    assert failed.attributes and failed.attributes["error.type"] == "ResponseError" and not failed.events
    assert "heron" not in str([span.to_json() for span in spans])


def test_without_a_provider_nothing_happens() -> None:
    tracing = Tracing()
    tracing.record("steps", f"00-{OURS}-{PARENT}-01", 0.0, 1.0)
    tracing.note(request_id="x")
    assert tracing.current() == ""
