"""A user's own classes, named as `package.module:Class`, and what becomes of their mistakes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib import import_module
from numbers import Real
from pathlib import Path
from traceback import extract_tb
from typing import Any

logger = logging.getLogger(__name__)

TOLD_EVERY_S = 60.0

PATIENCE_S = 0.1
"""For one decision. Whoever asks a policy does nothing else until it has answered."""

RESTS = 20
"""Times as long as it took, for which a policy that took longer is not asked: it costs a twentieth of the time."""

METHOD = "key"
"""What every policy has: of what it is given, the one with the lowest key is taken."""


def load(path: str, kind: str) -> type:
    """The class that `path` names; `kind` is what it is wanted as, for the errors.

    Raises ValueError that says what is wrong: no colon, a module that cannot be imported and why, no such class, or
    one without a method `key`.
    """
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        raise ValueError(f"{kind} {path!r}: expected package.module:Class")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever its author wrote at the top of it
        raise ValueError(f"{kind} {path!r}: cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        what = "no such class" if found is None else f"{class_name} is a {type(found).__name__}, expected a class"
        raise ValueError(f"{kind} {path!r}: {what} in {module_name!r}")
    if not callable(getattr(found, METHOD, None)):
        raise ValueError(f"{kind} {path!r}: {class_name} has no method {METHOD!r}")
    return found


def make(path: str, kind: str) -> object:
    """An instance of the class that `path` names, made without arguments. Raises ValueError as `load` does."""
    found = load(path, kind)
    try:
        return found()
    except Exception as error:
        raise ValueError(f"{kind} {path!r}: cannot be made: {type(error).__name__}: {error}") from error


class PolicyFailed(Exception):
    """A policy's `key` raised, or gave what cannot be compared: which, and where."""


def key_of(policy: Any, *arguments: object) -> tuple[float, ...]:
    """The policy's key of these, as it may be compared with others. Raises PolicyFailed."""
    try:
        key: Any = policy.key(*arguments)
        made = tuple(key) if isinstance(key, (tuple, list)) else None
    except Exception as error:  # whatever its author wrote
        at = extract_tb(error.__traceback__)[-1]
        raise PolicyFailed(f"{type(error).__name__}: {error} ({Path(at.filename).name}, line {at.lineno})") from error
    if made is None or not all(isinstance(part, Real) and part == part for part in made):
        raise PolicyFailed(f"key returned {key!r:.200}, expected a tuple of numbers, none of them NaN")
    return made


class Patience:
    """Bounds what a policy that is slow holds up: after a decision that took too long it is not asked for a while. One
    that never answers cannot be helped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._why = ""
        self._rests_until_s = self._began_s = float("-inf")

    def begin(self) -> None:
        """A decision. Raises PolicyFailed while the policy is not to be asked."""
        self._began_s = self._clock()
        if self._began_s < self._rests_until_s:
            raise PolicyFailed(self._why)

    def check(self, num_asked: int, num_options: int) -> None:
        """Between two keys of the decision. Raises PolicyFailed once it has taken too long."""
        now_s = self._clock()
        took_s = now_s - self._began_s
        if took_s > PATIENCE_S:
            self._rests_until_s = now_s + RESTS * took_s
            took, rests = f"took {took_s:.2g} s for {num_asked} of {num_options} keys", f"{RESTS * took_s:.2g} s"
            self._why = f"it {took}, at most {PATIENCE_S:g} s are for all of them: it is not asked for {rests}"
            raise PolicyFailed(self._why)


class Failures:
    """Those of one policy, which another one stands in for: counted, and told in the log once a minute at most."""

    def __init__(self, policy: object, instead: str, counted: Callable[[], None] = lambda: None) -> None:
        """`instead` says what is done then."""
        self._name = f"{type(policy).__module__}:{type(policy).__qualname__}"
        self._instead, self._counted = instead, counted
        self._num, self._due_s = 0, 0.0

    def note(self, error: PolicyFailed) -> None:
        self._num += 1
        self._counted()
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + TOLD_EVERY_S
            logger.warning(
                "policy %s failed (%d times so far), %s: %s", self._name, self._num, self._instead, error,
                exc_info=error.__cause__,
            )  # fmt: skip
