"""Workflows within workflows: what is passed by reference, what comes back, and what goes wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from laban.cluster.workflow.children import Began, Ended
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.parse import parse_dict, parse_yaml, to_dict
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import Overrides

PARENT = """
version: 1
name: parent
inputs: {topics: {type: list, default: [ants, bees]}}
messages: {doc: "The document."}
steps:
  - {step: plan, read: [doc], values: [aim]}
  - step: research
    for_each: topics
    workflow: parts/research.yaml
    inputs: {topic: item, depth: 2}
    messages: {source: doc, goal: plan}
  - {step: final, read: [doc, research]}
"""
RESEARCH = """
version: 1
name: research
inputs: {topic: {}, depth: {type: integer}}
messages: {source: none, goal: none, ask: "Of {{ topic }}, {{ depth }} times."}
steps:
  - {step: draft, count: 2, read: [source, goal, ask]}
  - {step: deep, workflow: ../deep.yaml, messages: {m: source, d: draft}}
  - {step: merge, read: [ask, draft, deep]}
"""
DEEP = """
version: 1
name: deep
messages: {m: x, d: y}
steps:
  - {step: think, read: [m, d]}
  - {step: say, when: think.text | length > 2, read: [think]}
outputs: {said: {read: say, join: any}}
"""
FILES = {"parts/research.yaml": RESEARCH, "deep.yaml": DEEP}


def play(run: Run, answer: Callable[[str], Any] = lambda address: f"says {address}") -> dict[str, list[str]]:
    """What each instance read. An exception as an answer fails the instance."""
    reads: dict[str, list[str]] = {}
    while run.state == "running":
        ready = run.ready()
        assert ready or run.state != "running", "the run hangs"
        for step in ready:
            reads[step.address] = [ref.key for ref in step.reads]
            made = answer(step.address)
            if isinstance(made, Exception):
                run.fail(step.address, str(made))
            else:
                run.finish(step.address, made)
    return reads


def errors(text: str, files: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(WorkflowErrors) as caught:
        parse_yaml(text, "parent.yaml", FILES if files is None else files)
    return [str(diagnostic) for diagnostic in caught.value.diagnostics]


def test_messages_are_passed_by_reference_through_all_levels() -> None:
    reads = play(Run(parse_yaml(PARENT, "parent.yaml", FILES), {}))
    assert reads["research[2]/draft[1]"] == ["doc", "plan", "research[2]/ask"]
    assert reads["research[1]/deep/think"] == ["doc", "research[1]/draft[1]", "research[1]/draft[2]"]
    # What a run ends with is the message itself, not a copy of its text.
    assert reads["research[1]/merge"][-1] == "research[1]/deep/say"
    assert reads["final"] == ["doc", "research[1]/merge", "research[2]/merge"]


def test_a_run_within_shows_its_instances_and_fixed_messages_once_it_begins() -> None:
    run = Run(parse_yaml(PARENT, "parent.yaml", FILES), {})
    assert [i.address for i in run.instances] == ["plan", "research[1]", "research[2]", "final"]
    [plan] = run.ready()
    run.finish(plan.address, "aim: low")
    run.ready()
    began = [news for news in run.take_news() if isinstance(news, Began)]
    assert [news.address for news in began] == ["research[1]", "research[2]"]
    assert [message.text for message in began[1].messages] == ["Of bees, 2 times."]
    assert "research[1]/draft[2]" in [i.address for i in run.instances]
    assert run.status("research[1]/draft[2]").state == "running"
    assert run.take_news() == []


def test_several_messages_come_back_as_one_text() -> None:
    both = RESEARCH + "outputs: {both: {read: draft, separator: '+'}}"
    run = Run(parse_yaml(PARENT, "parent.yaml", {**FILES, "parts/research.yaml": both}), {})
    reads, ended = {}, []
    while run.state == "running":
        for step in run.ready():
            reads[step.address] = [ref.key for ref in step.reads]
            run.finish(step.address, step.address[-8:])
        ended += [news for news in run.take_news() if isinstance(news, Ended)]
    first = next(news for news in ended if news.address == "research[1]")
    assert first.text == "draft[1]+draft[2]"
    assert first.message is not None
    assert first.message.key == "research[1]"
    assert reads["final"] == ["doc", "research[1]", "research[2]"]


def test_what_comes_back_is_whole_messages() -> None:
    inner = RESEARCH.replace("{step: draft,", '{step: draft, prefill: "I say:",')
    assert inner != RESEARCH
    both = inner + "outputs: {both: {read: draft, separator: '+'}}"
    run = Run(parse_yaml(PARENT, "parent.yaml", {**FILES, "parts/research.yaml": both}), {})
    ended = []
    while run.state == "running":
        for step in run.ready():
            run.finish(step.address, step.address[-3:])
        ended += [news for news in run.take_news() if isinstance(news, Ended)]
    first = next(news for news in ended if news.address == "research[1]")
    assert first.message is not None
    assert first.message.text == "I say:[1]+I say:[2]"


def test_what_fails_inside_fails_the_step() -> None:
    run = Run(parse_yaml(PARENT, "parent.yaml", FILES), {})
    play(run, lambda address: RuntimeError("boom") if address == "research[2]/merge" else "some text")
    assert (run.state, run.error) == ("failed", "step 'research[2]' failed: step 'merge' failed: boom")
    assert all(i.state not in ("waiting", "ready", "running") for i in run.instances)


@pytest.mark.parametrize(("on_error", "last"), [("skip", []), ("message", ["research[2]"])])
def test_a_failure_inside_may_be_skipped_or_said(on_error: str, last: list[str]) -> None:
    text = PARENT.replace("    inputs:", f"    on_error: {on_error}\n    inputs:")
    run = Run(parse_yaml(text, "parent.yaml", FILES), {})
    reads = play(run, lambda address: RuntimeError("boom") if address == "research[2]/merge" else "some text")
    assert run.state == "succeeded"
    assert reads["final"] == ["doc", "research[1]/merge", *last]


def test_an_output_that_was_not_made_fails_the_step() -> None:
    run = Run(parse_yaml(PARENT, "parent.yaml", FILES), {})
    play(run, lambda address: "x")  # too short for `say` to run
    assert "the output 'said' of '../deep.yaml' was not made" in run.error


def test_cancelling_ends_the_runs_within() -> None:
    run = Run(parse_yaml(PARENT, "parent.yaml", FILES), {})
    run.finish(run.ready()[0].address, "plan")
    running = [step.address for step in run.ready()]
    run.cancel()
    assert running
    assert set(running) <= set(run.skipped())
    run.finish(running[0], "too late")  # ignored
    assert run.state == "cancelled"


def test_a_run_that_is_no_longer_needed_is_stopped() -> None:
    text = """
