"""A collector of OpenTelemetry traces: OTLP's own service, over gRPC, that keeps what comes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc


@dataclass
class Span:
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    begin_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: list[str]  # trace ids
    is_error: bool
    resource: dict[str, Any]


@dataclass
class Collector(pb_grpc.TraceServiceServicer):
    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    def Export(self, request: Any, context: Any) -> Any:
        self.raw.append(request.SerializeToString())
        for resource in request.resource_spans:
            about = _values(resource.resource.attributes)
            self.spans += [_span(each, about) for scope in resource.scope_spans for each in scope.spans]
        return pb.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def children(self, parent: Span) -> list[Span]:
        """In the order in which they began."""
        return sorted((s for s in self.spans if s.parent_id == parent.span_id), key=lambda span: span.begin_ns)


def _span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        [link.trace_id.hex() for link in span.links],
        span.status.code == 2,
        resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    server = grpc.server(ThreadPoolExecutor(2))
    found = Collector()
    pb_grpc.add_TraceServiceServicer_to_server(found, server)
    found.endpoint = f"http://127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    try:
        yield found
    finally:
        server.stop(None).wait()
