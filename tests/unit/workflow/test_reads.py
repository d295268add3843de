"""Which instances a read selects, and which reads mean nothing."""

from __future__ import annotations

import pytest

from laban.cluster.workflow.build import build_graph
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.graph import StepGraph
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.selectors import Selector, SelectorError, Winner, parse_selector

HEAD = """
version: 1
name: t
agents: {ann: "Be Ann", bob: "Be Bob", cleo: {}}
messages: {q: hi}
steps:
"""


def parse(*steps: str) -> Workflow:
    return parse_yaml(HEAD + "\n".join(f"- {{{step}}}" for step in steps))


def graph(*steps: str) -> StepGraph:
    built, problems = build_graph(parse(*steps))
    assert built is not None, problems
    return built


def reads(of: StepGraph, address: str) -> list[str]:
    return [key for source in of.nodes[address].sources for key in source.keys]


DEBATE = "step: answer, for_each: agents, rounds: 3, read: [q, 'answer[self,all]', 'answer[others,previous]']"


def test_a_debate_is_one_step() -> None:
    debate = graph(DEBATE)
    assert list(debate.nodes)[:4] == ["answer[ann,1]", "answer[bob,1]", "answer[cleo,1]", "answer[ann,2]"]
    assert reads(debate, "answer[bob,1]") == ["agent:bob", "q"]
    assert reads(debate, "answer[cleo,1]") == ["q"]
    mine = ["answer[bob,1]", "answer[bob,2]"]
    assert reads(debate, "answer[bob,3]") == ["agent:bob", "q", *mine, "answer[ann,2]", "answer[cleo,2]"]
    assert debate.nodes["answer[bob,3]"].waits == (*mine, "answer[ann,2]", "answer[cleo,2]")


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("answer", ["answer[ann,3]", "answer[bob,3]", "answer[cleo,3]"]),
        ("answer[bob]", ["answer[bob,3]"]),
        ("answer[bob,1]", ["answer[bob,1]"]),
        ("answer[ bob , all ]", ["answer[bob,1]", "answer[bob,2]", "answer[bob,3]"]),
        ("answer[all,2]", ["answer[ann,2]", "answer[bob,2]", "answer[cleo,2]"]),
        ("answer[self]", ["answer[bob,3]"]),
        ("answer[others,last]", ["answer[ann,3]", "answer[cleo,3]"]),
    ],
)
def test_reads_of_another_step(read: str, expected: list[str]) -> None:
    assert reads(graph(DEBATE, f"step: final, agent: bob, read: ['{read}']"), "final")[1:] == expected


def test_rounds_in_lockstep() -> None:
    steps = graph(
        "step: draft, rounds: 2, read: [q, 'draft[previous]', 'review[previous]']",
        "step: review, rounds: 2, read: ['draft[current]']",
    )
    assert reads(steps, "draft[1]") == ["q"]
    assert reads(steps, "review[1]") == ["draft[1]"]
    assert reads(steps, "draft[2]") == ["q", "draft[1]", "review[1]"]


def test_own_rounds_by_number_are_empty_until_then() -> None:
    steps = graph("step: a, rounds: 3, read: [q, 'a[1]']")
    assert [reads(steps, f"a[{n}]") for n in (1, 2, 3)] == [["q"], ["q", "a[1]"], ["q", "a[1]"]]


def test_numbers_as_members() -> None:
    steps = graph("step: p, for_each: 3, read: [q]", "step: c, count: 3, read: ['p[self]', 'p[others]']")
    assert reads(steps, "c[2]") == ["p[2]", "p[1]", "p[3]"]


def test_the_prompt_can_be_placed() -> None:
    assert reads(graph("step: a, agent: ann, read: [q, prompt]"), "a") == ["q", "agent:ann"]


