"""What /metrics tells. One registry per app; nothing is global."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

from jobs.figures import QueueFigures
from jobs.measures import Measure
from jobs.registry import WorkerInfo

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MOST_COSTS = 50  # sizes that are told: clients choose them

Label = TypeVar("Label", bound=str)

OF_THIS_GATEWAY = (
    Measure("celadon_http_requests", "counter", "HTTP requests answered, by the route's pattern", ("method", "route", "status")),
    Measure(
        "celadon_http_request_seconds",
        "histogram",
        "From the request's first byte to the answer's last",
        ("method", "route"),
        LATENCY_BUCKETS_S,
    ),
    Measure("celadon_jobs_submitted", "counter", "Jobs queued by this gateway, but for lines of batches", ("model",)),
    Measure("celadon_images_served", "counter", "Pictures sent, whole or in part"),
    Measure("celadon_image_bytes_served", "counter", "Bytes of pictures sent"),
    Measure("celadon_redis_up", "gauge", "1 when the queue answered just now; where it is 0 there is no figure of the queue"),
)
OF_THE_QUEUE = (
    Measure("celadon_jobs", "gauge", "Jobs in the queue now: queued, running", ("state",)),
    Measure("celadon_queue_ready_jobs", "gauge", "Queued jobs that a worker could take now", ("service_class",)),
    Measure(
        "celadon_queue_oldest_seconds",
        "gauge",
        "For how long the oldest of them has waited, of those that stand first in their client's line",
        ("service_class",),
    ),
    Measure(
        "celadon_jobs_ended",
        "counter",
        "Jobs that ended: succeeded, canceled, or failed with a code; since the queue began",
        ("status", "code"),
        shared=True,
    ),
    Measure("celadon_workers", "gauge", "Workers alive now: ready, starting", ("state",)),
    Measure("celadon_slots", "gauge", "Image slots of all workers: busy, free", ("state",)),
    Measure("celadon_webhooks", "gauge", "Webhook deliveries: waiting for an attempt, or dead after the last one", ("state",)),
    Measure(
        "celadon_evaluation_seconds",
        "gauge",
        f"One U-Net evaluation of one picture, as workers measured it last; of {MOST_COSTS} sizes at most",
        ("model", "size"),
    ),
)


class Metrics:
    """Counters of this process, and gauges of the shared queue that are read when they are asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._all = {m.name: m.build(self._registry) for m in (*OF_THIS_GATEWAY, *OF_THE_QUEUE) if not m.shared}
        self._answered: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}  # looked up once
        self._ended = _Ended(next(m for m in OF_THE_QUEUE if m.shared))
        self._registry.register(self._ended)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        key = method, route, status
        if key not in self._answered:
            count = self._counter("celadon_http_requests").labels(method, route, str(status))
            self._answered[key] = count, cast(Histogram, self._all["celadon_http_request_seconds"]).labels(method, route)
        count, latency = self._answered[key]
        count.inc()
        latency.observe(seconds)

    def submitted(self, model: str) -> None:
        self._counter("celadon_jobs_submitted").labels(model).inc()

    def image_served(self, size: int) -> None:
        self._counter("celadon_images_served").inc()
        self._counter("celadon_image_bytes_served").inc(size)

    def queue_seen(self, figures: QueueFigures, workers: Iterable[WorkerInfo]) -> None:
        self.queue_unseen()  # what is there no more is not told any longer
        workers = list(workers)
        ready, busy = sum(worker.ready for worker in workers), sum(worker.busy for worker in workers)
        self._gauge("celadon_redis_up").set(1)
        self._set("celadon_jobs", {"queued": figures.queued, "running": figures.running})
        self._set("celadon_queue_ready_jobs", figures.ready)
        self._set("celadon_queue_oldest_seconds", figures.oldest_s)
        self._set("celadon_workers", {"ready": ready, "starting": len(workers) - ready})
        self._set("celadon_slots", {"busy": busy, "free": sum(worker.slots for worker in workers) - busy})
        self._set("celadon_webhooks", {"waiting": figures.hooks_waiting, "dead": figures.hooks_dead})
        for model, size in sorted(figures.costs)[:MOST_COSTS]:
            self._gauge("celadon_evaluation_seconds").labels(model, size).set(figures.costs[model, size])
        self._ended.seen = figures.ended

    def queue_unseen(self) -> None:
        """Old numbers would be taken for true: show none."""
        self._gauge("celadon_redis_up").set(0)
        for measure in OF_THE_QUEUE:
            if not measure.shared:
                self._gauge(measure.name).clear()
        self._ended.seen = {}

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def _set(self, name: str, values: Mapping[Label, float]) -> None:
        for label, value in values.items():
            self._gauge(name).labels(label).set(value)

    def _gauge(self, name: str) -> Gauge:
        return cast(Gauge, self._all[name])

    def _counter(self, name: str) -> Counter:
        return cast(Counter, self._all[name])


class _Ended:
    """A counter that is kept in Redis: it outlives gateways, and all of them tell the same."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self.seen: Mapping[tuple[str, str], int] = {}

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._measure.name, self._measure.about, labels=self._measure.labels)
        for labels, count in sorted(self.seen.items()):
            family.add_metric(labels, count)
        yield family
