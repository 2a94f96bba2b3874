"""What /metrics tells. One registry per app; nothing is global."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from jobs.registry import WorkerInfo

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of this process, and gauges of the shared queue that are read when they are asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("celadon_http_requests", "HTTP requests answered", ["method", "route", "status"], registry=self._registry)
        self._latency = Histogram(
            "celadon_http_request_seconds",
            "From the request's first byte to the answer's last",
            ["method", "route"],
            buckets=LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self._submitted = Counter("celadon_jobs_submitted", "Jobs queued by this gateway", ["model"], registry=self._registry)
        self._images = Counter("celadon_images_served", "Pictures sent, whole or in part", registry=self._registry)
        self._image_bytes = Counter("celadon_image_bytes_served", "Bytes of pictures sent", registry=self._registry)
        self._redis_up = Gauge("celadon_redis_up", "1 when the queue answered just now", registry=self._registry)
        self._jobs = Gauge("celadon_jobs", "Jobs in the queue now", ["state"], registry=self._registry)
        self._workers = Gauge("celadon_workers", "Workers alive now", ["state"], registry=self._registry)
        self._slots = Gauge("celadon_slots", "Image slots of all workers", ["state"], registry=self._registry)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    def submitted(self, model: str) -> None:
        self._submitted.labels(model).inc()

    def image_served(self, size: int) -> None:
        self._images.inc()
        self._image_bytes.inc(size)

    def queue_seen(self, depth: Mapping[str, int], workers: Iterable[WorkerInfo]) -> None:
        workers = list(workers)
        self._redis_up.set(1)
        for state, count in depth.items():
            self._jobs.labels(state).set(count)
        ready = sum(worker.ready for worker in workers)
        self._workers.labels("ready").set(ready)
        self._workers.labels("starting").set(len(workers) - ready)
        busy = sum(worker.busy for worker in workers)
        self._slots.labels("busy").set(busy)
        self._slots.labels("free").set(sum(worker.slots for worker in workers) - busy)

    def queue_unseen(self) -> None:
        """Old numbers would be taken for true: show none."""
        self._redis_up.set(0)
        for gauge in (self._jobs, self._workers, self._slots):
            gauge.clear()

    def render(self) -> bytes:
        return generate_latest(self._registry)
