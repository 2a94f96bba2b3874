"""What one worker tells Prometheus, where CELADON_WORKER_METRICS_PORT opens a door for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from jobs.job import Job
from jobs.measures import Bounded, Measure

MOST_SIZES = 24  # with a name of their own: clients choose sizes
SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)

OF_A_WORKER = (
    Measure("celadon_worker_claim_seconds", "histogram", "One claim: asking Redis for a job, whether there is one or not", (), SHORT_S),
    Measure(
        "celadon_worker_wait_seconds",
        "histogram",
        "From a job's submit to its first claim, by the clock of Redis",
        ("service_class",),
        LONG_S,
    ),
    Measure(
        "celadon_worker_tick_seconds", "histogram", "One step of all pictures of one size: a U-Net call and an update", ("size",), SHORT_S
    ),
    Measure("celadon_worker_tick_images", "histogram", "Pictures that moved in one tick: how full the batch was", (), COUNTS),
    Measure(
        "celadon_worker_stage_seconds",
        "counter",
        "Time of the drawing thread: tick (the U-Net), encode (prompts), decode (the VAE), preview, export (checkpoints), idle",
        ("stage",),
    ),
    Measure(
        "celadon_worker_image_seconds",
        "histogram",
        "One picture, from its slot to its pixels; the count is that of pictures",
        ("size",),
        LONG_S,
    ),
    Measure("celadon_worker_store_seconds", "histogram", "Writing one picture as PNG, JPEG or WebP, and storing it", (), SHORT_S),
    Measure(
        "celadon_worker_jobs",
        "counter",
        "How jobs left this worker: recorded (an end), superseded or lost (someone else's by then), canceled, released, paused",
        ("outcome",),
    ),
    Measure(
        "celadon_worker_webhooks", "counter", "Attempts to deliver a webhook: delivered, failed (tried again later), dead", ("outcome",)
    ),
    Measure("celadon_worker_slots", "gauge", "Pictures that fit at once, and that are held: total, busy", ("state",)),
)


class WorkerMetrics:
    """Any thread may call its methods."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._all = {measure.name: measure.build(self._registry) for measure in OF_A_WORKER}
        self._sizes = Bounded(MOST_SIZES)

    def serve(self, host: str, port: int) -> tuple[int, Callable[[], None]]:
        """Answer over HTTP from a thread of its own; the port (0 took a free one), and what ends it. Raises OSError."""
        server, _ = start_http_server(port, host, self._registry)

        def close() -> None:
            server.shutdown()
            server.server_close()

        return server.server_port, close

    def claimed(self, seconds: float, jobs: list[Job]) -> None:
        self._histogram("celadon_worker_claim_seconds").observe(seconds)
        for job in jobs:
            if job.attempt == 1 and job.started_at is not None:
                waited = max(job.started_at - job.created_at, 0.0)
                self._histogram("celadon_worker_wait_seconds").labels(job.service_class).observe(waited)

    def ticked(self, width: int, height: int, images: int, seconds: float) -> None:
        self._histogram("celadon_worker_tick_seconds").labels(self._size(width, height)).observe(seconds)
        self._histogram("celadon_worker_tick_images").observe(images)

    def spent(self, stage: str, seconds: float) -> None:
        self._counter("celadon_worker_stage_seconds").labels(stage).inc(seconds)

    def drew(self, width: int, height: int, seconds: float) -> None:
        self._histogram("celadon_worker_image_seconds").labels(self._size(width, height)).observe(seconds)

    def stored(self, seconds: float) -> None:
        self._histogram("celadon_worker_store_seconds").observe(seconds)

    def left(self, outcome: str) -> None:
        self._counter("celadon_worker_jobs").labels(outcome).inc()

    def posted(self, outcome: str) -> None:
        self._counter("celadon_worker_webhooks").labels(outcome).inc()

    def has_slots(self, total: int, busy: Callable[[], int]) -> None:
        slots = cast(Gauge, self._all["celadon_worker_slots"])
        slots.labels("total").set(total)
        slots.labels("busy").set_function(busy)

    def _size(self, width: int, height: int) -> str:
        return self._sizes.name(f"{width}x{height}")

    def _histogram(self, name: str) -> Histogram:
        return cast(Histogram, self._all[name])

    def _counter(self, name: str) -> Counter:
        return cast(Counter, self._all[name])