version: 1
name: race
steps:
  - {step: slow, workflow: inner}
  - {step: fast}
  - {step: pick, read: [slow, fast], join: {at_least: 1, rest: cancel}}
workflows:
  inner: {version: 1, name: inner, steps: [{step: one}, {step: two, read: [one]}]}
"""
    run = Run(parse_yaml(text), {})
    assert [step.address for step in run.ready()] == ["fast", "slow/one"]
    run.finish("fast", "done")
    assert "slow/one" in run.skipped()
    assert [step.address for step in run.ready()] == ["pick"]
    run.finish("pick", "x")
    assert run.state == "succeeded"


def test_the_fidelity_asked_for_holds_inside_too() -> None:
    run = Run(parse_yaml(PARENT, "parent.yaml", FILES), {}, Overrides(fidelity="direct"))
    run.finish(run.ready()[0].address, "plan")
    assert {ref.fidelity for step in run.ready() for ref in step.reads} == {"direct"}


def test_values_and_joins_see_the_text_of_a_run_within() -> None:
    more = "  - {step: more, when: 'research[1].text | length > 5', read: [research]}\n"
    text = PARENT + more + "outputs: {final: final, more: more}"
    run = Run(parse_yaml(text, "parent.yaml", FILES), {})
    play(run)
    assert list(run.outputs()) == ["final", "more"]


def test_the_look_ahead_looks_into_runs_that_have_begun() -> None:
    run = Run(parse_yaml(PARENT, "parent.yaml", FILES), {})
    assert run.next_uses()["doc"] == (0, "plan")
    run.finish(run.ready()[0].address, "plan")
    run.ready()
    assert run.steps_to_execution()["research[1]/merge"] == 2
    assert run.next_uses()["research[2]/ask"] == (2, "research[2]/merge")


def test_the_dict_form_holds_the_files() -> None:
    workflow = parse_yaml(PARENT, "parent.yaml", FILES)
    assert parse_dict(to_dict(workflow)) == workflow


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("topic:", "topik:", "'parts/research.yaml' has no input 'topik'; did you mean 'topic'?"),
        ("topic: item, ", "", "the input 'topic' of 'parts/research.yaml' is not given"),
        ("source:", "sauce:", "has no message 'sauce'; did you mean 'source'?"),
        ("depth: 2", "depth: [2]", "wrong type or size"),
        ("goal: plan", "goal: plam", "unknown message or step 'plam'; did you mean 'plan'?"),
        ("topic: item", "topic: itm", "unknown variable 'itm' (got 'itm'); did you mean 'item'?"),
        ("topic: item", "topic: plan.aims", "has no value 'aims'; did you mean 'aim'?"),
        ("research.yaml", "resarch.yaml", "the file was not given with the workflow"),
        ("    inputs:", "    output: merged\n    inputs:", "no output of 'parts/research.yaml' (got 'merged')"),
        ("    inputs:", "    retries: 2\n    inputs:", "`retries` is for steps that are called"),
        ("    inputs:", "    read: [doc]\n    inputs:", "a step that runs a workflow reads nothing itself"),
        ("    inputs:", "    external: {}\n    inputs:", "either `external` or runs a `workflow`"),
    ],
)
def test_mistakes_are_said_with_their_line(old: str, new: str, expected: str) -> None:
    found = errors(PARENT.replace(old, new, 1))
    assert any(expected in line and line.startswith("parent.yaml:") for line in found), found


def test_mistakes_in_a_file_are_said_in_that_file() -> None:
    [found] = errors(PARENT, {**FILES, "deep.yaml": DEEP.replace("think.text", "thnk.text")})
    assert found.startswith("deep.yaml:7:")
    assert "did you mean 'think'?" in found


def test_a_file_that_comes_to_run_itself_is_refused() -> None:
    loop = DEEP.replace("{step: think, read: [m, d]}", "{step: think, workflow: parts/research.yaml}")
    assert any("comes to run itself" in line for line in errors(PARENT, {**FILES, "deep.yaml": loop}))


def test_what_runs_within_counts_too() -> None:
    many = RESEARCH.replace("count: 2", "count: 9000")
    assert any("too many instances" in line for line in errors(PARENT, {**FILES, "parts/research.yaml": many}))


WITHIN = """
version: 1
name: outer
steps: [{step: s, workflow: mid}]
workflows:
  mid:
    version: 1
    name: mid
    steps:
      - when: "true"
        steps: [{step: t, workflow: parts/deep.yaml}]
