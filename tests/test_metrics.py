"""What a real gateway and a real worker tell Prometheus, and whether dashboard, alerts and page ask for that and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

import jobs.valkey
from benchmarks import metrics_docs
from jobs.figures import read_figures
from jobs.job import JobError
from jobs.job_queue import JobQueue
from jobs.measures import Bounded
from service.metrics import OF_THE_QUEUE, OF_THIS_GATEWAY
from tests.fleet import Fleet, free_port
from tests.job_samples import Clock, sample_job
from tests.test_docs import ROOT
from training.toy import write_toy
from workers.metrics import OF_A_WORKER

pytestmark = pytest.mark.timeout(300)  # whole processes start here

EVERY = (*OF_THIS_GATEWAY, *OF_THE_QUEUE, *OF_A_WORKER)
PROMPT = "a heron that no label may hold"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scraped:
    """A fleet that has drawn two pictures and canceled one, refused a request, and what it told then."""

    def __init__(self, fleet: Fleet, port: int) -> None:
        self.job = fleet.finished(fleet.submit(prompt=PROMPT, num_images=2, steps=3)["id"])
        canceled = fleet.submit(steps=60, sampler="heun", num_images=8)["id"]
        fleet.client.delete(f"/jobs/{canceled}")
        fleet.finished(canceled)
        assert fleet.client.post("/generate", json={}).status_code == 400
        self.gateway = fleet.client.get("/metrics").text
        self.worker = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        self.refused = fleet.start("worker").wait(60)
        self.log = (fleet.folder / "log").read_text()
        self.families = {f.name: f for text in (self.gateway, self.worker) for f in text_string_to_metric_families(text)}
        self.samples: Samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value for f in self.families.values() for sample in f.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, tuple(sorted(labels.items()))]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    folder, model, port = tmp_path_factory.mktemp("metrics"), tmp_path_factory.mktemp("model") / "toy", free_port()
    write_toy(model, prediction="v_prediction", seed=1)
    server = jobs.valkey.start(folder)
    fleet = Fleet(jobs.valkey.url(folder), folder, model, CELADON_WORKER_METRICS_PORT=str(port))
    try:
        fleet.gateway()
        fleet.worker()
        yield Scraped(fleet, port)
    finally:
        fleet.close()
        server.terminate()
        server.wait()


def test_the_figures_are_those_of_what_happened(scraped: Scraped) -> None:
    size = f"{scraped.job['images'][0]['width']}x{scraped.job['images'][0]['height']}"
    assert scraped.value("celadon_jobs_ended_total", status="succeeded", code="") == 1
    assert scraped.value("celadon_jobs_ended_total", status="canceled", code="") == 1
    assert scraped.value("celadon_jobs", state="queued") == scraped.value("celadon_queue_ready_jobs", service_class="normal") == 0
    assert scraped.value("celadon_http_requests_total", method="POST", route="/generate", status="400") == 1
    assert scraped.value("celadon_worker_image_seconds_count", size=size) == 2
    assert scraped.value("celadon_worker_store_seconds_count") == 2
    assert scraped.value("celadon_worker_jobs_total", outcome="recorded") == 1
    assert scraped.value("celadon_worker_jobs_total", outcome="canceled") == 1
    assert scraped.value("celadon_worker_wait_seconds_count", service_class="normal") == 2
    assert scraped.value("celadon_worker_slots", state="total") == 16
    moved = scraped.value("celadon_worker_tick_images_sum")
    assert moved >= 2 * 3 and scraped.value("celadon_worker_tick_images_count") <= moved
    for stage in ("tick", "encode", "decode", "idle"):
        assert scraped.value("celadon_worker_stage_seconds_total", stage=stage) > 0
    drawing = sum(v for (name, _), v in scraped.samples.items() if name == "celadon_worker_stage_seconds_total")
    assert drawing > scraped.value("celadon_worker_stage_seconds_total", stage="idle")


def test_what_is_declared_is_told_and_nothing_else(scraped: Scraped) -> None:
    told = {f.name: f.type for f in scraped.families.values() if not f.name.endswith("_created")}
    assert {name: kind for name, kind in told.items() if name.startswith("celadon_")} == {measure.name: measure.kind for measure in EVERY}


def test_a_port_that_is_taken_refuses_the_start(scraped: Scraped) -> None:
    assert scraped.refused == 2 and "CELADON_WORKER_METRICS_PORT: Address already in use" in scraped.log


def test_labels_hold_no_id_no_prompt_and_no_client(scraped: Scraped) -> None:
    for text in (scraped.gateway, scraped.worker):
        assert "heron" not in text and scraped.job["id"] not in text and not re.search(r"[0-9a-f]{32}", text)
    declared = {measure.name: {*measure.labels, "le"} for measure in EVERY}
    for family in scraped.families.values():
        for sample in family.samples:
            assert sample.labels.keys() <= declared.get(family.name, sample.labels.keys())


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and the query."""
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "celadon.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for text in re.findall(r"```\n(.*?)```", metrics_docs.PAGE.read_text(), re.DOTALL):
        yield "docs/metrics.md", text


