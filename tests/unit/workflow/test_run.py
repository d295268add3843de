"""The run state machine: joins, failures, votes, overrides."""

from __future__ import annotations

import pytest

from laban.actors.errors import FailedPrecondition, NotFound
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Overrides, ReadyStep, Run
from laban.cluster.workflow.sampling import instance_seed

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


FIDELITY = """fidelity: direct
steps:
- {step: a, read: [q]}
- {step: f, fidelity: exact, read: [q, {read: a, fidelity: %s}]}
"""


@pytest.mark.parametrize(
    ("level", "override", "expected"),
    [("direct", None, "mixed"), ("exact", None, "exact"), ("exact", "direct", "direct"), ("direct", "exact", "exact")],
)
def test_fidelity_of_workflow_step_read_and_caller(level: str, override: str | None, expected: str) -> None:
    run = start(FIDELITY % level, Overrides(fidelity=override))
    assert only(run).fidelity == (override or "direct")
    run.finish("a", "")
    assert only(run).fidelity == expected


SAMPLING = """sampling: {max_tokens: 9, temperature: 0.5, seed: 3}
steps:
- {step: a, for_each: agents, sampling: {max_tokens: 7, stop: x}}
- {step: b, agent: ann}
- {step: c}
"""


def test_sampling_of_step_over_agent_over_workflow() -> None:
    run = start(SAMPLING)
    specs = {step.address: step.sampling for step in run.ready()}
    assert (specs["a[ann]"].max_tokens, specs["a[ann]"].stop, specs["a[ann]"].temperature) == (7, ("x",), 0.5)
    assert specs["b"].max_tokens == 9
    assert run.seed == 3
    assert specs["c"].seed is None  # the run's seed decides
    assert specs["b"].seed == 5
    assert specs["a[ann]"].seed == instance_seed(5, "a[ann]")


def test_overrides_of_a_step_and_an_instance() -> None:
    changes = {("a", "max_tokens"): "3", ("a[bob]", "max_tokens"): 4, ("c", "temperature"): "1.5"}
    run = start(SAMPLING, Overrides(seed=8, set=changes))
    specs = {step.address: step.sampling for step in run.ready()}
    assert [specs[a].max_tokens for a in ("a[ann]", "a[bob]", "b")] == [3, 4, 9]
    assert specs["c"].temperature == 1.5
    assert (run.seed, specs["b"].seed) == (8, None)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (Overrides(fidelity="fast"), "not a fidelity"),
        (Overrides(fidelity="auto"), "reserved"),
        (Overrides(seed=-1), "at least 0"),
        (Overrides(set={("answr", "max_tokens"): 1}), "unknown step or address"),
        (Overrides(set={("a[cleo]", "max_tokens"): 1}), "unknown step or address"),
        (Overrides(set={("a", "max_token"): 1}), "did you mean 'max_tokens'"),
        (Overrides(set={("a", "max_tokens"): "many"}), "whole number"),
        (Overrides(set={("a", "temperature"): "nan"}), "finite"),
        (Overrides(set={("a", "temperature"): float("inf")}), "finite"),
        (Overrides(set={("a", "top_p"): 0}), "more than 0"),
    ],
)
def test_wrong_overrides(overrides: Overrides, words: str) -> None:
    with pytest.raises(WorkflowErrors, match=words):
        start(SAMPLING, overrides)


INPUTS = """inputs:
  who: {}
  n: {type: integer, default: 2}
  docs: {type: list, default: [a, b]}
  b: {type: boolean, default: true}
steps: [{step: s, agent: bob, read: [m], name: "{{ who }}", prefill: "{{ n }}{{ agent }}"}]
"""


def test_inputs_fill_templates() -> None:
    text = HEAD.replace("q: hi", "m: \"{{ who }} {{ n + 1 }} {{ docs | join('+') }}{% if b %}!{% endif %}\"") + INPUTS
    run = Run(parse_yaml(text), {"who": "Zoe", "n": "4", "docs": ["x", "y"]})
    assert run.messages["m"].text == "Zoe 5 x+y!"
    assert run.messages["agent:bob"].text == "Be Bob"
    step = only(run)
    assert (step.name, step.prefill) == ("Zoe", "4bob")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "not given"),
        ({"who": 3}, "expected text"),
        ({"who": "x", "n": "three"}, "whole number"),
        ({"who": "x", "n": 2.5}, "whole number"),
        ({"who": "x", "docs": "a"}, "a list"),
        ({"who": "x", "docs": [["a"]]}, "a list"),
        ({"who": "x", "b": "maybe"}, "true or false"),
        ({"who": "x", "whom": "y"}, "did you mean 'who'"),
    ],
)
def test_wrong_inputs(inputs: dict[str, object], words: str) -> None:
    with pytest.raises(WorkflowErrors, match=words):
        Run(parse_yaml(HEAD.replace("q: hi", "m: hi") + INPUTS), inputs)


def test_a_private_message_that_would_leak_stops_the_run() -> None:
    body = "steps:\n- {step: a, read: [secret]}\n- {step: f, read: [{read: a, fidelity: %s}]}\n"
    text = HEAD.replace("{q: hi}", "{secret: {text: s, private: true}}") + body
    Run(parse_yaml(text % "exact"), {})
    with pytest.raises(WorkflowErrors, match="'f' would read the private 'secret' through the encoding of 'a'"):
        Run(parse_yaml(text % "direct"), {})
    with pytest.raises(WorkflowErrors, match="private"):
        Run(parse_yaml(text % "exact"), {}, Overrides(fidelity="direct"))
