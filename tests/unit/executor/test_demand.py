"""How much memory a run is taken to need at once."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_workflows import workflows
from scripted_engine import CharFraming, CharTokenizer

from laban.cluster.admission import Demand
from laban.cluster.demand import FRAME_TOKENS, TOOL_TOKENS, DemandProfile, RunDemand, Sizes, levels
from laban.cluster.messages import Language, MessageBook
from laban.cluster.view_tree import ViewTree
from laban.cluster.workflow.parse import parse_dict, parse_yaml
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.timing import StepHistory

HEAD = """
version: 1
name: w
messages: {m: hello there, n: hi}
agents: {ann: Be Ann, bob: Be Bob}
sampling: {max_tokens: 100}
"""
OWN = FRAME_TOKENS + 100


class Profiled:
    def __init__(self, text: str | dict[str, Any], history: StepHistory | None = None) -> None:
        workflow = parse_yaml(HEAD + text) if isinstance(text, str) else parse_dict(text)
        self.run = Run(workflow, {})
        self.book = MessageBook(Language(CharFraming(), CharTokenizer(), "space", max_context=10_000))
        for key, message in self.run.messages.items():
            self.book.add_text(key, message.role, message.text, message.name, path=key)
        sizes = Sizes("w", self.book, ViewTree(self.book), history or StepHistory(), 1)
        self.profile = DemandProfile(self.run, sizes)
        self.demand = RunDemand(self.run, sizes)

    def size(self, *keys: str) -> int:
        return sum(self.book.messages[key].home.num_tokens for key in keys)

    def finish(self, *addresses: str) -> None:
        self.run.ready()
        for address in addresses:
            self.run.finish(address, "x")
            self.run.ready()

    def fixed(self) -> dict[str, int]:
        """Tokens of what is shared, by text."""
        specs = self.profile._sizes.tree.specs
        return {"".join(map(chr, specs[key].tokens)): size for key, size in self.profile.now().shared.items()}


def test_a_chain_needs_what_its_widest_level_reads_and_makes() -> None:
    made = Profiled("steps: [{step: a, read: [m]}, {step: b, read: [m, a]}, {step: c, read: [n, b]}]")
    # b reads the root, m and a (made under that very view), and makes its own. c: n under the root, b under that.
    assert made.profile.now() == Demand(2 * OWN, made.profile.now().shared)
    assert sum(made.fixed().values()) == 1 + made.size("m")
    made.finish("a")
    assert made.profile.now().own_bytes == 2 * OWN
    made.finish("b")
    assert made.profile.now().own_bytes == 2 * OWN  # b again, behind n, and c
    assert sum(made.fixed().values()) == 1 + made.size("n")


def test_members_of_a_fan_out_need_their_room_at_once_and_share_what_they_read() -> None:
    made = Profiled("steps: [{step: part, for_each: 5, read: [m]}, {step: wrap, read: [part]}]")
    assert made.profile.now().own_bytes == 6 * OWN  # the parts in a row, each anew, and what is made of them
    assert Profiled("steps: [{step: part, for_each: 5, read: [m]}]").profile.now().own_bytes == 5 * OWN


def test_the_same_prompts_are_shared_by_their_ids() -> None:
    text = "steps: [{step: a, agent: ann, read: [m]}, {step: b, agent: bob, read: [m]}]"
    one, other = Profiled(text), Profiled(text)
    assert one.profile.now().shared == other.profile.now().shared
    assert len(one.profile.now().shared) == 5  # the root; two prompts, and behind each the message
    mine = Profiled(text.replace("read: [m]", "read: [m], fidelity: direct")).profile.now()
    assert len(mine.shared) == 4  # the message once, at home


def test_what_was_needed_is_not_any_more() -> None:
    made = Profiled("steps: [{step: a, for_each: 9}, {step: b, read: [m]}, {step: c, read: [n, b]}]")
    assert made.profile.now().own_bytes == 10 * OWN
    made.finish(*(f"a[{n}]" for n in range(1, 10)), "b")
    assert made.profile.now().own_bytes == 2 * OWN


def test_what_is_read_again_later_stays() -> None:
    made = Profiled(
        "steps: [{step: a}, {step: b, read: [m]}, {step: c, read: [a, b]}]".replace(
            "step: b, read: [m]", "step: b, read: [m, a]"
        )
    )
    made.finish("a", "b")
    assert made.profile.now().own_bytes == 3 * OWN  # a, behind it b anew, and c


def test_lengths_are_learned() -> None:
    history = StepHistory()
    for address, tokens in (("part[1]", 10), ("part[2]", 30), ("wrap", 500)):
        history.observe("w", address, "generate", 1.0, tokens)
    made = Profiled("steps: [{step: part, for_each: 3, read: [m]}, {step: wrap, read: [m]}]", history)
    assert made.profile.now().own_bytes == 3 * (FRAME_TOKENS + 20) + OWN  # never more than max_tokens


def test_tools_are_read_and_make_no_encoding_themselves() -> None:
    made = Profiled("steps: [{step: t, external: {tool: x}, read: [m]}, {step: wrap, read: [n, t]}]")
    assert made.profile.now().own_bytes == FRAME_TOKENS + TOOL_TOKENS + OWN


def test_runs_within_count_once_they_have_begun() -> None:
    text = """
