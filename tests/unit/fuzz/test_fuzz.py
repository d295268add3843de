"""A little of what `make fuzz` does: no random input crashes, hangs or half does anything."""

from __future__ import annotations

import pytest
from fuzz_runs import fuzz
from fuzz_targets import TARGETS

pytestmark = pytest.mark.slow
NUM_INPUTS = {"documents": 150, "requests": 150, "sequences": 20, "disk": 80, "schemas": 30}


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_does_harm(target: str) -> None:
    done: list[int] = []
    fuzz(target, NUM_INPUTS[target], first_seed=1, said=done.append)
    assert done[-1] == NUM_INPUTS[target]
