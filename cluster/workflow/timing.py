"""From steps to seconds: how long steps take, learned as they end, and when each instance of a run can begin.

It is the look-ahead's own pass with durations in the place of single steps: an AND-join begins after the latest of
what it waits for, an OR-join after the earliest, a wait for a tool takes its time like any other step.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from laban.cluster.workflow.lookahead import NEVER, LookAhead
from laban.cluster.workflow.lookahead_likelihoods import MAX_NAMES

Kind = Literal["generate", "external", "workflow"]

TICKS_PER_S = 1000
MAX_TICKS = 1 << 26  # of one step: 18 hours
FEW = 5  # steps that have ended so often are averaged evenly, later ones count more than earlier ones
UNHEARD_S: Mapping[Kind, float] = {"generate": 1.0, "external": 2.0, "workflow": 5.0}
OVERDUE = 0.5
"""What has run for longer than usual is expected to go on for this share of what it is late by."""

_IN_BRACKETS = re.compile(r"\[[^\]]*\]")


class StepHistory:
    """Moving averages, by workflow, step and kind, of the seconds that steps took and the tokens that they made.

    Rounds, members of a fan-out and the runs within a run count for their step: `research[2]/draft[ann]` for
    `research/draft`. Of more than `max_names` the one heard of the longest ago is forgotten.
    """

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._steps: OrderedDict[tuple[str, str, Kind], _Average] = OrderedDict()
        self._kinds: dict[Kind, _Average] = {}

    def observe(self, workflow: str, address: str, kind: Kind, seconds: float, num_tokens: int = 0) -> None:
        key = (workflow, step_path(address), kind)
        self._steps.setdefault(key, _Average()).add(seconds, num_tokens)
        self._steps.move_to_end(key)
        self._kinds.setdefault(kind, _Average()).add(seconds, num_tokens)
        while len(self._steps) > self._max_names:
            self._steps.popitem(last=False)

    def seconds(self, workflow: str, address: str, kind: Kind) -> float:
        """Of a step never heard of: as others of its kind."""
        known = self._steps.get((workflow, step_path(address), kind))
        return self.usual_s(kind) if known is None else known.seconds

    def usual_s(self, kind: Kind) -> float:
        """Of all steps of a kind."""
        known = self._kinds.get(kind)
        return UNHEARD_S[kind] if known is None else known.seconds

    def tokens(self, workflow: str, address: str) -> float | None:
        """What a step generates; None if it never has."""
        known = self._steps.get((workflow, step_path(address), "generate"))
        return None if known is None else known.tokens


class _Average:
    __slots__ = ("_count", "seconds", "tokens")

    def __init__(self) -> None:
        self.seconds = self.tokens = 0.0
        self._count = 0

    def add(self, seconds: float, tokens: float) -> None:
        self._count = min(self._count + 1, FEW)
        self.seconds += (seconds - self.seconds) / self._count
        self.tokens += (tokens - self.tokens) / self._count


class Timing:
    """When the instances of one run can begin, in seconds from the last `update`.

    `path` is the run's place in the one around it, as in `research[2]/`. Instances are numbered as in `look_ahead`.
    """

    def __init__(self, workflow: str, look_ahead: LookAhead, kinds: list[Kind], path: str = "") -> None:
        self._look_ahead = look_ahead
        self._workflow = workflow
        names: dict[tuple[str, Kind], int] = {}
        each = zip(look_ahead.addresses, kinds, strict=True)
        step_of = [names.setdefault((step_path(path + address), kind), len(names)) for address, kind in each]
        self._steps = list(names)
        self._step_of = np.array(step_of, np.int32)
        self._inner = {look_ahead.addresses[number]: number for number, kind in enumerate(kinds) if kind == "workflow"}
        self._begun_s = np.full(len(step_of), np.nan)
        self._begins = np.full(len(step_of), NEVER, np.int32)
        self.next_end_s: float | None = None
        """Seconds from the last update until the first of what runs is expected to end; None: nothing runs."""

    def update(
        self,
        history: StepHistory,
        now_s: float,
        begun_s: Callable[[str], float | None],
        inner_s: Mapping[str, float],
    ) -> None:
        """`look_ahead` is up to date. `begun_s` says when an instance that runs began, on the clock of `now_s`;
        `inner_s` for how long the run within an instance is expected to go on."""
        means = np.array([history.seconds(self._workflow, step, kind) for step, kind in self._steps])
        takes_s = means[self._step_of]
        running = np.flatnonzero(self._look_ahead.running)
        for number in running[np.isnan(self._begun_s[running])].tolist():
            begun = begun_s(self._look_ahead.addresses[number])
            self._begun_s[number] = now_s if begun is None else begun
        left_s = takes_s[running] - (now_s - self._begun_s[running])
        takes_s[running] = np.maximum(left_s, -OVERDUE * left_s)
        for address, seconds in inner_s.items():
            takes_s[self._inner[address]] = seconds
        self._begins = self._look_ahead.begins(as_ticks(takes_s))
        self.next_end_s = float(takes_s[running].min()) if len(running) else None

    def begins_s(self) -> NDArray[np.float64]:
        """Of each instance; infinite for what will not run any more."""
        return np.where(self._begins < NEVER, self._begins / TICKS_PER_S, np.inf)

    def ends_s(self) -> float:
        """Until the run's outputs can be there."""
        return self._look_ahead.ends() / TICKS_PER_S


def as_ticks(seconds: NDArray[np.float64]) -> NDArray[np.int32]:
    """Whole ticks, at least one.

    >>> as_ticks(np.array([0.0, 0.25, 1e9])).tolist() == [1, 250, MAX_TICKS]
    True
    """
    return np.clip(np.rint(seconds * TICKS_PER_S), 1, MAX_TICKS).astype(np.int32)


def step_path(address: str) -> str:
    """
    >>> step_path("research[2]/draft[ann,1]")
    'research/draft'
    """
    return _IN_BRACKETS.sub("", address) if "/" in address else address.partition("[")[0]
