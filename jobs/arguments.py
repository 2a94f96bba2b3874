"""What the queue's scripts take, checked before it is sent: each function raises ValueError on what they could not hold."""

from __future__ import annotations

import math
from collections.abc import Iterable

from jobs.job import SCHEMA, SERVICE_CLASSES, Job

MAX_PRIORITY = 900
MAX_PREVIEWS = 8  # that are kept of a job


def place(job: Job) -> tuple[str, str, str, int, int, str]:
    """Where a job waits and what it asks for: client, queue, class, priority, evaluations, size.

    Of a job in two passes the evaluations are so many of the larger size as cost the same, by their pixels.
    """
    if not -MAX_PRIORITY <= job.priority <= MAX_PRIORITY:
        raise ValueError(f"Priority {job.priority} is outside {-MAX_PRIORITY} .. {MAX_PRIORITY}.")
    if job.service_class not in SERVICE_CLASSES:
        raise ValueError(f"{job.service_class!r} is none of {', '.join(SERVICE_CLASSES)}.")
    _check_previews(job)
    queue = queue_name(job.params.model, job.schema)
    return name(job.client), queue, job.service_class, job.priority, *_work(job)


def _work(job: Job) -> tuple[int, str]:
    first, last = job.params.passes[0], job.params.passes[-1]
    size = f"{last.width}x{last.height}"
    if first is last:
        return job.steps_total, size
    (a, b), (c, d) = first.kept, last.kept
    small, large = (b - a) * first.width * first.height / (last.width * last.height), d - c
    return max(1, round(job.steps_total * (small + large) / (b - a + d - c))), size


def record_of(job: Job) -> list[str]:
    """Its fields and values, one after the other."""
    return [text for pair in job.to_hash().items() for text in pair]


def _check_previews(job: Job) -> None:
    """They rise, and lie between the first evaluation of an image and its last."""
    steps, each = job.preview_steps, job.steps_total // job.params.num_images
    rising = all(a < b for a, b in zip((0, *steps), (*steps, each), strict=True))
    if steps and not (rising and len(steps) <= MAX_PREVIEWS):
        raise ValueError(f"Previews are at most {MAX_PREVIEWS}, at rising steps before the last of {each}, not {steps}.")


def name(text: str) -> str:
    """Names are joined by ':' in keys, and '@' marks schemas and classes."""
    if not text or ":" in text or "@" in text:
        raise ValueError(f"{text!r} cannot be part of a key: it is empty or holds ':' or '@'.")
    return text


def fingerprint_of(text: str) -> str:
    return name(text) if text else ""


def seconds_of(value: float | None) -> str:
    """Seconds as the scripts read them; the empty string is none. Raises ValueError unless they are finite and above 0."""
    if value is None:
        return ""
    if not 0 < value < math.inf:
        raise ValueError("Seconds are a number above 0.")
    return f"{value:.6f}"


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def queue_name(model: str, schema: int) -> str:
    """Records of a newer schema wait in queues of their own, so an older worker never meets them."""
    return name(model) if schema == 1 else f"{name(model)}@{schema}"


def queue_names(models: Iterable[str]) -> list[str]:
    return [queue_name(model, schema) for model in models for schema in range(1, SCHEMA + 1)]
