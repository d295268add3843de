"""Times to execution on examples: joins, loops, steps that run, tools, what is learned of steps."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.timing import UNHEARD_S, StepHistory, Timing, step_path

HEAD = "version: 1\nname: w\nmessages: {m: hello}\n"
JOIN = """
steps:
  - {step: short, read: [m]}
  - {step: long, external: {}, read: [m]}
  - {step: both, read: [short, long]}
  - {step: either, read: [short, long], join: any}
  - {step: wrap, read: [both, either]}
outputs: {o: both, p: {read: either}}
"""
LOOP = """
steps:
  - loop: {until: review.text == "ok", max: 3, on_max: continue}
    steps:
    - {step: act, read: [m, "review[previous]"]}
    - {step: review, read: [act]}
  - {step: final, read: [act, "review[all]"]}
"""


def history(**seconds: float) -> StepHistory:
    learned = StepHistory()
    for name, value in seconds.items():
        learned.observe("w", name, "external" if name == "long" else "generate", value)
    return learned


class Timed:
    """A run, its times, and when its instances began: on a clock that stands still until it is told."""

    def __init__(self, text: str, learned: StepHistory) -> None:
        self.run = Run(parse_yaml(HEAD + text), {})
        self.learned = learned
        self.began = {step.address: 100.0 for step in self.run.ready()}
        nodes = self.run.graph.nodes.values()
        self.timing = Timing("w", self.run.look_ahead(), [node.kind for node in nodes])

    def at(self, now_s: float, inner_s: Mapping[str, float] | None = None) -> dict[str, float]:
        self.run.look_ahead()
        self.timing.update(self.learned, now_s, self.began.get, inner_s or {})
        begins = self.timing.begins_s().tolist()
        return {a: s for a, s in zip(self.run.graph.nodes, begins, strict=True) if s != float("inf")}

    def finish(self, address: str, now_s: float, text: str = "x") -> None:
        self.run.finish(address, text)
        self.began |= {step.address: now_s for step in self.run.ready()}


def test_an_and_join_begins_after_the_latest_and_an_or_join_after_the_earliest() -> None:
    timed = Timed(JOIN, history(short=2.0, long=30.0, both=1.0, either=4.0, wrap=1.0))
    assert timed.at(100.0) == {"short": 0, "long": 0, "both": 30.0, "either": 2.0, "wrap": 31.0}
    assert timed.timing.next_end_s == 2.0
    assert timed.timing.ends_s() == 31.0  # of `both`, the later output


def test_what_runs_takes_what_is_left_of_its_time_and_what_is_overdue_some_more() -> None:
    timed = Timed(JOIN, history(short=2.0, long=30.0, both=1.0, either=4.0, wrap=1.0))
    assert timed.at(101.5) == {"short": 0, "long": 0, "both": 28.5, "either": 0.5, "wrap": 29.5}
    assert timed.at(110.0)["either"] == pytest.approx(4.0)  # half of what it is late by
    assert timed.timing.next_end_s == pytest.approx(4.0)
    assert timed.at(202.0)["either"] == pytest.approx(36.0)  # the other one is late by 72 s itself
    timed.finish("short", 110.0)
    assert timed.at(110.0) == {"long": 0, "either": 0, "both": 20.0, "wrap": 21.0}


def test_a_loop_is_expected_to_end_at_the_soonest() -> None:
    timed = Timed(LOOP, history(act=2.0, review=1.0, final=9.0))
    assert timed.at(100.0) == {
        "act[1]": 0, "review[1]": 2, "act[2]": 3, "review[2]": 5, "act[3]": 6, "review[3]": 8, "final": 3,
    }  # fmt: skip
    timed.finish("act[1]", 102.0)
    timed.finish("review[1]", 103.0, "bad")
    assert timed.at(104.0) == {"act[2]": 0, "review[2]": 1, "act[3]": 2, "review[3]": 4, "final": 2}


def test_a_run_within_takes_as_long_as_it_says() -> None:
    text = """
workflows: {inner: {version: 1, name: inner, steps: [{step: a}, {step: b, read: [a]}]}}
steps: [{step: sub, workflow: inner}, {step: wrap, read: [sub]}]
"""
    timed = Timed(text, history(a=1.0))
    assert timed.at(100.0)["wrap"] == UNHEARD_S["workflow"]
    assert timed.at(100.0, {"sub": 3.5})["wrap"] == 3.5


def test_rounds_and_members_are_one_step_and_later_ones_count_more() -> None:
    learned = StepHistory()
    assert learned.seconds("w", "turn", "generate") == UNHEARD_S["generate"]
    assert learned.tokens("w", "turn") is None
    learned.observe("w", "turn[ann,1]", "generate", 1.0, 10)
    learned.observe("w", "turn[bob,7]", "generate", 3.0, 30)
    assert learned.seconds("w", "turn[1]", "generate") == pytest.approx(2.0)
    assert learned.tokens("w", "turn") == pytest.approx(20)
    for _ in range(100):
        learned.observe("w", "turn", "generate", 9.0)
    assert learned.seconds("w", "turn", "generate") == pytest.approx(9.0)
    learned.observe("w", "turn", "generate", 4.0)
    assert learned.seconds("w", "turn", "generate") == pytest.approx(8.0)
    assert learned.seconds("v", "new", "generate") == pytest.approx(8.0)  # as others of its kind
    assert learned.seconds("w", "turn", "external") == UNHEARD_S["external"]


def test_the_step_heard_of_the_longest_ago_is_forgotten() -> None:
    learned = StepHistory(max_names=2)
    for name in ("a", "b", "a", "c"):
        learned.observe("w", name, "generate", 1.0, 5)
    assert learned.tokens("w", "b") is None
    assert learned.tokens("w", "a") == 5


def test_the_path_of_a_step_has_no_members_and_no_rounds() -> None:
    assert step_path("research[2]/draft[ann,1]") == "research/draft"
    assert step_path("plain") == "plain"
