"""Loops and branches: what runs, what it reads, and how the run ends."""

from __future__ import annotations

import pytest
from workflow_play import play


def loop(head: str, *steps: str, after: str = "") -> str:
    inside = "".join(f"  - {step}\n" for step in steps)
    return f"steps:\n- loop: {head}\n  steps:\n{inside}{after}"


REVIEW = loop(
    '{until: review.verdict == "ok", max: 3, on_max: %s}',
    '{step: act, agent: ann, read: [q, "tests[previous]", "review[previous]"]}',
    "{step: tests, external: {args: {code: act.code, round: round}, on_error: message}}",
    "{step: review, agent: bob, read: [act, tests], values: [verdict]}",
    after='- {step: final, read: [act, "review[all]"]}\n',
)
BAD, OK = "Verdict: bad", "Verdict: ok"


def test_a_loop_ends_when_its_condition_holds() -> None:
    played = play(REVIEW % "fail", {"review": BAD, "review[2]": OK, "act": "```\ncode\n```"})
    assert played.order == "act[1] tests[1] review[1] act[2] tests[2] review[2] final"
    assert played.reads("act[1]") == "q"
    assert played.reads("act[2]") == "q tests[1] review[1]"
    assert played.reads("review[2]") == "act[2] tests[2]"
    assert played.reads("final") == "act[2] review[1] review[2]"
    assert played.args("tests[2]") == {"code": "code", "round": 2}
    assert played.run.outputs() == {"final": "x"}
    unrun = [i for i in played.run.instances if i.state != "succeeded"]
    assert {(i.round, i.state, i.reason) for i in unrun} == {(3, "skipped", "the loop had ended")}


def test_a_loop_that_ends_in_its_first_round() -> None:
    played = play(REVIEW % "fail", {"review": OK})
    assert played.order == "act[1] tests[1] review[1] final"
    assert {i.reason for i in played.run.instances if i.state == "skipped"} == {"the loop had ended"}


def test_an_exhausted_loop_fails() -> None:
    played = play(REVIEW % "fail", {"review": BAD})
    assert played.order.endswith("review[3]")
    assert (played.run.state, played.run.error) == ("failed", "the loop 'loop1' did not end within 3 rounds")


def test_an_exhausted_loop_goes_on() -> None:
    played = play(REVIEW % "continue", {"review": BAD})
    assert played.order.endswith("review[3] final")
    assert played.reads("final") == "act[3] review[1] review[2] review[3]"
    assert played.run.state == "succeeded"


def test_a_failure_in_a_loop_that_is_a_message() -> None:
    played = play(REVIEW % "fail", {"review": BAD, "review[2]": OK, "tests[1]": RuntimeError("boom")})
    assert played.reads("review[1]") == "act[1] tests[1]"
    assert played.reads("act[2]") == "q tests[1] review[1]"
    assert played.run.status("tests[1]").state == "failed"
    assert played.run.state == "succeeded"


def test_a_failure_in_a_loop_fails_the_run() -> None:
    played = play(REVIEW % "continue", {"act[2]": RuntimeError("boom"), "review": BAD})
    assert played.order == "act[1] tests[1] review[1] act[2]"
    assert (played.run.state, played.run.error) == ("failed", "step 'act[2]' failed: boom")


ROUNDS = '{step: a, read: ["a[all]", "b[previous]"]%s}', "{step: b, read: [a]%s}"


def test_a_failure_in_a_loop_is_passed_over() -> None:
    body = loop("{name: l, max: 3}", ROUNDS[0] % ", on_error: skip", ROUNDS[1] % "", after="- {step: f, read: [a, b]}")
    played = play(body, {"a[2]": RuntimeError("boom")})
    assert played.reads("b[2]") == ""
    assert played.reads("a[3]") == "a[1] b[2]"
    played = play(body, {"a[3]": RuntimeError("boom")})
    assert played.reads("f") == "a[2] b[3]"  # the last that is there
    played = play(body, {"a": RuntimeError("boom")})
    assert played.reads("f") == "b[3]"


def test_without_until_all_rounds_are_run_each_after_the_one_before() -> None:
    played = play(loop("{max: 3}", "{step: a}", "{step: b, read: [a]}", after='- {step: f, read: ["a[2]", "b[all]"]}'))
    assert played.order == "a[1] b[1] a[2] b[2] a[3] b[3] f"
    assert played.reads("f") == "a[2] b[1] b[2] b[3]"