@pytest.mark.parametrize(("title", "query"), [*expressions()])
def test_every_query_names_metrics_and_labels_that_exist(title: str, query: str, scraped: Scraped) -> None:
    names = re.findall(r"\bceladon_\w+", query)
    assert names, title
    known: set[str] = set()
    for name in names:
        family = scraped.families.get(name) or scraped.families.get(re.sub("_(total|sum|count|bucket)$", "", name))
        assert family, f"{title}: nobody tells {name}"
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_sum", "_count", "_bucket")}[family.type]
        assert name.removeprefix(family.name) in suffixes, f"{title}: {name} is a {family.type}"
        known |= {label for measure in EVERY if measure.name == family.name for label in measure.labels}
        known |= {"le"} if name.endswith("_bucket") else set()
    asked = set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", query)) | {
        label for group in re.findall(r"\bby \(([^)]*)\)", query) for label in re.split(r",\s*", group)
    }
    assert asked <= known, f"{title} asks for {asked - known}"


def test_the_page_tells_what_the_programs_declare() -> None:
    assert metrics_docs.PAGE.read_text() == metrics_docs.written(), f"run `{metrics_docs.COMMAND}`"


def test_a_label_that_clients_choose_is_bounded() -> None:
    sizes = Bounded(2)
    assert [sizes.name(value) for value in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]


async def test_age_and_depth_are_those_of_the_class(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    await queue.submit(sample_job("ada"))
    await clock.advance(20)
    await queue.submit(sample_job("ada"))
    await queue.submit(sample_job("bob"))
    await queue.submit(sample_job("bob", service_class="batch"))
    await clock.advance(10)
    figures = await read_figures(redis)
    assert (figures.queued, figures.running) == (4, 0)
    assert figures.ready == {"interactive": 0, "normal": 3, "batch": 1}
    assert figures.oldest_s == {"interactive": 0, "normal": 30, "batch": 10}


async def test_ends_are_counted_by_status_and_code_once(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    ended = [sample_job() for _ in range(3)]
    for job in ended:
        await queue.submit(job)
    await queue.claim("w", ["toy"], 2)
    for _ in range(2):  # an answer was lost
        await queue.fail("w", 1, ended[0].id, JobError("not_finite", "No."))
        await queue.finish("w", 1, ended[1].id, [])
        await queue.cancel(ended[2].id)
    await queue.submit(sample_job(), deadline_s=5)
    await clock.advance(6)
    await queue.reap()
    told = {("failed", "not_finite"): 1, ("succeeded", ""): 1, ("canceled", ""): 1, ("failed", "deadline"): 1}
    assert (await read_figures(redis)).ended == told


async def test_costs_are_those_that_workers_reported(queue: JobQueue, redis: Redis) -> None:
    await queue.report_cost("toy", 64, 32, 0.25)
    assert (await read_figures(redis)).costs == {("toy", "64x32"): 0.25}
