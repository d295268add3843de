"""What an instance is expected to read: on examples, and on random workflows against what it then reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from random_workflows import workflows

from laban.cluster.workflow.parse import parse_dict, parse_yaml
from laban.cluster.workflow.reading import Expectation
from laban.cluster.workflow.run import Run

pytestmark = pytest.mark.slow

HEAD = "version: 1\nname: w\nmessages: {m: hello, n: more}\nagents: {ann: Be Ann, bob: Be Bob, cleo: Be Cleo}\n"
FAN = """
steps:
  - {step: part, for_each: 3, read: [m]}
  - {step: all_of, read: [m, part, n]}
  - {step: loose, fidelity: direct, read: [m, part, n]}
  - {step: some, read: [part], join: {at_least: 2}}
"""
VOTE = """
steps:
  - {step: idea, for_each: agents, read: [m]}
  - {step: judge, vote: idea, read: [m, idea]}
  - {step: refine, read: [m, "idea[winner(judge)]", judge]}
"""
ROUNDS = """
steps:
  - loop: {until: act.text == "ok", max: 3, on_max: continue}
    steps: [{step: act, read: [m, "act[previous]"]}]
  - {step: wrap, read: [m, "act[last]"]}
"""
ORDER = """
steps:
  - {step: note, for_each: agents, read: [m]}
  - {step: rank, read: [m]}
  - {step: wrap, read: [m, {read: note, order: rank.text}], fidelity: direct}
"""


def begun(text: str, **texts: str) -> Run:
    run = Run(parse_yaml(HEAD + text), {})
    finish(run, **texts)
    return run


def finish(run: Run, **texts: str) -> None:
    """By address, brackets as underscores."""
    run.ready()
    for name, text in texts.items():
        step, *member = name.split("__")
        run.finish(step + (f"[{','.join(member)}]" if member else ""), text)
        run.ready()


def certain(expected: Expectation) -> str:
    return " ".join(ref.key for ref in expected.advance())


def possible(expected: Expectation) -> dict[str, tuple[float, bool]]:
    return {ref.key: (round(share, 2), is_next) for ref, share, is_next in expected.possible()}


def test_a_view_is_known_up_to_the_first_message_that_is_not_there() -> None:
    run = begun(FAN)
    expected = run.expectation("all_of")
    assert certain(expected) == "m"
    finish(run, part__2="b")
    assert certain(expected) == ""
    assert possible(expected) == {}  # under which view it will stand nobody knows
    finish(run, part__1="a")
    assert certain(expected) == "part[1] part[2]"
    assert not expected.whole
    finish(run, part__3="c")
    assert certain(expected) == "part[3] n"
    assert expected.whole


def test_direct_reads_are_known_wherever_they_stand() -> None:
    run = begun(FAN, part__2="b")
    expected = run.expectation("loose")
    assert certain(expected) == "m"
    assert possible(expected) == {"part[2]": (1.0, False), "n": (1.0, False)}


def test_what_failed_is_passed_over_once_that_is_known() -> None:
    run = begun(FAN.replace("read: [m]}", "read: [m], on_error: skip}"))
    expected = run.expectation("all_of")
    run.fail("part[1]", "broken")
    finish(run, part__2="b")
    assert certain(expected) == "m part[2]"


def test_any_candidate_may_win_until_the_vote_is_counted() -> None:
    run = begun(VOTE, idea__ann="a", idea__bob="b")
    expected = run.expectation("refine")
    assert certain(expected) == "m"
    assert possible(expected) == {"idea[ann]": (0.33, True), "idea[bob]": (0.33, True)}
    finish(run, idea__cleo="c", judge="bob")
    assert certain(expected) == "idea[bob] judge"


def test_the_last_round_is_known_when_the_loop_has_ended() -> None:
    run = begun(ROUNDS, act__1="no")
    expected = run.expectation("wrap")
    assert certain(expected) == "m"
    assert possible(expected) == {"act[1]": (0.33, True)}
    finish(run, act__2="ok")
    assert certain(expected) == "act[2]"


def test_an_order_is_known_when_what_it_looks_at_is_there() -> None:
    run = begun(ORDER, note__ann="a", note__bob="b", note__cleo="c")
    expected = run.expectation("wrap")
    assert certain(expected) == "m"
    assert possible(expected) == {"note[ann]": (1.0, True), "note[bob]": (1.0, True), "note[cleo]": (1.0, True)}
    finish(run, rank="cleo")
    assert certain(expected) == "note[cleo]"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workflows(), st.randoms(use_true_random=False))
def test_what_is_certain_is_what_is_read(data: dict[str, Any], random: Any) -> None:
    run = Run(parse_dict(data), {})
    expected = {address: run.expectation(address) for address in run.graph.nodes}
    known: dict[str, list[str]] = {address: [] for address in run.graph.nodes}
    running: list[str] = []
    for _ in range(1000):
        for step in run.ready():
            running.append(step.address)
            if step.address not in known or step.problem:
                continue
            mine = expected[step.address]
            known[step.address] += [ref.key for ref in mine.advance()]
            read = [ref.key for ref in step.reads]
            assert read[: len(known[step.address])] == known[step.address]
            if mine.whole:
                event("whole")
                assert read == known[step.address]
            else:
                assert run.graph.nodes[step.address].required < len(run.graph.nodes[step.address].waits)
                maybe = {ref.key for ref, _, _ in mine.possible()}
                assert {r.key for r in step.reads[len(known[step.address]) :] if r.fidelity == "direct"} <= maybe
        running = [address for address in running if run.status(address).state == "running"]
        if not running or run.state != "running":
            break
        address = running.pop(random.randrange(len(running)))
        if random.random() < 0.15 or run.unfit(address, "word: ok\nscore: 3"):
            run.fail(address, "broken")
        else:
            run.finish(address, "word: ok\nscore: 3")
        if random.random() < 0.5:
            for waiting in known:
                if run.status(waiting).state == "waiting":
                    known[waiting] += [ref.key for ref in expected[waiting].advance()]
