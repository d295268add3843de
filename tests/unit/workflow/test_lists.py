"""Fan-outs over lists and batches, how many run at a time, and members that fail and are left out."""

from __future__ import annotations

import pytest

from laban.cluster.workflow.builder import Workflow as Builder
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.lint import lint
from laban.cluster.workflow.parse import parse_dict, parse_yaml, to_dict
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow

MAP_REDUCE = """version: 1
name: map_reduce
inputs: {docs: {type: list}}
messages:
  ask: Sum it up.
  merge: Join these.
  doc: {text: "{{ index }}. {{ item }}", for_each: docs}
steps:
- {step: map, for_each: docs, max_parallel: 2, on_error: skip, read: [ask, "doc[item]"], prefill: "Of {{ item }}:"}
- {step: fold, for_each: {batch: map, size: 2}, read: [merge, "map[batch]"]}
- {step: final, read: [merge, fold]}
"""
HEAD = """version: 1
name: x
inputs: {docs: {type: list, default: [a, b, c]}, more: {type: list, default: [d]}, q: {}}
"""


def keys(run: Run) -> dict[str, list[str]]:
    return {step.address: [read.key for read in step.reads] for step in run.ready()}


def test_map_reduce() -> None:
    run = Run(parse_yaml(MAP_REDUCE), {"docs": ["x", "y", "z"]})
    assert [run.messages[f"doc[{n}]"].text for n in (1, 2, 3)] == ["1. x", "2. y", "3. z"]
    first = run.ready()
    assert [(step.address, step.prefill) for step in first] == [("map[1]", "Of x:"), ("map[2]", "Of y:")]
    assert [[read.key for read in step.reads] for step in first] == [["ask", "doc[1]"], ["ask", "doc[2]"]]
    assert run.ready() == ()  # two at a time
    run.finish("map[2]", "two")
    assert keys(run) == {"map[3]": ["ask", "doc[3]"]}
    run.fail("map[1]", "too long")
    assert keys(run) == {"fold[1]": ["merge", "map[2]"]}
    run.finish("map[3]", "three")
    assert keys(run) == {"fold[2]": ["merge", "map[3]"]}
    run.finish("fold[1]", "f1")
    run.finish("fold[2]", "f2")
    assert keys(run) == {"final": ["merge", "fold[1]", "fold[2]"]}
    run.finish("final", "end")
    assert run.state == "succeeded"
    assert run.status("map[1]").state == "failed"


def test_everything_skipped_is_nothing_to_read() -> None:
    run = Run(parse_yaml(MAP_REDUCE), {"docs": ["x"]})
    keys(run)
    run.fail("map[1]", "no")
    assert keys(run) == {"fold[1]": ["merge"]}


def test_look_ahead_counts_what_was_skipped_as_there() -> None:
    run = Run(parse_yaml(MAP_REDUCE), {"docs": ["x", "y", "z"]})
    run.ready()
    assert run.steps_to_execution()["fold[1]"] == 1
    run.fail("map[1]", "no")
    run.finish("map[2]", "two")
    assert run.steps_to_execution()["fold[1]"] == 0
    assert run.next_uses()["doc[3]"] == (0, "map[3]")


