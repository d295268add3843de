"""A recorded run as a lesson: what each level's calls read, and where; and what is said is what was recorded."""

from __future__ import annotations

import asyncio

import pytest
from scripted_engine import CharFraming, CharTokenizer, decode

from laban.actors.errors import FailedPrecondition
from laban.actors.tuning.lessons import Graph, Lesson
from laban.cluster.audit.records import RecordedStep
from laban.cluster.messages import Language
from laban.cluster.tuning.lessons import Trace, lesson_of, split
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.states import Overrides

YAML = """
version: 1
name: relay
inputs: {task: {}}
messages: {task: "{{ task }}"}
agents: {ann: You are Ann., bob: You are Bob.}
steps:
- {step: draft, agent: ann, read: [task]}
- {step: tool, external: {}, read: [draft]}
- {step: review, agent: bob, read: [task, tool, draft]}
"""
RECORDED = (
    RecordedStep("draft", "four", tuple(map(ord, "four"))),
    RecordedStep("tool", "done"),
    RecordedStep("review", "fine", tuple(map(ord, "fine"))),
)


def lesson(recorded: tuple[RecordedStep, ...] = RECORDED, level: str = "direct") -> Lesson:
    language = Language(CharFraming(), CharTokenizer(), "tune", 2000)
    trace = Trace(7, {"task": "Add."}, recorded)
    return asyncio.run(lesson_of(trace, parse_yaml(YAML), Overrides(), level, language))


def said(graph: Graph) -> list[tuple[str, str]]:
    return [(each.step, decode(graph.nodes[each.message].tokens[each.begin : each.end])) for each in graph.said]


def seen(graph: Graph, number: int) -> list[tuple[str, int]]:
    """What the message that was said as the `number`th attends to, and from which position on."""
    view = graph.nodes[graph.said[number].message].view
    return [(decode(graph.nodes[p.message].tokens[p.begin : p.end]), p.position) for p in view]


def test_both_levels_say_what_was_recorded_and_its_end() -> None:
    made = lesson()
    assert made.line == 7
    assert said(made.exact) == said(made.level) == [("draft", "four|"), ("review", "fine|")]


def test_both_read_the_same_at_the_same_places() -> None:
    made = lesson()
    assert seen(made.exact, 1) == seen(made.level, 1)
    texts = [text for text, _ in seen(made.exact, 1)]
    assert "".join(texts) == "^[system:]You are Bob.|[user:]Add.|[user:]done|[assistant:]four|"


def test_exact_is_one_chain_and_direct_reads_messages_as_they_were_made() -> None:
    made = lesson()
    exact, level = (
        [graph.nodes[p.message] for p in graph.nodes[graph.said[1].message].view] for graph in (made.exact, made.level)
    )
    ends = [0]
    for node in exact:
        assert node.start == ends[-1], "each where the one before it ends"
        ends.append(ends[-1] + len(node.tokens))
    starts = [node.start for node in level]
    assert starts[1:4] == [1, 1, 1], "given messages stand after the root"
    draft = made.level.nodes[made.level.said[0].message]
    assert level[4] == draft, "the very message that was generated"
    assert len(made.level.nodes) < len(made.exact.nodes)


def test_a_recording_of_another_workflow_is_refused() -> None:
    with pytest.raises(FailedPrecondition):
        lesson((RecordedStep("review", "x", (1,)),))
    with pytest.raises(FailedPrecondition, match="nothing was generated"):
        lesson((RecordedStep("draft", state="failed", error="gone"),))


def test_some_are_held_out_the_same_ones_every_time() -> None:
    lines = list(range(1, 21))
    kept, held = split(lines, 0.1, seed=3)
    assert sorted(kept + held) == lines
    assert len(held) == 2
    assert split(lines[::-1], 0.1, seed=3) == (kept, held)
    assert split([1, 2], 0.01, seed=0)[1] != []
