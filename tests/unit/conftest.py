"""Unit tests run without Ray: a test that starts it fails."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import NoReturn

import pytest
from hypothesis import settings

# Fresh examples on each run; the same each time where a change is judged: HYPOTHESIS_PROFILE=same. How long one takes
# says more of the machine than of the code.
settings.register_profile("fresh", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fresh"))

# One thread a process, set before torch is imported: the tests run in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where there is no card, Triton's kernels run in its interpreter. It has to be told so before anything imports it.
if importlib.util.find_spec("torch") is not None:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import ray
    except ImportError:
        return  # the client's tests run where there is no Ray

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("a unit test called ray.init")

    monkeypatch.setattr(ray, "init", refuse)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what stood in for a card, which no unit test needs."""
    if importlib.util.find_spec("triton") is None:
        terminalreporter.write_line("Triton kernels: not run, Triton is not installed; their references were")
    else:
        version = importlib.metadata.version("triton")
        terminalreporter.write_line(f"Triton kernels: run in the interpreter of Triton {version}")
