"""Unit tests run without Ray: a test that starts it fails."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

# One thread a process, set before torch is imported: the tests run in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import ray
    except ImportError:
        return  # the client's tests run where there is no Ray

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("a unit test called ray.init")

    monkeypatch.setattr(ray, "init", refuse)
