"""Look-ahead on examples: loops, branches, likelihoods, and who reads what."""

from __future__ import annotations

import subprocess
import sys

import pytest

from laban.cluster.workflow.lookahead import Likelihoods, LookAhead, NextUse
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Run

HEAD = "version: 1\nname: w\nmessages: {m: hello}\n"
LOOP = """
steps:
  - loop: {until: review.text == "ok", max: 3, on_max: fail}
    steps:
    - {step: act, read: [m, "review[previous]"]}
    - {step: review, read: [act]}
  - {step: final, read: [act, "review[all]"]}
"""
BRANCHES = """
steps:
  - {step: triage, read: [m]}
  - when: triage.text == "bug"
    steps:
    - {step: fix, read: [triage]}
    - {step: check, read: [triage, fix], when: fix.text == "hard"}
    - {step: extra, read: [check]}
    otherwise:
    - {step: reply, read: [m]}
  - {step: final, read: [m, extra, reply]}
"""


def after(text: str, **texts: str) -> Run:
    """The run after these steps, first rounds, have made their texts; the others that were ready run."""
    run = Run(parse_yaml(HEAD + text), {})
    for name, said in texts.items():
        address = next(step.address for step in run.ready() if step.step == name)
        run.finish(address, said)
    return run


def test_a_loop_may_end_after_each_round() -> None:
    ahead = after(LOOP).look_ahead()
    assert ahead.steps_to_execution() == {
        "act[1]": 0, "act[2]": 2, "act[3]": 4, "review[1]": 1, "review[2]": 3, "review[3]": 5, "final": 2,
    }  # fmt: skip
    assert ahead.next_use("act[1]") == NextUse(1, "review[1]", 1.0)
    assert ahead.readers("review[1]") == (NextUse(2, "final", 1.0), NextUse(2, "act[2]", 0.5))
    assert ahead.readers("review[2]") == (NextUse(2, "final", 1.0), NextUse(4, "act[3]", 0.25))


def test_a_loop_that_goes_on_puts_off_what_comes_after_it() -> None:
    ahead = after(LOOP, act="a", review="bad").look_ahead()
    assert ahead.steps_to_execution() == {"act[2]": 0, "act[3]": 2, "review[2]": 1, "review[3]": 3, "final": 2}


def test_a_loop_that_ends_leaves_the_rest_of_it_out() -> None:
    ahead = after(LOOP, act="a", review="ok").look_ahead()
    assert ahead.steps_to_execution() == {"final": 0}
    assert ahead.next_use("act[2]") is None


def test_a_join_goes_on_without_the_branch_that_is_not_taken() -> None:
    assert after(BRANCHES).look_ahead().steps_to_execution() == {
        "triage": 0, "fix": 1, "check": 2, "extra": 3, "reply": 1, "final": 2,
    }  # fmt: skip
    bug = after(BRANCHES, triage="bug").look_ahead()
    assert bug.steps_to_execution() == {"fix": 0, "check": 1, "extra": 2, "final": 3}
    # Nothing of the branch is read, as neither `extra` nor `reply` was run: so it will not run.
    assert after(BRANCHES, triage="bug", fix="easy").look_ahead().steps_to_execution() == {}


def test_likelihoods_multiply_along_the_branches_and_follow_what_is_read() -> None:
    ahead = after(BRANCHES).look_ahead()
    likely = {address: ahead.readers(key)[-1] for address, key in (("check", "fix"), ("extra", "check"))}
    assert {address: use.likelihood for address, use in likely.items()} == {"check": 0.25, "extra": 0.25}
    learned = Likelihoods()
    for decision in (True, True, False):
        learned.observe("w", {"when(1)": decision, **({"when(check)": True} if decision else {})})
    ahead = after(BRANCHES).look_ahead(learned)
    assert ahead.readers("fix") == (NextUse(2, "check", pytest.approx(3 / 5 * 3 / 4)),)
    assert ahead.next_use("reply") == NextUse(2, "final", pytest.approx(3 / 5 * 3 / 4))
    assert ahead.next_use("m") == NextUse(0, "triage", 1.0)


