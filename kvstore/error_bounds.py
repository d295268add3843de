"""What a prediction errs by at most, after what others like it were found to err by."""

from __future__ import annotations

import math
from collections.abc import Iterable

MIN_ERRORS = 4
LEAST_ERROR = 1e-6
"""Nats a token. Less than this floating point makes by itself."""


def upper_bound(errors: Iterable[float]) -> float:
    """Of one more, 19 times of 20; infinite while there are fewer than `MIN_ERRORS`.

    They are taken for log-normal: it is the prediction interval of one more, so the fewer they are, the wider.
    """
    logs = [math.log(max(LEAST_ERROR, error)) for error in errors]
    if len(logs) < MIN_ERRORS:
        return math.inf
    mean = sum(logs) / len(logs)
    variance = sum((each - mean) ** 2 for each in logs) / (len(logs) - 1)
    return math.exp(mean + _student_95(len(logs) - 1) * math.sqrt(variance * (1 + 1 / len(logs))))


def _student_95(degrees: int) -> float:
    """The one-sided 95 % quantile of Student's t, by Cornish and Fisher's expansion: 1 % off at 3 degrees."""
    z = 1.6448536
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
