"""Many random inputs for one target, in batches, each with a server of its own where one is needed."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from fuzz_targets import HUNG_S, TARGETS, server
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

BATCH = 1000


def fuzz(target: str, num_inputs: int, first_seed: int, said: Callable[[int], None] = lambda done: None) -> None:
    """Raises what an input did, which hypothesis has made small. `said` is told how many are done."""
    _, play, needs_server = TARGETS[target]
    for done in range(0, num_inputs, BATCH):
        with server() if needs_server else contextlib.nullcontext() as loop:
            _batch(partial(play, loop=loop) if needs_server else play, min(BATCH, num_inputs - done), first_seed + done)
        said(min(num_inputs, done + BATCH))


def _batch(play: Callable[[st.DataObject], None], num_inputs: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=num_inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        with _no_longer_than(2 * HUNG_S):
            play(data)

    one()


@contextmanager
def _no_longer_than(limit_s: float) -> Iterator[None]:
    """Raises AssertionError in the middle of what hangs. For the main thread."""

    def hung(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"one input took more than {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