def test_batches_of_messages_and_of_batches() -> None:
    text = HEAD + (
        "messages: {doc: {text: '{{ item }}', for_each: docs}}\n"
        "steps:\n"
        "- {step: c, for_each: {batch: b, size: 2}, read: ['b[batch]']}\n"
        "- {step: a, for_each: docs, read: ['doc[item]']}\n"
        "- {step: b, for_each: {batch: doc, size: 2}, read: ['doc[batch]']}\n"
        "- {step: d, for_each: docs, read: ['a[item]', 'doc[item]', 'doc[2]', doc]}\n"
    )
    run = Run(parse_yaml(text), {"q": "?"})
    ready = keys(run)
    assert ready["b[1]"] == ["doc[1]", "doc[2]"]
    assert ready["b[2]"] == ["doc[3]"]
    for address in ready:
        run.finish(address, "t")
    after = keys(run)
    assert after["c[1]"] == ["b[1]", "b[2]"]
    assert after["d[3]"] == ["a[3]", "doc[3]", "doc[2]", "doc[1]", "doc[2]", "doc[3]"]


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("steps: [{step: s, for_each: dcs}]", "did you mean 'docs'"),
        ("steps: [{step: s, for_each: q}]", "no list"),
        ("messages: {m: {text: x, for_each: q}}\nsteps: [{step: s, read: [m]}]", "no list"),
        ("steps: [{step: s, for_each: {batch: t, size: 2}}]", "unknown step or message 't'"),
        ("steps: [{step: s, for_each: {batch: t, size: 2}}, {step: t}]", "no members to batch"),
        (
            "steps: [{step: s, for_each: {batch: t, size: 2}}, {step: t, for_each: {batch: s, size: 2}}]",
            "a cycle of batches",
        ),
        ("steps: [{step: s, for_each: {batch: s, size: 2}}]", "a cycle of batches"),
        ("steps: [{step: s, for_each: {batch: t}}]", "batch and size go together"),
        ("steps: [{step: s, for_each: {input: docs, count: 2}}]", "keep one"),
        ("steps: [{step: t, for_each: docs}, {step: s, for_each: more, read: ['t[item]']}]", "over the same list"),
        ("steps: [{step: t, for_each: docs}, {step: s, read: ['t[item]']}]", "over the same list"),
        ("steps: [{step: t, for_each: docs}, {step: s, for_each: 2, read: ['t[batch]']}]", "not for batches of 't'"),
        ("steps: [{step: s, for_each: docs, max_parallel: 0}]", "at least 1"),
        ("steps: [{step: s, on_error: ignore}]", "'fail', 'skip' or 'message'"),
        ("steps: [{step: s, for_each: 2, prefill: '{{ item }}'}]", "unknown variable 'item'"),
        ("messages: {m: '{{ item }}'}\nsteps: [{step: s, read: [m]}]", "unknown variable 'item'"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(rest: str, words: str) -> None:
    with pytest.raises(WorkflowErrors, match=words) as raised:
        parse_yaml(HEAD + rest)
    assert all(d.line is not None for d in raised.value.diagnostics)


def test_an_empty_list() -> None:
    workflow = parse_yaml(MAP_REDUCE)
    with pytest.raises(WorkflowErrors, match="the list 'docs' is empty"):
        Run(workflow, {"docs": []})
    assert not lint(workflow, {"docs": []}).ok


def test_lint_counts_the_members_given() -> None:
    workflow = parse_yaml(MAP_REDUCE)
    report = lint(workflow, {"docs": ["a"] * 40})
    assert report.ok
    assert report.num_instances == 40 + 20 + 1
    assert not [d for d in report.diagnostics if d.severity == "warning" and "docs" in d.message]
    assert lint(workflow).num_instances == 3  # a list not known yet stands for one item


def test_yaml_dict_and_builder_agree() -> None:
    workflow: Workflow = parse_yaml(MAP_REDUCE)
    assert parse_dict(to_dict(workflow)) == workflow
    built = (
        Builder("map_reduce")
        .input("docs", "list")
        .message("ask", "Sum it up.")
        .message("merge", "Join these.")
        .message("doc", "{{ index }}. {{ item }}", for_each="docs")
        .step(
            "map", for_each="docs", max_parallel=2, on_error="skip", read=["ask", "doc[item]"], prefill="Of {{ item }}:"
        )
        .step("fold", for_each={"batch": "map", "size": 2}, read=["merge", "map[batch]"])
        .step("final", read=["merge", "fold"])
    )
    assert parse_dict(built.to_dict()) == workflow


def test_a_private_item_leaks_like_any_message() -> None:
    text = HEAD + (
        "messages: {doc: {text: '{{ item }}', for_each: docs, private: true}}\n"
        "steps:\n- {step: a, for_each: docs, read: ['doc[item]']}\n- {step: b, read: [{read: a, fidelity: direct}]}\n"
    )
    with pytest.raises(WorkflowErrors, match="private"):
        Run(parse_yaml(text), {"q": "?"})
