"""What a run will read next: on examples, and on random workflows against the views that its calls then have."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from played_runs import Played, played, seconds
from random_workflows import workflows

from laban.cluster import outlook as module
from laban.cluster.outlook import RunOutlook
from laban.cluster.view_tree import ViewTree
from laban.cluster.workflow.parse import parse_dict, parse_yaml

CHAIN = """
steps:
  - {step: draft, agent: ann, read: [m]}
  - {step: review, agent: bob, read: [m, draft]}
  - {step: wrap, agent: ann, read: [m, draft, review], fidelity: direct}
"""


def test_fixed_prompts_are_foreseen_under_the_view_that_they_will_have() -> None:
    run = played(CHAIN, seconds(draft=2.0, review=3.0))
    look = run.look()
    assert [(r.address, r.steps, r.in_s, r.whole) for r in look.readers] == [
        ("review", 1, 2.0, False),
        ("wrap", 2, 5.0, False),
    ]
    root, prompt, message = run.foreseen(look, "review")
    assert look.uses[prompt].fixed
    assert look.uses[message].fixed
    assert message != run.home("m")  # it stands behind the prompt
    assert run.outlook.specs[message].tokens == run.book.messages["m"].home.tokens
    assert look.uses[root].in_s == 2.0
    assert look.uses[root].rank == 7
    assert look.uses[run.home("m")].steps == 2  # read directly by the last step
    run.finish("draft")
    run.begin()
    assert run.read("review") == [*run.foreseen(look, "review"), run.read("review")[-1]]


def test_what_was_made_is_used_as_soon_as_it_is_there() -> None:
    run = played(CHAIN)
    run.look()
    run.finish("draft")
    look = run.look()  # the review is ready now
    assert run.foreseen(look, "review")[-1] != run.home("draft")
    use = look.uses[run.foreseen(look, "review")[-1]]
    assert (use.steps, use.in_s, use.fixed) == (0, 0.0, False)
    assert look.uses[run.home("draft")].steps == 1
    assert next(r for r in look.readers if r.address == "review").whole


def test_a_call_that_waits_for_its_turn_still_reads_and_one_that_began_does_not() -> None:
    run = played("steps: [{step: part, for_each: 3, read: [m]}, {step: wrap, read: [n]}]")
    run.queued = {"part[1]", "part[2]"}
    assert run.home("m") in run.look().uses
    run.queued = {"part[2]"}
    assert run.home("m") in run.look().uses
    run.queued = set()
    assert run.home("m") not in run.look().uses


def test_branches_count_for_what_they_are_likely_to_be() -> None:
    text = """
steps:
  - {step: triage, external: {tool: t}, read: [m]}
  - {step: fix, read: [m, n], when: triage.text == "bug"}
  - {step: wrap, read: [n, triage]}
"""
    run = played(text, seconds(fix=5.0))
    for _ in range(8):
        run.likelihoods.observe("w", {"when(fix)": False})
    look = RunOutlook(run.run, ViewTree(run.book), run, run.history, run.likelihoods, rank=0).look(run.now_s)
    likely = {reader.address: reader.likelihood for reader in look.readers}
    assert likely["fix"] == pytest.approx(0.1)
    fixed_in_branch = run.foreseen(look, "fix")[-1]
    assert look.uses[fixed_in_branch].likelihood == pytest.approx(0.1)
    assert look.uses[run.home("n")].likelihood == 1.0


def test_uses_of_one_encoding_make_one_expectation() -> None:
    found = module._Uses()
    found.add("e", False, 3, 1.0, 0.5)
    found.add("e", True, 2, 5.0, 1.0)
    found.add("e", False, 1, 9.0, 1.0)
    use = found.as_uses(4)["e"]
    assert (use.steps, use.in_s, use.likelihood, use.fixed, use.rank) == (2, 3.0, 1.0, True, 4)


def test_candidates_are_foreseen_where_the_winner_will_stand() -> None:
    text = """
steps:
  - {step: idea, for_each: 2, read: [m]}
  - {step: judge, vote: idea, read: [m, idea]}
  - {step: refine, read: [m, "idea[winner(judge)]"]}
