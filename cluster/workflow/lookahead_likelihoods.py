"""How likely a branch is taken or a loop ends, learned from the runs before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

MAX_NAMES = 10_000


class Likelihoods:
    """Counts, of each decision of each workflow, how often it was asked and how often it held.

    Decisions go without round and member: `until(loop1)[3]` counts for `until(loop1)`, `when(step[ann,2])` for
    `when(step)`. Of more than `max_names` the one heard of the longest ago is forgotten.
    """

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._counts: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()  # held, asked

    def observe(self, workflow_name: str, decisions: Mapping[str, bool]) -> None:
        """What the gates of one run, by unit, decided."""
        for unit, holds in decisions.items():
            key = (workflow_name, decision_name(unit))
            held, asked = self._counts.get(key, (0, 0))
            self._counts[key] = (held + holds, asked + 1)
            self._counts.move_to_end(key)
        while len(self._counts) > self._max_names:
            self._counts.popitem(last=False)

    def probability(self, workflow_name: str, unit: str) -> float:
        """That the gate `unit` holds once it is asked: 1/2 for one never heard of."""
        held, asked = self._counts.get((workflow_name, decision_name(unit)), (0, 0))
        return (held + 1) / (asked + 2)


def decision_name(unit: str) -> str:
    """A gate's name without its round and its member."""
    name = unit.partition("[")[0]
    return name if name.endswith(")") else f"{name})"