"""


def test_a_workflow_in_the_file_names_files_as_the_file_does() -> None:
    workflow = parse_yaml(WITHIN, "parent.yaml", {"parts/deep.yaml": DEEP})
    assert list(play(Run(workflow, {}))) == ["s/t/think", "s/t/say"]
    assert parse_dict(to_dict(workflow)) == workflow


def test_what_is_wrong_with_a_file_named_within_is_said() -> None:
    [found] = errors(WITHIN, {})
    assert found.startswith(
        "parent.yaml:11:37: error: workflows.mid.steps[0].steps[0].workflow: the file was not given"
    )
    [found] = errors(WITHIN, {"parts/deep.yaml": DEEP.replace("think.text", "thnk.text")})
    assert found.startswith("parts/deep.yaml:7:")
    itself = WITHIN.replace("parts/", "")
    assert any("comes to run itself" in line for line in errors(itself, {"deep.yaml": itself}))


def test_levels_are_counted_through_files_and_what_stands_in_them() -> None:
    files = {f"{n}.yaml": WITHIN.replace("parts/deep", str(n + 1)) for n in range(3)} | {"3.yaml": DEEP}
    parse_yaml(WITHIN.replace("parts/deep", "0"), "parent.yaml", files)
    files = {f"{n}.yaml": WITHIN.replace("parts/deep", str(n + 1)) for n in range(4)} | {"4.yaml": DEEP}
    assert errors(WITHIN.replace("parts/deep", "0"), files)


def test_a_workflow_that_nobody_gave_is_asked_for_where_it_can_be() -> None:
    beside = WITHIN.replace("parts/deep.yaml", "low") + "  low: {version: 1, name: low, steps: [{step: u}]}\n"
    assert any("expected a name among this workflow's own `workflows`" in line for line in errors(beside))
    document = {"version": 1, "name": "flow", "steps": [{"step": "s", "workflow": "deep.yaml"}]}
    with pytest.raises(WorkflowErrors, match="expected it among this workflow's own `workflows`"):
        parse_dict(document)


SECRET = """
version: 1
name: outer
messages: {sec: {text: s, private: PRIVATE}, q: x}
steps:
  - {step: s, workflow: low, messages: {m: sec}}
  - {step: f, read: [sec, q]}
