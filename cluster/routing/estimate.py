"""How long a call's first token would take at a worker, from what is held where and how fast the worker is.

Each encoding that is missing comes in the cheapest way there is: loaded from the worker's own host memory or disk,
fetched from another worker, or encoded, with what of its context is not there. Loading and encoding go side by side, so
what they take is the longer of the two; then come the call's own tokens, which attend to both. Attention to what is
there already is not counted: a call's view is as long wherever it goes. Times are whole nanoseconds, so that sums do
not depend on their order. comparison_pass.py works it out.
"""

from __future__ import annotations

from typing import NamedTuple


class Estimate(NamedTuple):
    """Without the queue. The sets of needs say how each missing one comes; no need is in two of them.

    `saved_bring_ns`, of load and fetch, and `saved_encode_ns`, of encode, are what copies that pay will save others.
    """

    load_ns: int  # from its own host memory and disk
    fetch_ns: int
    encode_ns: int  # what is missing
    saved_bring_ns: int
    saved_encode_ns: int
    tokens_host: int
    tokens_disk: int
    tokens_peer: int
    tokens_encode: int  # of what is missing
    from_host: int
    from_disk: int
    fetched: int
    encoded: int

    @property
    def missing(self) -> int:
        """Needs that will be on the device because of this call."""
        return self.from_host | self.from_disk | self.fetched | self.encoded
