"""The levels of fidelity that are served: how a read may be reused by a reader whose view differs."""

from __future__ import annotations

from typing import Literal, TypeGuard, get_args

Fidelity = Literal["exact", "corrected", "blended", "direct"]
LEVELS: tuple[Fidelity, ...] = get_args(Fidelity)
_BY_COST = ("direct", "corrected", "blended")
CHEAPEST_FIRST: tuple[Fidelity, ...] = tuple(sorted((each for each in LEVELS if each != "exact"), key=_BY_COST.index))

Asked = Literal[Fidelity, "auto"]
"""What may be asked for: a level, or AUTO, the cheapest that an audit found within a tolerance."""
AUTO: Literal["auto"] = "auto"

TOLERANCE = 0.05
"""Nats a token, where `auto` or `corrected` is asked for and nothing else is said."""
MAX_TOLERANCE = 100.0

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


def level_of(asked: Asked) -> Fidelity:
    """What is read where nobody has chosen: `auto` is `exact` until something is known."""
    return "exact" if asked == "auto" else asked
