"""What a source of the step graph stands for at this moment of a run: which messages, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from laban.cluster.workflow.children import OUTSIDE, Given
from laban.cluster.workflow.expressions import ExpressionProblem
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
        return [self._ref(key, source) for key in self.keys(source)]

    def _ref(self, key: str, source: Source) -> ReadRef:
        name, part = self._named(key), (source.begin, source.end)
        return ReadRef(name, source.fidelity, *part, source.index, source.recompute_share, source.tolerance)

    def stand_ins(self, source: Source) -> tuple[Given, ...]:
        """The messages as a run within is given them."""
        return tuple(Given(OUTSIDE + self._named(key), self._facts.message(key)) for key in self.keys(source))

    def text_of(self, output: OutputNode) -> str:
        return output.separator.join(self._facts.message(key) for key in self.keys(output.source))

    def keys(self, source: Source) -> list[str]:
        """The messages that are there, in order."""
        keys = self._there(source)
        if source.order is None:
            return keys
        members = dict(zip(source.keys, source.members, strict=True))
        return ordered(keys, members, self._facts.evaluate(source.order))

    def _settled(self, source: Source) -> bool:
        """Whether what a source stands for cannot change any more."""
        waits = source.waits if source.order is None else (*source.waits, *source.order.waits)
        return all(unit in self._progress.outcomes for unit in waits)

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


class Expectation:
    """What one instance will read, as it becomes known while the run goes on."""

    def __init__(self, reading: Reading, sources: Sequence[Source]) -> None:
        self._reading = reading
        self._sources = sources
        self._source = self._key = 0  # what comes before these is certain, and was given out

    @property
    def whole(self) -> bool:
        """Whether all that will be read was given out."""
        return self._source == len(self._sources)

    def advance(self) -> list[ReadRef]:
        """What has become certain since the last call: the view goes on with these, whatever happens."""
        found: list[ReadRef] = []
        while not self.whole:
            source = self._sources[self._source]
            if _is_list(source):
                found += self._next_of(source)
                if self._key < len(source.keys):
                    break
            elif self._reading._settled(source):
                try:
                    found += self._reading.refs(source)
                except ExpressionProblem:  # the instance will fail
                    break
            else:
                break
            self._source, self._key = self._source + 1, 0
        return found

    def possible(self) -> Iterator[tuple[ReadRef, float, bool]]:
        """What is there and may be read beyond that: how likely, if the instance runs; and whether it could be what
        the view goes on with. Of exact reads only the latter, since nobody knows under which view others will stand."""
        begin = self._key
        for number in range(self._source, len(self._sources)):
            source = self._sources[number]
            is_next = number == self._source and not _is_list(source)
            if source.fidelity != "exact" or is_next:
                yield from self._possible_of(source, begin, is_next)
            begin = 0

    def _next_of(self, source: Source) -> Iterator[ReadRef]:
        reading = self._reading
        texts, outcomes = reading._facts.texts, reading._progress.outcomes
        while self._key < len(source.keys):
            key = source.keys[self._key]
            if key in texts:
                yield reading._ref(key, source)
            elif key not in outcomes:
                return
            self._key += 1

    def _possible_of(self, source: Source, begin: int, is_next: bool) -> Iterator[tuple[ReadRef, float, bool]]:
        reading = self._reading
        if source.fixed:
            yield from ((reading._ref(key, source), 1.0, is_next) for key in reading._there(source))
            return
        texts, outcomes = reading._facts.texts, reading._progress.outcomes
        there = [key for key in source.keys[begin:] if key in texts]
        share = 1.0
        if source.vote is not None or source.num_rounds:  # of these some will be read
            num_read = source.num_chosen or len(source.keys) // source.num_rounds
            num_open = sum(key not in texts and key not in outcomes for key in source.keys)
            there = there[-num_read:] if source.num_rounds else there
            share = min(1.0, num_read / max(1, len(there) + num_open))
        yield from ((reading._ref(key, source), share, is_next) for key in there)


def _is_list(source: Source) -> bool:
    """Whether a source's keys are read in their order, as many as there are."""
    return not source.fixed and source.vote is None and not source.num_rounds and source.order is None