def test_a_message_may_be_read_twice() -> None:
    assert reads(graph("step: a, read: [q, q]"), "a") == ["q", "q"]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (("step: a, read: [nothing]",), "unknown message or step 'nothing'"),
        (("step: a, read: [a]",), "reads itself"),
        (("step: a, rounds: 2, read: [a]",), "in the same round"),
        (("step: a, rounds: 2, read: ['a[last]']",), "in the same round"),
        (("step: a, rounds: 2, read: ['a[2]']",), "comes after every reader"),
        (("step: a, read: ['q[all]']",), "fixed message"),
        (("step: a, read: [b]", "step: b, read: [a]"), "a -> b -> a"),
        (("step: a, rounds: 2, read: ['b[current]']", "step: b, rounds: 2, read: ['a[current]']"), "cycle"),
        (("step: a", "step: b, read: ['a[all]']"), "neither fans out nor has rounds"),
        (("step: a, count: 2", "step: b, read: ['a[all,last]']"), "has no rounds"),
        (("step: a, count: 2", "step: b, read: ['a[3]']"), "not a member"),
        (("step: a, count: 2", "step: b, read: ['a[self]']"), "no member in common"),
        (("step: a, count: 2", "step: b, count: 3, read: ['a[self]']"), "means nothing to '3'"),
        (("step: a, for_each: agents", "step: b, read: ['a[anna]']"), "did you mean 'ann'"),
        (("step: a, for_each: agents, rounds: 2", "step: b, read: ['a[previous]']"), "a[all,previous]"),
        (("step: a, rounds: 2", "step: b, read: ['a[previous]']"), "a reader without rounds"),
        (("step: a, rounds: 2", "step: b, rounds: 4, read: ['a[previous]']"), "reaches round 3"),
        (("step: a, rounds: 2", "step: b, read: ['a[3]']"), "which has 2"),
        (("step: a, rounds: 2", "step: b, read: ['a[ann]']"), "'ann' is not a round"),
        (("step: a, count: 2", "step: b, read: ['a[winner(c)]']"), "not a step that votes"),
        (("step: a, for_each: [ann, dan]",), "unknown agent 'dan'"),
        (("step: a, for_each: [ann, ann]",), "listed twice"),
        (("step: a, agent: dan",), "unknown agent"),
        (("step: a, agent: ann, for_each: agents",), "runs as each of them"),
        (("step: a", "step: a"), "an earlier step"),
        (("step: q",), "also a message"),
        (("step: a, read: [prompt]",), "no prompt"),
        (("step: a, read: ['prompt[x]']",), "prompt"),
        (("step: a, count: 3", "step: b, read: [a], join: {at_least: 4}"), "can never fire"),
        (("step: a, read: [q], join: any",), "nothing to wait for"),
        (("step: a, join: {rest: cancel}",), "goes with `at_least`"),
        (("step: a, external: {}, sampling: {seed: 1}",), "generates nothing"),
        (("step: a, vote: b", "step: b"), "no members"),
        (("step: a, count: 2, vote: a",), "vote over itself"),
        (("step: a, vote: {over: b, quorum: 2}", "step: b, count: 2"), "can never be decided"),
        (("step: a, vote: 'b[1]'", "step: b, count: 2"), "over all members"),
        (("step: a, vote: b", "step: b, count: 2, read: ['c[winner(a)]']", "step: c, count: 3"), "members of 'b'"),
        (("step: b, count: 2, read: ['b[winner(a)]']", "step: a, vote: b, read: [b]"), "reads itself"),
        (("step: b, count: 2, read: [c]", "step: c, read: ['b[winner(a)]']", "step: a, vote: b"), "cycle"),
        (("step: a, count: 10000", "step: b, count: 10000"), "too many instances"),
        (("step: a, count: 1000", "step: b, count: 1000, read: [a]"), "too many reads"),
    ],
)
def test_reads_and_steps_that_mean_nothing(steps: tuple[str, ...], words: str) -> None:
    with pytest.raises(WorkflowErrors) as caught:
        parse(*steps)
    assert words in str(caught.value)
    assert all(d.line is not None for d in caught.value.diagnostics)


def test_the_grammar_of_selectors() -> None:
    assert parse_selector(" a [ winner( v ) , 2 ] ") == Selector("a", (Winner("v"), 2))
    for wrong in [
        "",
        "a[]",
        "a[b",
        "a]b[",
        "a[b,c,d]",
        "a[b][c]",
        "a b",
        "1a",
        "a[0]",
        "a[-1]",
        "a[winner()]",
        "a" * 400,
    ]:
        with pytest.raises(SelectorError):
            parse_selector(wrong)
