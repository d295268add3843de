"""Look-ahead on random workflows: against a search over the runs that may still be, and against its definition."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from random_graphs import Played, built, independent, part_way, workflows

from laban.cluster.workflow.lookahead import Likelihoods, LookAhead, NextUse
from laban.cluster.workflow.lookahead_reference import INF, Reference

pytestmark = pytest.mark.slow

MAX_UNDECIDED = 8
relaxed = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def soonest(played: Played, order: list[str]) -> tuple[dict[str, int], bool]:
    """Steps to execution by running on in every way that gates can decide, all that runs ending at once each turn; and
    whether every such run ends well."""
    graph, now = played.graph, played.progress
    open_gates = [unit for unit, gate in graph.gates.items() if unit not in now.outcomes and gate.condition is not None]
    assume(len(open_gates) <= MAX_UNDECIDED)
    found: dict[str, int] = {}
    well = True
    for choice in product((False, True), repeat=len(open_gates)):
        other = Played(graph, {**played.decisions, **dict(zip(open_gates, choice, strict=True))})
        for address in order:
            other.progress.take_ready()
            other.finish(address)
        turn = 0
        running = [address for address, state in other.progress.states.items() if state in ("ready", "running")]
        while running and other.progress.state == "running":
            found |= {address: turn for address in running if turn < found.get(address, INF)}
            other.progress.take_ready()
            for address in running:
                other.finish(address)
            running = [address for address, state in other.progress.states.items() if state == "ready"]
            turn += 1
        well = well and other.progress.state == "succeeded"
    return found, well


@relaxed
@given(workflows(), st.integers(0, 8), st.randoms(use_true_random=False))
def test_steps_are_those_of_the_soonest_run(data: dict[str, Any], num_done: int, random: Any) -> None:
    graph = built(data)
    played, order = part_way(graph, random, num_done)
    expected, well = soonest(played, order)
    ahead = LookAhead(graph)
    ahead.update(played.progress)
    found = ahead.steps_to_execution()
    assert found.keys() >= expected.keys()
    cancels = any(node.cancels_rest for node in graph.nodes.values())
    late = {address for address in expected if found[address] > expected[address]}
    assert not late or cancels  # what a join cancels may end a loop's round sooner
    if well and not cancels and not late:
        clean = independent(graph, played.progress)
        event(f"gates undecided: {min(3, len(graph.gates.keys() - played.progress.outcomes.keys()))}")
        event("some instance hangs on a gate in two ways" if expected.keys() - clean else "all exact")
        assert {a: s for a, s in found.items() if a in clean} == {a: s for a, s in expected.items() if a in clean}


@relaxed
@given(workflows(), st.integers(0, 12), st.randoms(use_true_random=False))
def test_the_compiled_pass_is_the_definition(data: dict[str, Any], num_done: int, random: Any) -> None:
    graph = built(data)
    likelihoods = Likelihoods()
    likelihoods.observe("random", {unit: random.random() < 0.5 for unit in graph.gates})
    ahead = LookAhead(graph, likelihoods)
    played, _ = part_way(graph, random, 0)
    running: list[str] = []
    for _ in range(num_done + 1):
        ahead.update(played.progress)
        plain = Reference(graph, played.progress, likelihoods)
        for mine, theirs in ((ahead._run, plain.run), (ahead._gone, plain.gone), (ahead._lost, plain.lost)):
            assert {u: int(mine[row]) for u, row in ahead._row_of.items()} == {u: theirs(u) for u in graph.order}
        for unit, row in ahead._row_of.items():
            assert ahead._likely[row] == pytest.approx(plain.likely(unit))
        running = [a for a in (*running, *played.progress.take_ready()) if played.progress.states[a] == "running"]
        if not running:
            break
        address = random.choice(sorted(running))
        if random.random() < 0.15:
            played.progress.fail(address, "broken")
        else:
            played.finish(address)


@relaxed
@given(workflows(), st.integers(0, 8), st.randoms(use_true_random=False))
def test_uses_are_the_soonest_of_all_readers(data: dict[str, Any], num_done: int, random: Any) -> None:
    graph = built(data)
    played, _ = part_way(graph, random, num_done)
    ahead = LookAhead(graph)
    ahead.update(played.progress)
    steps = ahead.steps_to_execution()
    there = {address for address, outcome in played.progress.outcomes.items() if outcome == "there"}
    uses: dict[str, list[NextUse]] = {}
    for address, node in graph.nodes.items():
        if address in steps and played.progress.states[address] != "running":
            for key in {key for source in node.sources for key in source.keys}:
                if key in graph.fixed or key.startswith("agent:") or key in there or key in steps:
                    likelihood = float(ahead._likely[ahead._row_of[address]])
                    uses.setdefault(key, []).append(NextUse(steps[address], address, likelihood))
    assert {key: ahead.readers(key) for key in (*uses, "nobody")} == {
        key: tuple(sorted(found, key=lambda use: (use.steps, -use.likelihood)))
        for key, found in (*uses.items(), ("nobody", []))
    }
    assert ahead.next_uses() == {key: ahead.readers(key)[0] for key in uses}
    assert all(ahead.next_use(key) == use for key, use in ahead.next_uses().items())
    assert ahead.next_use("nobody") is None