"""
    run = played(text)
    run.finish("idea[1]", "x")
    run.finish("idea[2]", "y")
    run.begin()
    use = run.look().uses[run.home("idea[2]")]  # made under this very view
    assert (use.steps, use.likelihood) == (1, 0.5)
    run.finish("judge", "2")
    look = run.look()
    assert run.foreseen(look, "refine")[-1] == run.home("idea[2]")
    assert run.home("idea[1]") not in look.uses


def test_a_long_wait_for_a_tool_is_far_off_in_seconds() -> None:
    run = played("steps: [{step: tool, external: {tool: t}}, {step: wrap, read: [m, tool]}]", seconds(tool=600.0))
    run.now_s += 60
    look = run.look()
    assert [(r.steps, r.in_s) for r in look.readers] == [(1, pytest.approx(540.0))]
    assert look.again_s == pytest.approx(540.0)


def test_runs_within_are_looked_into() -> None:
    text = """
workflows:
  inner:
    version: 1
    name: inner
    messages: {doc: "", own: mine}
    steps: [{step: a, read: [doc]}, {step: b, read: [own, doc, a]}]
steps:
  - {step: begin, read: [m]}
  - {step: sub, workflow: inner, messages: {doc: begin}}
  - {step: wrap, read: [m, sub]}
"""
    run = played(text, seconds(**{"begin": 1.0, "sub/a": 2.0, "sub/b": 3.0, "wrap": 1.0}))
    run.finish("begin")
    assert run.home("begin") in run.look().uses  # given to the run within, which has not begun
    run.begin()
    look = run.look()
    assert [(r.address, r.steps, r.in_s) for r in look.readers] == [("sub/b", 1, 2.0), ("wrap", 1, 5.0)]
    assert look.uses[run.foreseen(look, "sub/b")[1]].fixed
    run.finish("sub/a")
    foreseen = run.foreseen(run.look(), "sub/b")
    run.begin()
    assert run.read("sub/b") == foreseen


def test_a_large_run_is_left_out_until_its_look_ahead_was_begun() -> None:
    run = played("steps: [{step: part, for_each: 250, read: [m]}, {step: wrap, read: [m, part]}]")
    assert not run.look().uses
    assert run.outlook.unprepared == [run.run]
    run.run.begin_look_ahead(run.likelihoods)
    assert [reader.address for reader in run.look().readers] == ["wrap"]
    assert not run.outlook.unprepared


def test_no_more_is_looked_at_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_READERS", 3)
    run = played("steps: [{step: begin}, {step: then, for_each: 20, read: [m, begin]}, {step: wrap, read: [n, then]}]")
    look = run.look()
    assert [reader.address for reader in look.readers] == ["then[1]", "then[2]", "then[3]"]
    assert run.home("n") not in look.uses


def test_what_no_step_will_read_any_more_is_told_once() -> None:
    text = """
steps:
  - {step: draft, agent: ann, read: [n]}
  - {step: review, agent: bob, read: [draft, m]}
  - {step: wrap, agent: ann, read: [n, draft]}
"""
    run = played(text)
    assert not run.look().over
    run.finish("draft")
    assert not run.look().over  # the last step goes on from where it was made
    run.begin()
    assert not run.look().over
    behind = run.read("review")[-2:]  # the draft behind another prompt, and a fixed message behind that
    run.finish("review")
    assert run.look().over == {each: {"w0"} for each in [*behind, run.home("review")]}
    assert not run.look().over
    wrap = run.read("wrap")[-1]
    run.finish("wrap")
    assert wrap == run.home("draft")
    assert run.outlook.end().keys() == {run.home("draft"), run.home("wrap")}


def test_what_a_branch_may_read_is_not_over_until_it_is_decided() -> None:
    text = """
steps:
  - {step: draft, agent: ann, read: [m]}
  - {step: tool, external: {tool: t}}
  - {step: fix, read: [draft], fidelity: direct, when: tool.text == "bad"}
"""
    run = played(text)
    run.finish("draft")
    assert not run.look().over
    run.finish("tool", "good")
    assert run.look().over.keys() == {run.home("draft")}


def test_what_only_the_winner_will_be_read_before_is_not_over_until_there_is_one() -> None:
    text = """
steps:
  - {step: idea, for_each: 2, read: [m]}
  - {step: check, agent: bob, read: ["idea[1]", n]}
  - {step: judge, vote: idea, read: [idea]}
  - {step: refine, agent: bob, read: ["idea[winner(judge)]", n]}