def test_likelihoods_are_counted_by_decision_and_forgotten_in_turn() -> None:
    learned = Likelihoods(max_names=2)
    assert learned.probability("w", "until(l)[1]") == 0.5
    learned.observe("w", {"until(l)[1]": False, "until(l)[2]": False, "until(l)[3]": True})
    assert learned.probability("w", "until(l)[7]") == 2 / 5
    assert learned.probability("other", "until(l)[7]") == 0.5
    learned.observe("w", {"when(step[ann,2])": True, "when(1)[2]": False})
    assert learned.probability("w", "when(step)") == learned.probability("w", "when(step[bob,1])") == 2 / 3
    assert learned.probability("w", "when(1)") == 1 / 3
    assert learned.probability("w", "until(l)[1]") == 0.5


def test_of_equally_soon_readers_the_likelier_comes_first_then_the_earlier() -> None:
    text = """
steps:
  - {step: a, read: [m]}
  - {step: b, read: [a], when: a.text == "x"}
  - {step: c, read: [a]}
  - {step: d, read: [a]}
"""
    ahead = after(text).look_ahead()
    assert [use.address for use in ahead.readers("a")] == ["c", "d", "b"]
    assert ahead.next_use("a") == NextUse(1, "c", 1.0)


def test_a_running_instance_has_read_what_it_reads() -> None:
    run = after("steps: [{step: a, read: [m]}, {step: b, read: [a]}]")
    assert run.look_ahead().next_use("m") == NextUse(0, "a", 1.0)
    run.ready()
    assert run.look_ahead().next_use("m") is None
    assert run.look_ahead().next_use("a") == NextUse(1, "b", 1.0)


def test_the_other_branch_is_not_waited_for() -> None:
    text = """
steps:
  - {step: a, read: [m]}
  - {step: slow, read: [m, "slow[previous]"], rounds: 4}
  - when: a.text == "x"
    steps: [{step: b, read: [a]}]
    otherwise: [{step: c, read: [b, "slow[4]"], join: any}]
"""
    assert after(text).look_ahead().steps_to_execution()["c"] == 4


def test_reads_of_one_branch_are_there_together() -> None:
    text = """
steps:
  - {step: a, read: [m]}
  - when: a.text == "x"
    steps: [{step: b, read: [a]}, {step: c, read: [b]}]
  - {step: d, rounds: 3, read: [b, c, "d[previous]"]}
"""
    assert after(text).look_ahead().steps_to_execution()["d[3]"] == 5


def test_reads_that_hang_on_one_gate_in_two_ways_may_be_expected_too_early() -> None:
    """`d` is soonest if the branch is taken, `e` if it is not: never both."""
    text = """
steps:
  - {step: a, read: [m]}
  - {step: late, rounds: 5, read: [m, "late[previous]"]}
  - when: a.text == "x"
    steps: [{step: b, read: [a]}]
    otherwise: [{step: c, read: [a]}]
  - {step: d, read: [b, "late[5]"], join: any}
  - {step: e, read: [c, "late[5]"], join: any}
  - {step: f, read: [d, e]}
"""
    assert after(text).look_ahead().steps_to_execution()["f"] == 3  # in truth 6


def test_an_update_for_another_run_starts_over() -> None:
    done, fresh = after(LOOP, act="a", review="ok"), after(LOOP)
    ahead = LookAhead(done.graph)  # of an equal graph
    before = ahead.steps_to_execution()
    ahead.update(done._progress)
    ahead.update(fresh._progress)
    assert ahead.steps_to_execution() == before == fresh.look_ahead().steps_to_execution()


def test_a_workflow_is_understood_without_numba() -> None:
    code = (
        "import sys; from laban.cluster.workflow.run import Run; from laban.cluster.workflow.parse import parse_yaml;"
        f"Run(parse_yaml({HEAD + BRANCHES!r}), {{}}).ready(); sys.exit('numba' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_reads_only_what_no_round_of_a_loop_ran_may_be_passed_over_at_once() -> None:
    text = """
steps:
  - {step: y, read: [m]}
  - loop: {max: 2, on_max: continue, until: a.text == "ok"}
    steps:
    - {step: a, read: [m]}
    - {step: x, read: [a], when: a.text == "more"}
  - {step: z, read: [x]}
  - {step: final, read: [y, z]}
"""
    assert after(text).look_ahead().steps_to_execution()["final"] == 1  # it ends with the first round, without `x`
    assert after(text, a="ok").look_ahead().steps_to_execution() == {"y": 0, "final": 1}