workflows:
  inner:
    version: 1
    name: inner
    sampling: {max_tokens: 1000}
    messages: {doc: "", own: mine}
    steps: [{step: a, read: [own, doc]}, {step: b, for_each: 4, read: [own, a]}]
steps:
  - {step: begin, read: [m]}
  - {step: sub, workflow: inner, messages: {doc: begin}}
  - {step: wrap, read: [m, sub]}
"""
    made = Profiled(text)
    before = made.profile.now().own_bytes
    made.finish("begin")
    for news in made.run.take_news():
        for message in news.messages:
            made.book.add_text(message.key, message.role, message.text, message.name, path=message.key)
    assert made.profile.now().own_bytes - before == pytest.approx(5 * (FRAME_TOKENS + 1000), rel=0.2)
    assert any("mine" in text for text in made.fixed())


def test_levels_are_the_longest_ways() -> None:
    graph = Profiled(
        "steps: [{step: a}, {step: b, read: [a]}, {step: c, read: [a, b]}, {step: d, read: [m]}]"
    ).run.graph
    assert {unit: level for unit, level in levels(graph).items() if unit in graph.nodes} == {
        "a": 0,
        "b": 1,
        "c": 2,
        "d": 0,
    }


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workflows(), st.randoms(use_true_random=False))
def test_a_profile_falls_as_the_run_goes_on_and_covers_each_call(data: dict[str, Any], random: Any) -> None:
    made = Profiled(data)
    graph = made.run.graph
    level_of = levels(graph)
    assert all(level_of[wait] < level_of[a] for a, n in graph.nodes.items() for wait in n.waits if wait in graph.nodes)
    last = made.profile.now()
    running: list[str] = []
    for _ in range(500):
        running += [step.address for step in made.run.ready() if "/" not in step.address]
        running = [address for address in running if made.run.status(address).state == "running"]
        if not running or made.run.state != "running" or made.run.inner_runs():
            break
        now = made.profile.now()
        assert now.num_bytes <= last.num_bytes <= made.demand.now().num_bytes
        last = now
        for address in running:  # what it reads, and what it makes
            node = graph.nodes[address]
            if node.kind == "generate":
                keys = {*chain.from_iterable(s.keys for s in node.sources if s.fixed and s.begin is None is s.end)}
                assert now.num_bytes >= made.size(*(key for key in keys if key in made.book.messages))
                assert now.num_bytes >= FRAME_TOKENS + made.run.sampling(address).max_tokens
        address = running.pop(random.randrange(len(running)))
        if made.run.unfit(address, "word: ok\nscore: 3"):
            made.run.fail(address, "broken")
        else:
            made.run.finish(address, "word: ok\nscore: 3")


def test_a_bound_is_as_good_as_the_profile_until_somebody_asks() -> None:
    made = Profiled("steps: [{step: a, read: [m]}, {step: b, for_each: 3, read: [m, a]}]")
    assert made.demand.is_rough
    assert made.demand.now() == Demand((3 + 3 * 4) * (TOOL_TOKENS + FRAME_TOKENS))
    made.demand.refine()
    assert not made.demand.is_rough
    assert made.demand.now() == made.profile.now()
