"""Orders of reads, arguments of external steps, typed votes, retries, and joins that cancel, in loops too."""

from __future__ import annotations

import pytest
from workflow_play import HEAD, play

from laban.cluster.workflow.lint import lint
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Run

RANK = """inputs: {docs: {type: list, default: [a, b, c, d]}}
steps:
- {step: rate, for_each: docs, when: item != "b", read: [q], values: {score: {type: number}}}
- {step: pick, read: [q], values: {best: {type: list}, who: {one_of: [ann, bob, cleo]}}}
- {step: draft, for_each: agents, read: [q]}
- {step: f, read: [%s]}
"""
SCORES = {"rate[1]": "score: 1", "rate[3]": "score: 9", "rate[4]": "score: 5"}


@pytest.mark.parametrize(
    ("read", "pick", "keys"),
    [
        ('{read: rate, order: "rate.score | ranked"}', "", "rate[3] rate[4] rate[1]"),
        ('{read: rate, order: "rate.score | ranked(true) | take(2)"}', "", "rate[1] rate[4]"),
        ('{read: rate, order: "rate.score | ranked | first"}', "", "rate[3]"),
        ("{read: rate, order: pick.best}", "best: 4 > 1", "rate[4] rate[1]"),
        ("{read: rate, order: pick.best}", "best: 4, 4, 17, x, 2, 3", "rate[4] rate[3]"),
        ("{read: rate, order: pick.best}", "nobody", "rate[1] rate[3] rate[4]"),
        ("{read: rate, order: pick.best}", "best: 0, 99", "rate[1] rate[3] rate[4]"),
        ("{read: rate, order: '[4.0, 1 + 0.5, 3.0]'}", "", "rate[4] rate[3]"),
        ("{read: rate, order: 'rate.score | max | round - 6'}", "", "rate[3]"),
        ("{read: draft, order: '[3.0, 1.0]'}", "", "draft[cleo] draft[ann]"),
        ("{read: draft, order: pick.best}", "best: CLEO > Ann", "draft[cleo] draft[ann]"),
        ("{read: draft, order: pick.best}", "best: 3, 1", "draft[cleo] draft[ann]"),
        ("{read: draft, order: pick.who}", "Bob is best.", "draft[bob]"),
        ("{read: draft, order: pick.who}", "", "draft[ann] draft[bob] draft[cleo]"),
        ("{read: 'draft[all]', order: '[2, \"ann\"]', fidelity: direct}", "", "draft[bob] draft[ann]"),
    ],
)
def test_orders(read: str, pick: str, keys: str) -> None:
    played = play(RANK % f"pick, {read}", {**SCORES, "pick": pick or "no"})
    assert played.reads("f") == f"pick {keys}"


def test_an_order_of_fixed_messages_waits_for_what_it_looks_at() -> None:
    body = """inputs: {docs: {type: list, default: [a, b, c]}}
messages: {doc: {text: "{{ item }}", for_each: docs}}
agents: {}
steps:
- {step: rate, for_each: docs, read: ["doc[item]"], values: {score: {type: number}}}
- {step: f, read: [{read: doc, order: "rate.score | ranked | take(2)"}]}
"""
    run = Run(parse_yaml("version: 1\nname: t\n" + body), {})
    for number, step in enumerate(run.ready()):
        run.finish(step.address, f"score: {number % 2}")
    (last,) = run.ready()
    assert [ref.key for ref in last.reads] == ["doc[2]", "doc[1]"]


def test_an_order_takes_all_rounds_of_its_members() -> None:
    body = "steps:\n- {step: a, for_each: 2, rounds: 2}\n- {step: f, read: [{read: 'a[all,all]', order: '[2, 1]'}]}"
    assert play(body).reads("f") == "a[2,1] a[2,2] a[1,1] a[1,2]"


def test_greedy_members_that_read_in_some_order_lint_clean() -> None:
    body = "steps:\n- {step: a, count: 2, sampling: {temperature: 1}}\n"
    body += "- {step: f, count: 2, read: [{read: a, order: '[index]'}]}"
    assert lint(parse_yaml(HEAD + body)).ok


