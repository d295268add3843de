"""What the engine's thread reports once there is nothing more to do."""

from __future__ import annotations

import threading

from engine_harness import Driver, make_engine

from laban.actors.calls import Call, CallTokens, Sampling
from laban.actors.worker import WorkerLoop
from laban.kvstore.encodings import EMPTY_VIEW


def test_what_an_abort_leaves_is_reported_at_once() -> None:
    driver = Driver(make_engine())
    loop = WorkerLoop(lambda: driver.engine)
    loop.submit([Call("a", "test", EMPTY_VIEW, 0, (1, 2), (), Sampling(max_tokens=500, forced=(1,) * 500))])
    late = threading.Timer(10.0, loop.stop)
    late.start()
    num_tokens, aborted = 0, False
    for report in loop.reports():
        num_tokens += sum(len(event.token_ids) for event in report.events if isinstance(event, CallTokens))
        if num_tokens and not aborted:
            loop.abort(["a"])
            aborted = True
        if aborted and not report.load.num_running:
            break
    late.cancel()
    assert report.load.num_running == 0
    assert report.tallies is not None
    assert report.tallies.tokens_decoded >= num_tokens - 1 > 0
    loop.stop()
