"""Where metrics are served: where it was asked for, or else near the default."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from laban.actors.errors import FailedPrecondition
from laban.cluster.config import MetricsSection
from laban.cluster.metrics_server import settled


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_port_that_was_asked_for_is_that_one_or_none(taken: int) -> None:
    with pytest.raises(FailedPrecondition, match="in use"):
        settled(MetricsSection(port=taken))
    assert settled(MetricsSection(port=None)).port is None
    found = settled(MetricsSection(port=0)).port
    assert found is not None
    assert found > 0


def test_the_default_gives_way(taken: int) -> None:
    section = MetricsSection.model_construct(port=taken, _fields_set=set())
    assert settled(section).port not in (None, 0, taken)