def test_an_order_in_a_loop() -> None:
    body = """steps:
- loop: {max: 2}
  steps:
  - {step: a, for_each: 2, read: [{read: "b[all,previous]", order: "b[all,previous].s | ranked"}]}
  - {step: b, for_each: 2, read: ["a[self]"], values: {s: {type: number}}}
"""
    played = play(body, {"b[1,1]": "s: 1", "b[2,1]": "s: 2"})
    assert (played.reads("a[1,1]"), played.reads("a[1,2]")) == ("", "b[2,1] b[1,1]")


def test_an_order_that_cannot_be_evaluated_fails_its_step() -> None:
    played = play(RANK % '{read: rate, order: "rate.text | mean"}')
    assert "f" not in played.run.outputs()
    assert played.run.state == "failed"
    assert "unsupported operand" in played.run.error


CALL = """inputs: {limit: {type: integer, default: 3}, docs: {type: list, default: [p, q]}}
messages: {m: "the limit is {{ limit }}"}
steps:
- {step: a, read: [m], values: [word]}
- {step: call, for_each: docs, external: {tool: t, args: %s%s}%s}
"""


def call(args: str, schema: str = "", more: str = "", answer: str | Exception = "word: up") -> dict[str, object]:
    text = "version: 1\nname: t\n" + CALL % (args, schema, more)
    run = Run(parse_yaml(text), {})
    found: dict[str, object] = {}
    while run.state == "running":
        for step in run.ready():
            if step.task is not None:
                found[step.address] = dict(step.task.args)
            elif step.problem:
                found[step.address] = step.problem
            if step.problem:
                run.fail(step.address, step.problem)
            else:
                run.finish(step.address, str(answer))
    return found


def test_arguments_are_expressions_if_texts_and_stand_for_themselves_otherwise() -> None:
    args = "{e: a.word, lit: '\"a.word\"', n: 3, none: null, deep: {x: [a.word, 1.5, true]}, "
    args += "own: 'item', at: index, by: step, l: limit, m: m.text}"
    assert call(args)["call[2]"] == {
        "e": "up", "lit": "a.word", "n": 3, "none": None, "deep": {"x": ["a.word", 1.5, True]},
        "own": "q", "at": 2, "by": "call", "l": 3, "m": "the limit is 3",
    }  # fmt: skip
    assert call("{t: a.text, c: a.code, f: a.failed, w: a.word}")["call[1]"] == {
        "t": "word: up", "c": "word: up", "f": False, "w": "up",
    }  # fmt: skip


def test_arguments_that_the_schema_refuses_fail_the_step() -> None:
    schema = ", input_schema: {type: object, properties: {w: {enum: [up]}}}"
    assert call("{w: a.word}", schema)["call[1]"] == {"w": "up"}
    problem = call("{w: a.word}", schema, ", on_error: skip", answer="word: down")["call[1]"]
    assert "the arguments are not what `input_schema` asks for: w: 'down'" in str(problem)


def test_an_argument_that_cannot_be_evaluated_names_itself() -> None:
    assert "the argument 'w': " in str(call("{w: a.word > 3}", "", ", on_error: skip")["call[1]"])


def test_what_a_step_says_of_its_attempts() -> None:
    body = """steps:
- {step: a, timeout_s: 5, retries: 2}
- {step: b, retries: {max: 3, delay_s: 0.5}, on_error: message}
- {step: c, external: {timeout_s: 7, retries: 1, on_error: skip, lease_s: 2}, read: [a]}
- {step: f, read: [a, b, c]}
"""
    played = play(body)
    tries = {address: step.tries for address, step in played.begun.items()}
    assert (tries["a"].timeout_s, tries["a"].max_retries, tries["a"].on_error) == (5, 2, "fail")
    assert [tries["b"].delay_before_s(retry) for retry in (1, 2, 3)] == [0.5, 1, 2]
    assert (tries["c"].timeout_s, tries["c"].max_retries, tries["c"].on_error) == (7, 1, "skip")
    task = played.begun["c"].task
    assert task is not None
    assert (task.tool, task.lease_s) == ("c", 2)


