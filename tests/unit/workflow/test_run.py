"""The run state machine: joins, failures, votes."""

from __future__ import annotations

import pytest

from laban.actors.errors import FailedPrecondition, NotFound
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Overrides, ReadyStep, Run

HEAD = "version: 1\nname: t\nmessages: {q: hi}\nagents: {ann: {prompt: Be Ann, sampling: {seed: 5}}, bob: Be Bob}\n"


def start(body: str, overrides: Overrides = Overrides(), **inputs: object) -> Run:  # noqa: B008 (frozen)
    return Run(parse_yaml(HEAD + body), inputs, overrides)


def addresses(run: Run) -> list[str]:
    return [step.address for step in run.ready()]


def only(run: Run) -> ReadyStep:
    (step,) = run.ready()
    return step


PANEL = "steps:\n- {step: p, count: 3, read: [q]}\n- {step: f, read: [q, p], join: %s}\n"


def test_a_chain_runs_in_order_and_each_step_is_handed_out_once() -> None:
    run = start("steps:\n- {step: b, read: [a]}\n- {step: a, read: [q]}\noutputs: {o: b, fixed: q}\n")
    assert addresses(run) == ["a"]
    assert addresses(run) == []
    run.finish("a", "A")
    ready = only(run)
    assert [ref.key for ref in ready.reads] == ["a"]
    assert run.outputs() == {}
    run.finish("b", "B")
    assert (run.state, run.outputs()) == ("succeeded", {"o": "B", "fixed": "hi"})


def test_an_output_is_the_whole_message_and_the_result_what_was_generated() -> None:
    run = start('steps:\n- {step: a, count: 2, prefill: "No. {{ index }}:"}\noutputs: {o: a, one: "a[2]"}\n')
    for step in run.ready():
        run.finish(step.address, f" is {step.address}")
    assert run.outputs() == {"o": "No. 1: is a[1]\n\nNo. 2: is a[2]", "one": "No. 2: is a[2]"}


def test_results_that_are_not_expected() -> None:
    run = start("steps:\n- {step: a}\n- {step: b, read: [a]}\n")
    with pytest.raises(FailedPrecondition, match="ready"):
        run.finish("a", "")
    run.ready()
    with pytest.raises(FailedPrecondition, match="waiting"):
        run.fail("b", "")
    with pytest.raises(NotFound):
        run.finish("c", "")
    run.finish("a", "")
    with pytest.raises(FailedPrecondition, match="succeeded"):
        run.finish("a", "")
    run.cancel()
    run.finish("b", "late")  # ignored
    assert run.state == "cancelled"
    assert [i.state for i in run.instances] == ["succeeded", "cancelled"]


def test_any_reads_what_is_there() -> None:
    run = start(PANEL % "any")
    assert addresses(run) == ["p[1]", "p[2]", "p[3]"]
    run.finish("p[2]", "two")
    assert [ref.key for ref in only(run).reads] == ["q", "p[2]"]
    run.finish("f", "done")
    assert run.state == "running"  # the others are kept
    run.finish("p[1]", "")
    run.fail("p[3]", "no matter")
    assert run.state == "succeeded"


def test_the_rest_can_be_cancelled() -> None:
    run = start(PANEL % "{at_least: 2, rest: cancel}")
    addresses(run)
    run.finish("p[3]", "3")
    run.finish("p[1]", "1")
    assert run.skipped() == ("p[2]",)
    assert [ref.key for ref in only(run).reads] == ["q", "p[1]", "p[3]"]
    run.finish("p[2]", "late")  # ignored
    run.finish("f", "done")
    assert run.state == "succeeded"


def test_cancelling_the_rest_takes_what_only_it_needed_and_nothing_else() -> None:
    body = (
        "steps:\n- {step: a}\n- {step: slow}\n- {step: mid, read: [slow]}\n- {step: kept}\n"
        "- {step: f, read: [a, mid, kept], join: {at_least: 1, rest: cancel}}\noutputs: {f: f, kept: kept}\n"
    )
    run = start(body)
    addresses(run)
    run.finish("a", "")
    assert run.skipped() == ("slow", "mid")
    assert addresses(run) == ["f"]
    run.finish("f", "")
    assert run.state == "running"
    run.finish("kept", "K")
    assert run.outputs() == {"f": "", "kept": "K"}


def test_a_failure_ends_the_run() -> None:
    run = start(PANEL % "all")
    addresses(run)
    run.finish("p[1]", "")
    run.fail("p[2]", "out of memory")
    assert run.state == "failed"
    assert "p[2]" in run.error
    assert "out of memory" in run.error
    assert [i.state for i in run.instances] == ["succeeded", "failed", "cancelled", "skipped"]
    assert run.ready() == ()


