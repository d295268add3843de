"""The span that a client's call is made in, told to the server as W3C's Trace Context says.

OpenTelemetry need not be installed, and is not imported for those who do not use it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

MAY_TRACE = find_spec("opentelemetry") is not None


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """`traceparent` and `tracestate` of the active span; nothing if there is none."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
