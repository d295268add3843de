"""What a source of the step graph stands for at this moment of a run: which messages, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from laban.cluster.workflow.children import OUTSIDE, Given
from laban.cluster.workflow.facts import Facts, latest_of_each, ordered
from laban.cluster.workflow.graph import OutputNode, Source, StepGraph, winner_keys
from laban.cluster.workflow.progress import Progress
from laban.cluster.workflow.states import ReadRef


class Reading:
    """`given` stand in the place of fixed messages; `named` says what a message is read as."""

    def __init__(
        self,
        graph: StepGraph,
        facts: Facts,
        progress: Progress,
        given: Mapping[str, Sequence[Given]],
        named: Callable[[str], str],
    ) -> None:
        self._graph = graph
        self._facts = facts
        self._progress = progress
        self._given = given
        self._named = named

    def refs(self, source: Source) -> list[ReadRef]:
        """Raises ExpressionProblem for an order that cannot be evaluated, as all of these do."""
        keys = (self._named(key) for key in self.keys(source))
        return [ReadRef(key, source.fidelity, source.begin, source.end) for key in keys]

    def stand_ins(self, source: Source) -> tuple[Given, ...]:
        """The messages as a run within is given them."""
        return tuple(Given(OUTSIDE + self._named(key), self._facts.text(key)) for key in self.keys(source))

    def text_of(self, output: OutputNode) -> str:
        return output.separator.join(self._facts.text(key) for key in self.keys(output.source))

    def keys(self, source: Source) -> list[str]:
        """The messages that are there, in order."""
        keys = self._there(source)
        if source.order is None:
            return keys
        members = dict(zip(source.keys, source.members, strict=True))
        return ordered(keys, members, self._facts.evaluate(source.order))

    def _there(self, source: Source) -> list[str]:
        if source.fixed:
            names = ([one.key for one in self._given[k]] if k in self._given else [k] for k in source.keys)
            return [key for keys in names for key in keys]
        texts = self._facts.texts
        if source.num_rounds:
            latest = latest_of_each(source.keys, source.num_rounds, texts.__contains__)
            return [key for key in latest if key is not None]
        if source.vote is None:
            return [key for key in source.keys if key in texts]
        vote = self._graph.votes[source.vote]
        tally = self._progress.tallies.get(vote.unit)
        if tally is None:  # a join fired without the vote
            return []
        return [key for key in winner_keys(source, vote, tally.winner) if key in texts]
