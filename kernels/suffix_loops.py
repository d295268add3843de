"""The index of `actors/engine/suffix_index.py` as compiled loops: hash chains over pairs of tokens, as in LZ77 coders.

`heads[hash of a pair]` is the last place where such a pair ends, `links[place]` the one before it; -1 ends a chain.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
jit: Any = numba.njit(cache=True)

MULTIPLIER = np.uint32(2654435761)  # Knuth's: 2**32 over the golden ratio


@jit  # type: ignore[untyped-decorator]
def _chain_of(before: int, token: int, bits: int) -> int:
    mixed = np.uint32(before) * MULTIPLIER ^ np.uint32(token)
    return int(np.uint32(mixed * MULTIPLIER) >> np.uint32(32 - bits))


@jit  # type: ignore[untyped-decorator]
def insert(text: Ints, begin: int, end: int, heads: Ints, links: Ints, bits: int) -> None:
    """Puts the pairs that end at places [begin, end) of `text` into the chains."""
    for place in range(max(begin, 1), end):
        chain = _chain_of(text[place - 1], text[place], bits)
        links[place] = heads[chain]
        heads[chain] = place


@jit  # type: ignore[untyped-decorator]
def longest(text: Ints, last: int, links: Ints, max_length: int, max_candidates: int) -> tuple[int, int]:
    """Where what ends at `last` ended before: the place, and how many tokens are the same there, at least 2.

    The longest, up to `max_length`, and of these the latest; (-1, 0) if there is none. `last` is in its chain, of which
    the latest `max_candidates` are looked at.
    """
    best, best_length = -1, 0
    place = links[last]
    for _ in range(max_candidates):
        if place < 0:
            break
        length = 0
        while length < max_length and length <= place and text[place - length] == text[last - length]:
            length += 1
        if length > best_length:
            best, best_length = place, length
            if length == max_length:
                break
        place = links[place]
    return (best, best_length) if best_length >= 2 else (-1, 0)
