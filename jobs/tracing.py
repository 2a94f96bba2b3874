"""Traces for OpenTelemetry: from the HTTP request to what its job's worker does. Nothing is imported unless OTEL_* asks for it.

A job carries the `traceparent` (W3C Trace Context) of the request that made it; spans of workers are recorded behind it when they
are over, with times of their own, so that nothing need be held open meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

FLUSH_S = 1.0  # for spans that are on their way when a process ends
TRACEPARENT = "traceparent"
PROTOCOL = "http/protobuf"
NAMES = {"operation": "operation.name", "namespace": "namespace"}  # of attributes, as OpenTelemetry has them


class Tracing:
    """The spans of this process; without a provider there are none, and every method does nothing."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("celadon") if provider else None

    def current(self) -> str:
        """The traceparent of the span that this code runs in; empty where there is none."""
        if self._tracer is None:
            return ""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier.get(TRACEPARENT, "")

    def note(self, **attributes: str | int) -> None:
        """Attributes of the span that this code runs in, behind `celadon.`."""
        if self._tracer is None:
            return
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes({f"celadon.{name}": value for name, value in attributes.items()})

    def name_request(self, method: str, route: str) -> None:
        """The span that this code runs in is that of an HTTP request, which the framework did not see going to its route."""
        if self._tracer is None:
            return
        from opentelemetry.trace import get_current_span

        span = get_current_span()
        span.set_attribute("http.route", route)
        span.update_name(f"{method} {route}")

    def record(self, name: str, parent: str, began: float, ended: float, **attributes: str | int) -> None:
        """A span that is over, behind the traceparent `parent` (empty: not at all). Times are of `time.monotonic`."""
        if self._tracer is None or not parent:
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({TRACEPARENT: parent})
        told = {f"celadon.{key}": value for key, value in attributes.items()}
        self._tracer.start_span(name, context, attributes=told, start_time=_nanoseconds(began)).end(_nanoseconds(ended))

    @contextmanager
    def within(self, parent: str) -> Iterator[None]:
        """What this code makes spans of stands behind the traceparent `parent`; where that is empty, behind what it stood behind."""
        if self._tracer is None or not parent:
            yield
            return
        from opentelemetry.context import attach, detach
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        token = attach(TraceContextTextMapPropagator().extract({TRACEPARENT: parent}))
        try:
            yield
        finally:
            detach(token)

    @contextmanager
    def call(self, name: str, **attributes: str) -> Iterator[None]:
        """A span of a call of Redis; none where this code runs in no span. Of what fails only the kind is told."""
        if self._tracer is None:
            yield
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode, get_current_span

        if not get_current_span().get_span_context().is_valid:
            yield
            return
        told = {"db.system.name": "redis"} | {f"db.{NAMES[key]}": value for key, value in attributes.items()}
        with self._tracer.start_as_current_span(
            name, kind=SpanKind.CLIENT, attributes=told, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise

    async def aclose(self) -> None:
        """Send what is left, within a second: a receiver that is away must not keep a process."""
        if self.provider:
            await asyncio.to_thread(self.provider.force_flush, round(FLUSH_S * 1000))


def open_tracing(service: str, version: str, environment: Mapping[str, str]) -> tuple[Tracing, str]:
    """What OTEL_* ask for; and why there is none although it is asked for, as one sentence."""
    if not _asked_for(environment):
        return Tracing(), ""
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or PROTOCOL
    if protocol != PROTOCOL:
        return Tracing(), f"OTEL_EXPORTER_OTLP_PROTOCOL: only {PROTOCOL} is spoken here."
    if environment.get("OTEL_TRACES_EXPORTER") not in (None, "", "otlp"):
        return Tracing(), "OTEL_TRACES_EXPORTER: only otlp and none are known here."
    if not find_spec("opentelemetry.exporter") or not find_spec("opentelemetry.exporter.otlp.proto.http"):
        return Tracing(), "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: pip install celadon[otel]"
    return Tracing(_provider(service, version, environment)), ""


def _asked_for(environment: Mapping[str, str]) -> bool:
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    return any(environment.get(name) for name in names) and not off


def _provider(service: str, version: str, environment: Mapping[str, str]) -> TracerProvider:
    """Exporter, batches, limits and sampler read their OTEL_* themselves."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    about = {"service.version": version} | ({} if named else {"service.name": service})
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _nanoseconds(monotonic: float) -> int:
    return time.time_ns() - round((time.monotonic() - monotonic) * 1e9)
