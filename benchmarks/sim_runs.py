"""One flow as it runs, and what it tells beforehand: which messages it reads next, in how many steps, and when."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from sim_flows import Flow, Step

from laban.kvstore.uses import Use

FIRST_TOKEN_S = 0.008
"""What a token is taken to take before any has been seen."""
WAITING, READY, RUNNING, DONE, ABSENT = range(5)


class Durations:
    """How long steps of each kind take, and what comes before them: moving averages."""

    def __init__(self, weight: float = 0.2) -> None:
        self._weight = weight
        self._mean_s: dict[str, float] = {}

    def observe(self, kind: str, seconds: float) -> None:
        before = self._mean_s.get(kind)
        self._mean_s[kind] = seconds if before is None else before + self._weight * (seconds - before)

    def expect(self, kind: str, first_s: float = 1.0) -> float:
        """`first_s` as long as none has been seen."""
        return self._mean_s.get(kind, first_s)


class Run:
    """Steps become ready, run, and are done, or turn out absent. Steps come after those that they wait for."""

    def __init__(self, flow: Flow, rank: int) -> None:
        self.flow = flow
        self.rank = rank
        self.states = [WAITING] * len(flow.steps)
        self.began_s = [0.0] * len(flow.steps)  # of a ready step: since when
        self.num_open = len(flow.steps)
        self._over: set[str] = set()
        self._next: list[list[int]] = [[] for _ in flow.steps]
        for number, step in enumerate(flow.steps):
            for before in step.after:
                self._next[before].append(number)

    def start(self) -> list[int]:
        return [number for number, step in enumerate(self.flow.steps) if not step.after and self._settle(number)]

    def finish(self, number: int) -> list[int]:
        """The steps that are ready now that this one is done."""
        return list(self._end(number, DONE))

    def successors(self, number: int) -> dict[str, int]:
        """What the steps right after this one read, and the tokens of each."""
        steps = self.flow.steps
        return {message.name: message.num_tokens for later in self._next[number] for message in steps[later].reads}

    @property
    def ended(self) -> bool:
        return self.num_open == 0

    def _end(self, number: int, state: int) -> Iterator[int]:
        self.states[number] = state
        self.num_open -= 1
        for later in self._next[number]:
            if self.states[later] == WAITING and self._settle(later):
                yield later
            elif self.states[later] == WAITING and self._is_lost(later):
                yield from self._end(later, ABSENT)

    def _settle(self, number: int) -> bool:
        step = self.flow.steps[number]
        before = [self.states[each] for each in step.after]
        if step.join == "all":
            may = all(state == DONE for state in before)
        elif step.join == "any":
            may = DONE in before
        else:
            may = DONE in before and all(state >= DONE for state in before)
        if may and step.runs:
            self.states[number] = READY
            return True
        return False

    def _is_lost(self, number: int) -> bool:
        step = self.flow.steps[number]
        before = [self.states[each] for each in step.after]
        if step.join == "all":
            return ABSENT in before or (not step.runs and all(state == DONE for state in before))
        if DONE in before:
            return not step.runs and (step.join == "any" or all(state >= DONE for state in before))
        return all(state == ABSENT for state in before)

    def uses(self, now_s: float, durations: Durations) -> dict[str, Use]:
        """The nearest read of each message by a step that has not begun, dated on the clock of `now_s`."""
        if not self.flow.declared:
            return {}
        states, began_s = self.states, self.began_s
        ends: list[tuple[int, float, float]] = []  # steps-to-execution, time and likelihood of each step's end
        found: dict[str, tuple[float, int, float, bool]] = {}
        for number, step in enumerate(self.flow.steps):
            state = states[number]
            if state >= DONE:
                ends.append((-1, now_s, 1.0) if state == DONE else (0, now_s, 0.0))
                continue
            takes_s = durations.expect(step.kind, step.output_tokens * FIRST_TOKEN_S)
            if state == RUNNING:
                ends.append((0, max(now_s, began_s[number] + takes_s), 1.0))
                continue
            if state == READY:
                distance, begin_s, likelihood = 0, max(now_s, began_s[number]), 1.0
            else:
                distance, begin_s, likelihood = self._ahead(step, ends, now_s, durations)
            ends.append((distance, begin_s + takes_s, likelihood))
            if likelihood > 0:
                for message in step.reads:
                    known = found.get(message.name)
                    if known is None:
                        found[message.name] = (begin_s, distance, likelihood, message.fixed)
                    elif begin_s < known[0]:
                        found[message.name] = (begin_s, min(distance, known[1]), likelihood, message.fixed)
        return {
            name: Use(distance, begin_s, likelihood, fixed, self.rank)
            for name, (begin_s, distance, likelihood, fixed) in found.items()
        }

    def over(self) -> list[str]:
        """Messages of its own that no step will read any more, each once."""
        if not self.flow.declared:
            return []
        there: dict[str, None] = {}
        read: set[str] = set()
        for state, step in zip(self.states, self.flow.steps, strict=True):
            if state <= RUNNING:
                read.update(message.name for message in step.reads)
            elif state == DONE:
                there.update((message.name, None) for message in (*step.reads, step.output) if message.is_own)
        found = [name for name in there if name not in read and name not in self._over]
        self._over.update(found)
        return found

    def _ahead(
        self, step: Step, ends: list[tuple[int, float, float]], now_s: float, durations: Durations
    ) -> tuple[int, float, float]:
        before = [ends[each] for each in step.after if ends[each][2] > 0]
        if not before or (step.join == "all" and len(before) < len(step.after)):
            return 0, now_s, 0.0
        wait_s = durations.expect(f"wait {step.kind}") if step.wait_s else 0.0
        if step.join == "all":
            last = max(before)
            return last[0] + 1, max(each[1] for each in before) + wait_s, min(b[2] for b in before) * step.likelihood
        if step.join == "any":
            begin_s = min(each[1] for each in before)
        else:  # of rounds that may follow, and of branches, each counts for as much as it is likely
            before.sort(key=lambda each: each[1])
            begin_s = before[0][1]
            for (_, sooner_s, _), (_, later_s, chance) in pairwise(before):
                begin_s += chance * (later_s - sooner_s)
        likelihood = min(1.0, sum(each[2] for each in before)) * step.likelihood
        return min(before)[0] + 1, begin_s + wait_s, likelihood
