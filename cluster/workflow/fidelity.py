"""The levels of fidelity that are served: how a read may be reused by a reader whose view differs."""

from __future__ import annotations

from typing import Literal, TypeGuard, get_args

Fidelity = Literal["exact", "corrected", "blended", "direct"]
LEVELS: tuple[Fidelity, ...] = get_args(Fidelity)
RESERVED = ("auto",)

TOLERANCE = 0.05
"""Nats a token, where `corrected` is asked for and nothing else is said."""

RECOMPUTE_SHARE = 0.15
"""Of the tokens of blended reads, those that are encoded again where nothing else is said."""


def is_served(level: object) -> TypeGuard[Fidelity]:
    return level in LEVELS


def expected() -> str:
    """The levels in words, for whoever named another.

    >>> expected()
    'exact, corrected, blended or direct'
    """
    return f"{', '.join(LEVELS[:-1])} or {LEVELS[-1]}"
