"""How long iterations take, and what that says: of the device's speed, of what drafts cost, of the load."""

from __future__ import annotations

import time

from laban.actors.engine.drafting import Drafting
from laban.actors.engine.iteration import Iteration
from laban.actors.engine.measured import MeasuredRates
from laban.actors.engine.tallying import Tallying


class IterationTimes:
    """Told of each iteration once the device has done it, in order."""

    def __init__(self, rates: MeasuredRates, drafting: Drafting, tallying: Tallying) -> None:
        self._rates, self._drafting, self._tallying = rates, drafting, tallying
        self._last_ended_s = 0.0

    def ended(self, iteration: Iteration) -> None:
        """It ran from when it was launched, or the one before it had ended."""
        now_s, ended_s = time.perf_counter(), self._last_ended_s
        self._last_ended_s = now_s
        began_s = max(iteration.began_s, ended_s)
        num_tokens, num_drafted = iteration.num_tokens, iteration.num_drafted
        self._rates.took(num_tokens, iteration.decodes_only, now_s - began_s)
        if iteration.decodes_only:  # drafted tokens were waited for: what the host did since is part of what they cost
            since_s = ended_s if num_drafted and ended_s else began_s
            self._drafting.costs.observe(num_tokens, now_s - since_s)
        num_decoded = sum(chunk.num_known for chunk in iteration.chunks if chunk.is_decode)
        self._tallying.observe("iteration_s", now_s - began_s)
        self._tallying.observe("batch_calls", len(iteration.chunks))
        self._tallying.add("tokens_decoded", num_decoded)
        self._tallying.add("tokens_prefilled", num_tokens - num_drafted - num_decoded)
