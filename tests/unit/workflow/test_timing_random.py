"""Times to execution on random workflows: against a search over the runs that may still be, and against a plain one."""

from __future__ import annotations

import heapq
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from random_graphs import Played, built, independent, part_way, workflows
from random_workflows import workflows as any_workflows

from laban.cluster.workflow.graph import StepGraph
from laban.cluster.workflow.lookahead import NEVER, Likelihoods, LookAhead
from laban.cluster.workflow.lookahead_reference import Reference
from laban.cluster.workflow.parse import parse_dict
from laban.cluster.workflow.run import Run

pytestmark = pytest.mark.slow

MAX_UNDECIDED = 8
relaxed = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def begins(ahead: LookAhead, ticks: dict[str, int]) -> dict[str, int]:
    """Of those that may still run."""
    found = ahead.begins(np.array([ticks[address] for address in ahead.addresses], np.int32)).tolist()
    return {address: tick for address, tick in zip(ahead.addresses, found, strict=True) if tick < NEVER}


def soonest(played: Played, order: list[str], ticks: dict[str, int]) -> tuple[dict[str, int], int, bool]:
    """When each can begin at the soonest, and the run end, over all that gates can decide; and whether all end well."""
    graph, now = played.graph, played.progress
    open_gates = [unit for unit, gate in graph.gates.items() if unit not in now.outcomes and gate.condition is not None]
    assume(len(open_gates) <= MAX_UNDECIDED)
    found: dict[str, int] = {}
    well, end = True, NEVER
    for choice in product((False, True), repeat=len(open_gates)):
        other = Played(graph, {**played.decisions, **dict(zip(open_gates, choice, strict=True))})
        for address in order:
            other.progress.take_ready()
            other.finish(address)
        other.progress.take_ready()
        events = [(ticks[a], a) for a, state in other.progress.states.items() if state == "running"]
        found |= {address: 0 for _, address in events}
        heapq.heapify(events)
        over = _outputs_there(other) if other.progress.state == "running" else 0
        at = 0
        while events and other.progress.state == "running":
            at, address = heapq.heappop(events)
            other.finish(address)
            while events and events[0][0] == at:  # what ends at once does so before anything begins
                other.finish(heapq.heappop(events)[1])
            if over is None:
                over = at if _outputs_there(other) is not None else None
            for began in other.progress.take_ready():
                found[began] = min(found.get(began, NEVER), at)
                heapq.heappush(events, (at + ticks[began], began))
        well = well and other.progress.state == "succeeded"
        end = min(end, at if over is None else over)
    return found, end, well


def _outputs_there(played: Played) -> int | None:
    return 0 if all(o.unit in played.progress.outcomes for o in played.graph.outputs.values()) else None


def drawn_ticks(graph: StepGraph, random: Any) -> dict[str, int]:
    return {address: random.choice([1, 2, 3, 7, 20, 1000]) for address in graph.nodes}


@relaxed
@given(workflows(), st.integers(0, 8), st.randoms(use_true_random=False))
def test_times_are_those_of_the_soonest_run(data: dict[str, Any], num_done: int, random: Any) -> None:
    graph = built(data)
    played, order = part_way(graph, random, num_done)
    played.progress.take_ready()
    ticks = drawn_ticks(graph, random)
    expected, end, well = soonest(played, order, ticks)
    ahead = LookAhead(graph)
    ahead.update(played.progress)
    found = begins(ahead, ticks)
    assert found.keys() >= expected.keys()
    cancels = any(node.cancels_rest for node in graph.nodes.values())
    late = {address for address in expected if found[address] > expected[address]}
    assert not late or cancels
    if well and not cancels:
        clean = independent(graph, played.progress)
        event("some instance hangs on a gate in two ways" if expected.keys() - clean else "all exact")
        assert {a: t for a, t in found.items() if a in clean} == {a: t for a, t in expected.items() if a in clean}
        if played.progress.state == "running" and not graph.gates:  # no output is absent in the end
            event("the end is compared")
            assert ahead.ends() == end


@relaxed
@given(any_workflows(), st.integers(0, 12), st.randoms(use_true_random=False))
def test_the_compiled_pass_is_the_plain_one(data: dict[str, Any], num_done: int, random: Any) -> None:
    run = Run(parse_dict(data), {})
    ahead = LookAhead(run.graph)
    running: list[str] = []
    for _ in range(num_done + 1):
        running += [step.address for step in run.ready() if "/" not in step.address]
        running = [address for address in running if run.status(address).state == "running"]
        ahead.update(run._progress)
        ticks = drawn_ticks(run.graph, random)
        plain = Reference(run.graph, run._progress, Likelihoods(), ticks)
        expected = {
            address: plain.run(address) - ticks[address] + 1
            for address in run.graph.nodes
            if address not in run._progress.outcomes and plain.run(address) < NEVER
        }
        assert begins(ahead, ticks) == expected
        assert [ahead.addresses[n] for n in np.flatnonzero(ahead.running)] == [
            address for address, state in run._progress.states.items() if state == "running"
        ]
        steps = {a: s for a, s in zip(ahead.addresses, ahead.steps().tolist(), strict=True) if s < NEVER}
        assert steps == ahead.steps_to_execution()
        if not running or run.state != "running":
            break
        address = running.pop(random.randrange(len(running)))
        if random.random() < 0.15 or run.unfit(address, "word: ok\nscore: 3"):
            run.fail(address, "broken")
        else:
            run.finish(address, "word: ok\nscore: 3")


def test_times_too_long_to_count_are_far_off_but_not_never() -> None:
    steps = [{"step": f"s{n}", "read": [f"s{n - 1}"] if n else []} for n in range(40)]
    run = Run(parse_dict({"version": 1, "name": "long", "steps": steps}), {})
    ahead = run.look_ahead()
    found = begins(ahead, dict.fromkeys(run.graph.nodes, 1 << 26))
    assert found["s1"] == 1 << 26
    assert len(found) == 40
    assert max(found.values()) < NEVER
