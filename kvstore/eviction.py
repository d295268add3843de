"""What goes first when a tier is full: policies, each a sort key over what is known of one encoding.

The key of `cost`, ours, is written down at `CostPolicy`. A policy of your own is any class with a `key` method,
named as `package.module:Class`; it serves and simulates alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from laban.kvstore.encodings import EncodingId


@dataclass(frozen=True, slots=True)
class Evictable:
    """What a policy may know of an encoding that could leave its tier. Times in seconds on the owner's clock."""

    encoding_id: EncodingId
    num_tokens: int
    num_bytes: int
    last_use_s: float
    next_use_s: float | None  # expected; None: nobody is known to read it again
    steps: int | None  # steps-to-execution of that reader
    likelihood: float  # that it comes to that
    fixed: bool  # written before the run began
    bring_back_s: float  # what having it again would take: a reload, or encoding it and its evicted ancestors
    true_next_use_s: float | None = None  # simulation only


class EvictionPolicy(Protocol):
    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        """The lowest goes first. Pure: called for every candidate."""
        ...