def test_a_number_of_a_round_that_was_not_run_is_passed_over() -> None:
    body = loop(
        "{until: a.text == 'stop', max: 3, on_max: fail}", "{step: a}", after='- {step: f, read: [q, "a[1]", "a[3]"]}'
    )
    assert play(body, {"a[2]": "stop"}).reads("f") == "q a[1]"


@pytest.mark.parametrize(("most", "says"), [(2, "ok"), (2, "no"), (1, "no")])
def test_what_reads_only_a_step_that_no_round_ran_is_skipped(most: int, says: str) -> None:
    head = f'{{max: {most}, on_max: continue, until: a.text == "ok"}}'
    body = loop(head, "{step: a}", '{step: x, read: [a], when: a.text == "more"}', after="- {step: f, read: [x]}")
    played = play(body, {"a": says})
    assert played.run.state == "succeeded"
    assert played.run.status("f").state == "skipped"


def test_a_fan_out_in_a_loop() -> None:
    body = loop(
        "{until: judge.score | mean > 5, max: 3, on_max: fail}",
        '{step: draft, read: [q, "judge[all,previous]"]}',
        "{step: judge, for_each: [ann, bob], max_parallel: 1, read: [draft], values: {score: {type: number}}}",
        after='- {step: f, read: ["judge[bob]", "judge[all,1]", "judge[all,all]"]}\noutputs: {last: judge, f: f}',
    )
    answers = {"judge": "score: 2", "judge[ann,2]": "score: 5", "judge[bob,2]": "score: 6"}
    played = play(body, answers)
    assert played.order == "draft[1] judge[ann,1] judge[bob,1] draft[2] judge[ann,2] judge[bob,2] f"
    assert played.reads("draft[2]") == "q judge[ann,1] judge[bob,1]"
    assert played.reads("f") == (
        "judge[bob,2] judge[ann,1] judge[bob,1] judge[ann,1] judge[bob,1] judge[ann,2] judge[bob,2]"
    )
    assert played.run.outputs()["last"] == "score: 5\n\nscore: 6"


def test_self_and_others_of_the_previous_round_in_a_loop() -> None:
    body = loop("{max: 2}", '{step: a, for_each: agents, read: ["a[self,all]", "a[others,previous]"]}')
    played = play(body)
    assert played.reads("a[ann,1]") == ""
    assert played.reads("a[bob,2]") == "a[bob,1] a[ann,1] a[cleo,1]"
    assert played.run.outputs()["a"].count("x") == 3


def test_steps_that_are_skipped_in_some_rounds() -> None:
    body = loop(
        "{name: l, until: a.text == 'stop', max: 4, on_max: fail}",
        "{step: a}",
        '{step: odd, when: "round % 2 == 1", read: [a]}',
        '{step: b, read: [a, odd, "odd[all]"]}',
        after='- {step: f, read: [odd, b, "odd[all]"]}',
    )
    played = play(body, {"a[4]": "stop"})
    assert [a for a in played.begun if a.startswith("odd")] == ["odd[1]", "odd[3]"]
    assert played.reads("b[1]") == "a[1] odd[1] odd[1]"
    assert played.reads("b[4]") == "a[4] odd[1] odd[3]"
    assert played.reads("f") == "odd[3] b[4] odd[1] odd[3]"


def test_the_list_of_all_rounds_has_none_for_a_member_that_is_missing() -> None:
    body = loop(
        "{until: a.text == 'stop', max: 4, on_max: fail}",
        "{step: a}",
        '{step: b, for_each: 2, when: "index == 1 or round == 2", read: [a]}',
        after="- {step: f, external: {args: {all: 'b[all,all].text', one: 'b[2,all].text', last: 'b.text'}}}",
    )
    played = play(body, {"a[3]": "stop", "b[2,2]": "two"})
    assert played.args("f") == {"all": ["x", None, "x", "two", "x", None], "one": ["two"], "last": ["x", "two"]}