def test_failures_are_tolerated_as_long_as_a_join_can_fire() -> None:
    run = start(PANEL % "{at_least: 2}")
    addresses(run)
    run.fail("p[1]", "x")
    assert run.state == "running"
    run.fail("p[2]", "y")
    assert run.state == "failed"
    assert "y" in run.error


def test_a_lost_branch_is_skipped_and_tolerated_further_on() -> None:
    run = start("steps:\n- {step: a}\n- {step: b, read: [a]}\n- {step: c}\n- {step: f, read: [b, c], join: any}\n")
    addresses(run)
    run.fail("a", "broken")
    assert run.status("b").state == "skipped"
    assert "broken" in run.status("b").reason
    run.finish("c", "C")
    assert [ref.key for ref in only(run).reads] == ["c"]
    run.finish("f", "F")
    assert run.state == "succeeded"


def test_a_failed_step_that_nobody_reads_fails_the_run() -> None:
    run = start("steps:\n- {step: a}\n- {step: b}\n")
    addresses(run)
    run.fail("a", "x")
    assert run.state == "failed"


def test_outputs_have_joins_of_their_own() -> None:
    run = start("steps:\n- {step: p, count: 2}\noutputs: {o: {read: p, join: any, separator: '|'}}\n")
    addresses(run)
    run.fail("p[1]", "x")
    run.finish("p[2]", "two")
    assert run.outputs() == {"o": "two"}


VOTE = """steps:
- {step: p, count: 3, read: [q]}
- {step: v, count: 4, read: [p], vote: {over: p, quorum: 2, ballot: %s}}
- {step: f, read: ["p[winner(v)]"]}
outputs: {best: "p[winner(v)]", f: f}
"""


def vote(run: Run, ballots: list[str | None]) -> None:
    for step in run.ready():
        run.finish(step.address, f"idea {step.address}")
    for step, text in zip(run.ready(), ballots, strict=True):
        if text is None:
            run.fail(step.address, "broken")
        else:
            run.finish(step.address, text)


@pytest.mark.parametrize(
    ("ballots", "which", "winner"),
    [
        (["2", "number 3.", "I say 03", "1"], "first", "p[3]"),
        (["2, not 3", "3, not 2", "3 over 2", "2"], "last", "p[2]"),
        (["none", "", "17", "31"], "first", "p[1]"),
        (["3", "2", "2", "3"], "first", "p[2]"),
        ([None, "3", None, "3"], "first", "p[3]"),
    ],
)
def test_votes(ballots: list[str | None], which: str, winner: str) -> None:
    run = start(VOTE % which)
    vote(run, ballots)
    assert [ref.key for ref in only(run).reads] == [winner]
    assert run.tallies()["v"].winner == winner
    run.finish("f", "F")
    assert run.outputs() == {"best": f"idea {winner}", "f": "F"}


def test_a_vote_without_its_quorum_fails_the_run() -> None:
    run = start(VOTE % "first")
    vote(run, [None, None, None, "1"])
    assert run.state == "failed"


def test_agents_are_voted_for_by_name() -> None:
    run = start(
        "steps:\n- {step: p, for_each: agents}\n- {step: v, read: [p], vote: p}\n- {step: f, read: ['p[winner(v)]']}\n"
    )
    vote(run, ["The best is BOB, not Ann."])
    assert [ref.key for ref in only(run).reads] == ["p[bob]"]


def test_another_step_of_the_winner_waits_for_it() -> None:
    run = start(
        "steps:\n- {step: p, count: 2}\n- {step: r, count: 2, read: ['p[self]']}\n- {step: v, read: [p], vote: p}\n"
        "- {step: f, read: ['r[winner(v)]']}\n"
    )
    for step in run.ready():
        run.finish(step.address, "x")
    assert addresses(run) == ["r[1]", "r[2]", "v"]
    run.finish("v", "2")
    assert addresses(run) == []
    run.finish("r[1]", "")
    run.finish("r[2]", "")
    assert [ref.key for ref in only(run).reads] == ["r[2]"]


def test_external_steps_wait_to_be_completed() -> None:
    run = start("steps:\n- {step: human, external: {}, read: [q]}\n- {step: f, read: [human]}\n")
    step = only(run)
    assert (step.kind, step.role) == ("external", "user")
    run.finish("human", "yes")
    assert only(run).kind == "generate"