@pytest.mark.parametrize(
    ("on_error", "state", "reads", "was"),
    [("skip", "succeeded", "b", None), ("message", "succeeded", "a b", "boom"), ("fail", "failed", "", None)],
)
def test_what_becomes_of_a_failure(on_error: str, state: str, reads: str, was: str | None) -> None:
    body = (
        "steps:\n- {step: a, values: [v], on_error: %s}\n- {step: b}\n- {step: f, read: [a, b]}\n"
        "- {step: g, external: {args: {text: a.text, failed: a.failed, v: a.v}}, read: [b]}"
    )
    played = play(body % on_error, {"a": RuntimeError("boom")})
    assert played.run.state == state
    if state == "succeeded":
        assert played.reads("f") == reads
        assert played.args("g") == {"text": was, "failed": True, "v": None}


def test_a_value_that_is_required_fails_the_step() -> None:
    body = "steps:\n- {step: a, values: {v: {required: true}}}\n"
    assert play(body, {"a": "v: 1"}).run.state == "succeeded"
    assert play(body).run.error.startswith("step 'a' failed: the text has no value 'v' (got ")


def test_typed_votes() -> None:
    body = """steps:
- {step: p, for_each: agents}
- {step: v, count: 4, read: [p], values: {best: {one_of: [ann, bob, cleo]}, n: {type: integer}},
   vote: {over: p, value: %s}}
- {step: f, read: ["p[winner(v)]"]}
"""
    answers = {"v": "I like ann.\nbest: bob", "v[2]": "bob is bad.\nbest: cleo", "v[3]": "best: cleo", "v[4]": "?"}
    played = play(body % "best", answers)
    tally = played.run.tallies()["v"]
    assert (tally.ballots, tally.abstained) == ((("ann", 0), ("bob", 1), ("cleo", 2)), 1)
    assert played.reads("f") == "p[cleo]"
    assert play(body % "n", answers).run.tallies()["v"].abstained == 4


LIMITED = """steps:
- loop: {until: f.text == "stop", max: 2, on_max: continue}
  steps:
  - {step: a, for_each: 4, max_parallel: 2, read: [q]}
  - {step: f, read: [a], join: {at_least: 2, rest: cancel}}
"""


def test_max_parallel_and_cancelling_in_a_loop() -> None:
    run = Run(parse_yaml(HEAD + LIMITED), {})
    for round_ in (1, 2):
        assert [step.address for step in run.ready()] == [f"a[1,{round_}]", f"a[2,{round_}]"]
        assert run.ready() == ()
        run.finish(f"a[2,{round_}]", "x")
        assert [step.address for step in run.ready()] == [f"a[3,{round_}]"]
        run.finish(f"a[3,{round_}]", "x")
        assert {f"a[1,{round_}]", f"a[4,{round_}]"} <= set(run.skipped())
        (step,) = run.ready()
        assert [ref.key for ref in step.reads] == [f"a[2,{round_}]", f"a[3,{round_}]"]
        run.finish(step.address, "go on")
    assert run.state == "succeeded"


def test_a_loop_is_not_cancelled_by_a_join_that_has_enough() -> None:
    body = """steps:
- loop: {max: 2}
  steps: [{step: a, read: [q]}]
- {step: b, read: [q]}
- {step: f, read: [a, b], join: {at_least: 1, rest: cancel}}
"""
    run = Run(parse_yaml(HEAD + body), {})
    run.ready()
    run.finish("b", "x")
    (step,) = run.ready()
    run.finish(step.address, "x")
    assert run.state == "running"
    run.finish("a[1]", "x")
    (step,) = run.ready()
    run.finish(step.address, "x")
    assert run.state == "succeeded"


def test_cancelling_a_run_in_a_loop() -> None:
    run = Run(parse_yaml(HEAD + LIMITED), {})
    run.ready()
    run.cancel()
    assert run.state == "cancelled"
    assert {i.state for i in run.instances} == {"cancelled"}


def test_a_condition_that_cannot_be_evaluated_fails_the_run() -> None:
    played = play("steps:\n- {step: a}\n- {step: b, when: a.text > 3, read: [a]}")
    assert played.run.state == "failed"
    assert played.run.error.startswith("steps[1].when: `a.text > 3` cannot be evaluated: ")