"""
    for winner in (1, 2):
        run = played(text)
        run.finish("idea[1]", "x")
        run.finish("idea[2]", "y")
        run.begin()
        behind = run.read("check")[-2:]
        run.finish("check")
        assert set(behind).isdisjoint(run.look().over)
        run.finish("judge", str(winner))
        over = run.look().over.keys()
        assert set(behind).isdisjoint(over) if winner == 1 else set(behind) <= over


def test_what_one_run_is_given_is_its_own_and_prompts_are_not() -> None:
    text = """
inputs: {topic: {default: tea}}
messages: {task: "about {{topic}}"}
agents: {ann: Be Ann}
steps: [{step: draft, agent: ann, read: [task]}, {step: wrap, agent: ann}]
"""
    run = Played(parse_yaml("version: 1\nname: w\n" + text))
    run.begin()
    prompt, task = run.read("draft")[-2:]
    run.finish("draft")
    assert run.look().over.keys() == {task, run.home("draft")}
    run.finish("wrap")
    assert prompt not in run.outlook.end()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workflows(), st.sampled_from(["", "^"]), st.sampled_from([3, 256]), st.randoms(use_true_random=False))
def test_what_is_over_is_never_read_again(data: dict[str, Any], root: str, most: int, random: Any) -> None:
    run = Played(parse_dict(data), root=root)
    running: list[str] = []
    over: set[str] = set()
    said = count()

    def look() -> None:
        told = set(run.look().over)
        assert not told & over
        over.update(told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_READERS", most)
        for _ in range(1000):
            began = run.begin()
            for step in began:
                running.append(step.address)
                if step.kind == "generate":
                    assert over.isdisjoint(run.read(step.address))
            if random.random() < 0.8:
                look()
            running = [address for address in running if run.run.status(address).state == "running"]
            if run.run.state != "running" or not (running or began):
                break
            if not running:
                continue
            run.now_s += 1.0
            address = running.pop(random.randrange(len(running)))
            text = "word: ok\nscore: 3" + "." * next(said)  # what is said again brings its encoding back
            if random.random() < 0.15 or run.run.unfit(address, text):
                run.fail(address)
            else:
                run.finish(address, text)
    if over:
        event("told before the end")
    last = set(run.outlook.end())
    assert not last & over
    made = {run.home(address) for address, step in run.steps.items() if address in run.book.messages
            and step.kind == "generate" and run.run.status(address).state == "succeeded"}  # fmt: skip
    assert made <= last | over


def test_what_was_over_and_is_said_again_is_told_again() -> None:
    text = "steps: [{step: try, rounds: 4, on_error: skip, read: ['try[previous]']}]"
    run = played(text)
    run.finish("try[1]", "tea")
    run.begin()
    run.fail("try[2]")
    run.begin()  # what the round before it said nobody can read any more
    said = run.home("try[1]")
    assert run.look().over.keys() == {said}
    run.finish("try[3]", "tea")
    assert run.home("try[3]") == said
    run.begin()
    assert run.read("try[4]")[-1] == said
    assert not run.look().over
    run.finish("try[4]", "milk")
    assert said in run.outlook.end()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workflows(), st.sampled_from(["", "!"]), st.sampled_from(["", "^"]), st.randoms(use_true_random=False))
def test_what_is_foreseen_is_what_calls_read(data: dict[str, Any], first_mark: str, root: str, random: Any) -> None:
    run = Played(parse_dict(data), first_mark=first_mark, root=root)
    running: list[str] = []
    for _ in range(1000):
        if not running or random.random() < 0.5:
            look = run.look()
            waiting = {reader.address: reader for reader in look.readers}
            assert waiting.keys().isdisjoint(running)
            began = run.begin()
            for step in began:
                running.append(step.address)
                if step.kind != "generate" or any(read.fidelity == "blended" for read in step.reads):
                    continue  # where a blended view is encoded again is not known before all of it is
                foreseen, read = run.foreseen(look, step.address), run.read(step.address)
                assert foreseen == read[: len(foreseen)]
                if step.address in waiting and waiting[step.address].whole:
                    event("foreseen whole")
                    assert foreseen == read
                    assert look.uses.keys() >= set(read)
        running = [address for address in running if run.run.status(address).state == "running"]
        if run.run.state != "running" or not running:
            if run.run.state == "running" and began:
                continue
            break
        run.now_s += 1.0
        address = running.pop(random.randrange(len(running)))
        if random.random() < 0.15 or run.run.unfit(address, "word: ok\nscore: 3"):
            run.fail(address)
        else:
            run.finish(address, "word: ok\nscore: 3")
