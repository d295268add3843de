"""The levels of fidelity that are served: how a read may be reused by a reader whose view differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

Fidelity = Literal["exact", "corrected", "blended", "direct"]
LEVELS: tuple[Fidelity, ...] = get_args(Fidelity)

Asked = Literal[Fidelity, "auto"]
"""What may be asked for: a level, or AUTO, the cheapest that an audit found within a tolerance."""
AUTO: Literal["auto"] = "auto"

TOLERANCE = 0.05
"""Nats a token, where `auto` or `corrected` is asked for and nothing else is said."""
MAX_TOLERANCE = 100.0

RECOMPUTE_SHARE = 0.15
"""Of the tokens of blended reads, those that are encoded again where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Degree:
    """A level, and where that is `blended` the share, above 0 and up to 1, of the tokens that are encoded again.

    Its name has four decimals of that, so names are short and there are not too many of them.

    >>> str(Degree("direct")), str(Degree("blended", 0.3)), str(Degree("blended", 1e-9)), str(Degree("blended", 1))
    ('direct', 'blended:0.3', 'blended:0.0001', 'blended:1')
    """

    level: Fidelity
    share: float = RECOMPUTE_SHARE

    def __str__(self) -> str:
        if self.level != "blended":
            return self.level
        return f"blended:{max(self.share, 0.0001):.4f}".rstrip("0").rstrip(".")

    @classmethod
    def of(cls, name: str, usual_share: float = RECOMPUTE_SHARE) -> Degree | None:
        """What has that name, as `blended` has with the usual share; None if nothing has.

        >>> Degree.of("blended:0.30"), Degree.of("blended", 0.5), Degree.of("blended:2"), Degree.of("lossless")
        (Degree(level='blended', share=0.3), Degree(level='blended', share=0.5), None, None)
        """
        level, colon, share = name.partition(":")
        if not is_served(level):
            return None
        if not colon:
            return cls(level, usual_share) if level == "blended" else cls(level)
        try:
            number = float(share)
        except ValueError:
            return None
        return cls(level, max(round(number, 4), 0.0001)) if level == "blended" and 0 < number <= 1 else None


CHEAPEST_FIRST = (
    Degree("direct"), Degree("corrected"), Degree("blended"), Degree("blended", 0.3), Degree("blended", 0.5),
)  # fmt: skip
"""Those that `auto` chooses among, and that an audit compares unless it is told others."""


def is_served(level: object) -> TypeGuard[Fidelity]:
    return level in LEVELS


def expected(*, asked: bool = False) -> str:
    """The levels in words, for whoever named another; with `auto` where it may be asked for.

    >>> expected()
    'exact, corrected, blended or direct'
    """
    *words, last = (*LEVELS, AUTO) if asked else LEVELS
    return f"{', '.join(words)} or {last}"


def level_of(asked: Asked) -> Fidelity:
    """What is read where nobody has chosen: `auto` is `exact` until something is known."""
    return "exact" if asked == "auto" else asked
