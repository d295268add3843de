"""A little of what `make chaos` does: processes killed, the database away, under workflows."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_modules import benchmark_modules

pytestmark = pytest.mark.chaos


@pytest.fixture
def chaos() -> Iterator[ModuleType]:
    with benchmark_modules("report"):
        sys.path.insert(0, str(Path(__file__).parent))
        try:
            yield import_module("chaos")
        finally:
            sys.path.remove(str(Path(__file__).parent))
            sys.modules.pop("chaos", None)


def test_nothing_is_lost_or_there_twice(chaos: ModuleType, tmp_path: Path) -> None:
    order = ["worker", "directory", "worker", "database", "host", "directory"]
    found = asyncio.run(
        chaos.chaos(order, folder=tmp_path, journal="sqlite", seed=1, minutes=30, num_active=3, num_topics=1)
    )
    assert [kill.what for kill in found.kills] == order
    assert found.num_workflows > 0
    assert found.wrong == {kind: [] for kind in found.wrong}