BRANCH = """steps:
- {step: triage, read: [q], values: {kind: {one_of: [bug, question]}}}
- when: triage.kind == "bug"
  steps:
  - {step: fix, read: [q, triage]}
  - {step: check, read: [fix]}
  otherwise:
  - {step: reply, read: [q]}
- {step: final, read: [q, check, reply]}
outputs: {final: final, fix: fix, reply: reply, both: {read: fix, join: any}}
"""


def test_a_branch_that_is_taken() -> None:
    played = play(BRANCH, {"triage": "a bug"})
    assert played.order == "triage fix check final"
    assert played.reads("final") == "q check"
    assert played.run.outputs() == {"final": "x", "fix": "x", "both": "x"}
    assert played.run.status("reply").reason == "its `when` does not hold"


def test_a_branch_that_is_not_taken() -> None:
    played = play(BRANCH, {"triage": "a question"})
    assert played.order == "triage reply final"
    assert played.reads("final") == "q reply"
    assert played.run.outputs() == {"final": "x", "reply": "x"}


def test_a_when_of_each_instance_and_what_dies_with_it() -> None:
    body = """inputs: {docs: {type: list, default: [a, b, c]}}
steps:
- {step: one, for_each: docs, when: item != wanted.text, read: [q]}
- {step: wanted, read: [q]}
- {step: two, for_each: docs, read: ["one[item]"]}
- {step: fold, for_each: {batch: two, size: 2}, read: ["two[batch]"]}
- {step: dead, read: ["two[2]", "one[2]"]}
- {step: deader, read: [dead]}
- {step: also, when: "dead.text is none", read: [q]}
- {step: f, read: [two, fold, deader, also]}
"""
    played = play(body, {"wanted": "b"})
    assert played.order == "wanted one[1] one[3] also two[1] two[3] fold[1] fold[2] f"
    assert played.reads("fold[1]") == "two[1]"
    assert played.reads("f") == "two[1] two[3] fold[1] fold[2] also"
    reasons = {i.address: i.reason for i in played.run.instances if i.state == "skipped"}
    assert reasons["deader"] == "what it reads was not run: dead"
    assert sorted(reasons) == ["dead", "deader", "one[2]", "two[2]"]


def test_everything_may_be_skipped() -> None:
    played = play("steps:\n- {step: a, when: 1 > 2}\n- {step: b, read: [a]}\noutputs: {b: b, q: q}")
    assert (played.run.state, played.run.outputs(), played.begun) == ("succeeded", {"q": "hi"}, {})


@pytest.mark.parametrize("join", ["any", "{at_least: 2}", "{at_least: 3}", "{at_least: 3, rest: cancel}", "all"])
def test_joins_count_what_is_left(join: str) -> None:
    body = "steps:\n- {step: a}\n- {step: b, when: 1 > 2}\n- {step: c}\n- {step: f, read: [a, b, c], join: %s}"
    assert play(body % join).reads("f") == "a c"


def test_blocks_in_blocks_and_loops_in_blocks() -> None:
    body = """inputs: {x: {type: integer}}
steps:
- {step: a}
- when: x > 0
  steps:
  - when: x > 1
    steps:
    - loop: {name: l, until: "b.text == 'stop'", max: 2, on_max: continue}
      when: x > 2
      steps:
      - {step: b, read: [a]}
      - when: round > 1
        steps: [{step: c, read: [b, "c[previous]"]}]
        otherwise: [{step: d, read: [b]}]
    otherwise: [{step: one, read: [a]}]
  otherwise: [{step: none_at_all, read: [a]}]
- {step: f, read: [a, b, c, d, one, none_at_all]}
"""
    assert play(body, x=0).order == "a none_at_all f"
    assert play(body, x=1).order == "a one f"
    assert play(body, x=2).order == "a f"
    played = play(body, x=3)
    assert played.order == "a b[1] d[1] b[2] c[2] f"
    assert played.reads("f") == "a b[2] c[2] d[1]"
    assert play(body, {"b": "stop"}, x=3).order == "a b[1] d[1] f"
    reasons = {i.address: i.reason for i in play(body, x=2).run.instances if i.state == "skipped"}
    assert reasons["b[1]"] == "its `when` does not hold"
    assert reasons["none_at_all"] == "its `when` does not hold"
    reasons = {i.address: i.reason for i in play(body, x=0).run.instances if i.state == "skipped"}
    assert reasons["one"] == "its `when` does not hold"
