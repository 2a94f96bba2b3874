"""What gateway and workers tell Prometheus is declared as data, so that the page of metrics can be made from it.

Labels take few values each: never an id, a prompt or a client's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Metric = Counter | Gauge | Histogram


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric. `buckets` are of a histogram. One that is `shared` is not kept by the process: it is read when it is asked for."""

    name: str  # a counter's without `_total`
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    shared: bool = False

    def build(self, registry: CollectorRegistry) -> Metric:
        match self.kind:
            case "counter":
                return Counter(self.name, self.about, self.labels, registry=registry)
            case "gauge":
                return Gauge(self.name, self.about, self.labels, registry=registry)
        return Histogram(self.name, self.about, self.labels, buckets=self.buckets, registry=registry)


class Bounded:
    """Values of a label that clients choose: the first `most` that come keep their names, later ones share `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def name(self, value: str) -> str:
        if value not in self._known and len(self._known) < self._most:
            self._known.add(value)
        return value if value in self._known else "other"


def table(measures: Iterable[Measure]) -> str:
    """As Markdown."""
    rows = ["| metric | kind | labels | tells |", "|---|---|---|---|"]
    for measure in measures:
        name = f"{measure.name}_total" if measure.kind == "counter" else measure.name
        labels = ", ".join(f"`{label}`" for label in measure.labels)
        rows.append(f"| `{name}` | {measure.kind} | {labels} | {measure.about} |")
    return "\n".join(rows)