workflows:
  low:
    version: 1
    name: low
    messages: {m: x, q: y}
    steps:
      - {step: u, read: [m]}
      - {step: v, read: [q, {read: u, fidelity: direct}]}
"""


def test_what_is_private_outside_is_private_inside() -> None:
    Run(parse_yaml(SECRET.replace("PRIVATE", "false")), {})
    with pytest.raises(WorkflowErrors, match="would read the private 'm' through the encoding of 'u'"):
        Run(parse_yaml(SECRET.replace("PRIVATE", "true")), {})


def test_what_is_private_inside_does_not_leak_out() -> None:
    text = SECRET.replace("PRIVATE", "false").replace("{m: x, q: y}", "{m: x, q: {text: y, private: true}}")
    text = text.replace("{read: u, fidelity: direct}", "u").replace("[sec, q]", "[sec, {read: s, fidelity: FIDELITY}]")
    Run(parse_yaml(text.replace("FIDELITY", "exact")), {})
    with pytest.raises(WorkflowErrors, match="the private 'messages of low'"):
        Run(parse_yaml(text.replace("FIDELITY", "direct")), {})


NEST = """
version: 1
name: nest
messages: {m: x}
steps: [{step: s, workflow: mid, on_error: message}, {step: f, read: [m, s]}]
workflows:
  mid:
    {version: 1, name: mid, messages: {m: x}, steps: [{step: t, workflow: low}],
     workflows: {low: {version: 1, name: low, messages: {m: x}, steps: [STEP], outputs: {o: m}}}}
"""


@pytest.mark.parametrize("step", ['{step: u, when: "false", read: [m]}', "{step: u, when: m.text > 1, read: [m]}"])
def test_a_run_within_that_ends_as_it_begins_goes_on(step: str) -> None:
    run = Run(parse_yaml(NEST.replace("STEP", step)), {})
    play(run)
    assert run.state == "succeeded"


def test_a_start_that_fails_keeps_the_others_from_starting() -> None:
    text = """
version: 1
name: fan
inputs: {xs: {type: list, default: [a, 2, 3]}}
steps: [{step: s, for_each: xs, workflow: low, inputs: {n: item}}]
workflows: {low: {version: 1, name: low, inputs: {n: {type: integer}}, steps: [{step: u}]}}
"""
    run = Run(parse_yaml(text), {})
    assert run.ready() == ()
    assert run.state == "failed"
    assert [i.state for i in run.instances] == ["failed", "cancelled", "cancelled"]


def test_instances_are_bounded_over_all_runs() -> None:
    text = """
version: 1
name: many
inputs: {docs: {type: list, default: [a]}}
steps: [{step: s, count: 100, workflow: low, inputs: {docs: docs}, on_error: skip}, {step: f, read: [s]}]
workflows:
  low: {version: 1, name: low, inputs: {docs: {type: list}}, steps: [{step: u, for_each: docs}]}
"""
    run = Run(parse_yaml(text), {"docs": [str(number) for number in range(1000)]})
    assert len(run.ready()) < 10_000
    assert any("too many instances" in i.reason for i in run.instances)


def test_a_file_in_many_places_is_parsed_once() -> None:
    files = {f"{level}{n}.yaml": _level(level) for level in range(7) for n in range(4)}
    parse_yaml(_level(-1), "top.yaml", files)


def _level(level: int) -> str:
    steps = "".join(f"\n- {{step: s{n}, workflow: {level + 1}{n}.yaml}}" for n in range(2 if level < 6 else 0))
    return f"version: 1\nname: l\noutputs: {{o: {{read: end}}}}\nsteps:\n- {{step: end}}{steps}"
