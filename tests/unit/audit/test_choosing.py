"""`auto` is the cheapest level that was surely enough found within the tolerance, and exact where that is not known."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from laban.cluster.audit.choosing import asks_auto, is_exact, resolve
from laban.cluster.audit.findings import Finding, Source, found_in
from laban.cluster.audit.identity import digest_of
from laban.cluster.audit.records import Decision, StepAudit
from laban.cluster.audit.tally import MIN_CALLS, Tally
from laban.cluster.workflow.fidelity import CHEAPEST_FIRST
from laban.cluster.workflow.lint import lint
from laban.cluster.workflow.parse import parse_dict, parse_yaml, to_dict
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Step, Workflow
from laban.cluster.workflow.states import Overrides

FLOW = """
version: 1
name: flow
fidelity: auto
tolerance: 0.05
messages: {a: "some words", b: "others"}
steps:
  - {step: one, read: [a]}
  - {step: two, fidelity: direct, read: [b, {read: one, fidelity: auto, tolerance: 0.2}, a]}
  - loop: {name: again, max: 2}
    steps:
      - {step: three, read: [b, a]}
outputs: {all: three}
"""
PLAIN = Overrides()


def tally(kl: float, num: int = 400, flips: tuple[int, int] = (0, 0)) -> Tally:
    """Of calls that differ a little."""
    values = [kl * (0.9 + 0.2 * (n % 2)) for n in range(num)]
    return Tally(num, sum(values), sum(v * v for v in values), 10 * num, 9 * num, *reversed(flips))


def found(step: str, level: str, kl: float, read: int | None = None, source: Source = "audit", **more: int) -> Finding:
    return Finding(step, read, level, source, tally(kl, **more))


def levels(workflow: Workflow) -> dict[str, tuple[str, ...]]:
    """Of each step: of all its reads, as a run has them."""
    run = Run(workflow, {})
    return {node.step.step: tuple(source.fidelity for source in node.sources) for node in run.graph.nodes.values()}


def test_what_is_not_known_is_exact() -> None:
    resolved = resolve(parse_yaml(FLOW), PLAIN, [])
    assert levels(resolved.workflow) == {
        "one": ("exact",),
        "two": ("direct", "exact", "direct"),
        "three": ("exact",) * 2,
    }
    assert {(note.step, note.read, note.level) for note in resolved.notes} == {
        ("one", None, "exact"), ("two", 1, "exact"), ("three", None, "exact")
    }  # fmt: skip
    assert levels(parse_yaml(FLOW)) == levels(resolved.workflow)  # as it is where nobody chooses
    assert not asks_auto(resolved.workflow, resolved.overrides)


def test_the_cheapest_that_is_within_the_tolerance_is_taken() -> None:
    findings = [
        found("one", "direct", 0.2), found("one", "blended:0.15", 0.01), found("two", "direct", 0.1, read=1),
        found("three", "direct", 0.01), found("three", "blended:0.15", 0.001),
    ]  # fmt: skip
    resolved = resolve(parse_yaml(FLOW), PLAIN, findings)
    assert levels(resolved.workflow) == {"one": ("blended",), "two": ("direct",) * 3, "three": ("direct",) * 2}
    chosen = {note.step: note for note in resolved.notes if note.why}
    assert (chosen["one"].level, chosen["one"].num_calls) == ("blended:0.15", 400)
    assert chosen["two"].why == "within 0.2"
    known = {(note.step, note.level) for note in resolved.notes if not note.why}
    assert ("one", "direct") in known
    again = resolve(parse_dict(to_dict(resolved.workflow)), resolved.overrides, [])
    assert levels(again.workflow) == levels(resolved.workflow)  # as a restart has it


def shares(workflow: Workflow) -> dict[str, tuple[float | None, ...]]:
    """Of each step: of its reads that are blended, None for others."""
    run = Run(workflow, {})
    return {
        node.step.step: tuple(s.recompute_share if s.fidelity == "blended" else None for s in node.sources)
        for node in run.graph.nodes.values()
    }


def test_the_share_is_the_smallest_that_is_within_the_tolerance() -> None:
    text = FLOW.replace("read: [a]}", "recompute_share: 0.4, read: [a, {read: b, fidelity: blended}]}")
    findings = [
        found("one", "direct", 0.3), found("one", "blended:0.15", 0.1), found("one", "blended:0.3", 0.02),
        found("one", "blended:0.5", 0.01),
        found("two", "blended:0.15", 0.3, read=1), found("two", "blended:0.5", 0.1, read=1),
        found("three", "blended:0.4", 0.001),
    ]  # fmt: skip
    resolved = resolve(parse_yaml(text), PLAIN, findings)
    # What names its level goes on at the share that it had; nobody tried 0.4 where the share is to be chosen.
    assert shares(resolved.workflow) == {"one": (0.3, 0.4), "two": (None, 0.5, None), "three": (None, None)}
    assert {note.step: note.level for note in resolved.notes if note.why} == {
        "one": "blended:0.3", "two": "blended:0.5", "three": "exact"
    }  # fmt: skip
    everywhere = resolve(parse_yaml(text), Overrides("auto"), findings)
    assert shares(everywhere.workflow)["one"] == (0.3, 0.3)
    assert digest_of(resolved.workflow) == digest_of(parse_yaml(text))


def test_what_is_known_of_a_steps_own_share_has_its_levels_name() -> None:
    text = FLOW.replace("fidelity: auto\n", "fidelity: blended\nrecompute_share: 0.3\n")
    findings = [found("one", "blended:0.15", 0.1), found("one", "blended:0.3", 0.02)]
    notes = resolve(parse_yaml(text), PLAIN, findings).notes
    assert {(note.level, round(note.kl, 3)) for note in notes} >= {("blended:0.15", 0.1), ("blended", 0.02)}


@pytest.mark.parametrize(
    ("kl", "num", "flips", "level"),
    [
        (0.01, MIN_CALLS, (0, 0), "direct"),
        (0.01, MIN_CALLS - 1, (0, 0), "exact"),
        (0.049, 50, (0, 0), "exact"),  # as measured, but not surely
        (0.06, 10_000, (0, 0), "exact"),
        (0.01, 400, (4, 100), "direct"),
        (0.01, 400, (5, 100), "exact"),  # the next one's risk is 6 in 102
        (0.01, 400, (0, 18), "direct"),
        (0.01, 400, (0, 17), "exact"),
        (0.0, 400, (0, 0), "direct"),
    ],
)
def test_it_takes_enough_calls_and_few_flips(kl: float, num: int, flips: tuple[int, int], level: str) -> None:
    finding = Finding("one", None, "direct", "audit", tally(kl, num, flips))
    resolved = resolve(parse_yaml(FLOW), PLAIN, [finding])
    assert levels(resolved.workflow)["one"] == (level,)
    if level == "exact" and flips[1]:
        why = next(note.why for note in resolved.notes if note.step == "one" and note.why)
        assert f", {flips[0]} of {flips[1]} decisions flip: not surely within 0.05" in why


def test_better_evidence_counts_before_other() -> None:
    shadow, served = found("one", "direct", 0.01, source="shadow"), found("one", "direct", 0.3, source="served")
    assert levels(resolve(parse_yaml(FLOW), PLAIN, [shadow]).workflow)["one"] == ("direct",)
    assert levels(resolve(parse_yaml(FLOW), PLAIN, [shadow, served]).workflow)["one"] == ("exact",)


def test_a_caller_may_ask_for_auto_in_the_place_of_all() -> None:
    text = FLOW.replace("fidelity: auto\n", "fidelity: exact\n")
    findings = [found(step, "direct", 0.01) for step in ("one", "two", "three")]
    resolved = resolve(parse_yaml(text), Overrides("auto", tolerance=0.02), findings)
    assert resolved.overrides.fidelity is None
    assert levels(resolved.workflow) == {"one": ("direct",), "two": ("direct",) * 3, "three": ("direct",) * 2}
    assert resolved.workflow.tolerance == 0.02
    strict = resolve(parse_yaml(text), Overrides("auto", tolerance=0.005), findings)
    assert {level for each in levels(strict.workflow).values() for level in each} == {"exact"}


def test_nothing_changes_where_nobody_asks() -> None:
    workflow = parse_yaml(FLOW)
    assert resolve(workflow, Overrides("direct"), []).workflow is workflow
    assert is_exact(workflow, Overrides("exact"))
    assert not is_exact(workflow, PLAIN)
    assert is_exact(parse_yaml("version: 1\nname: f\nmessages: {m: x}\nsteps: [{step: a, read: [m]}]"), PLAIN)


def test_a_private_message_is_never_leaked_by_a_choice() -> None:
    text = """
version: 1
name: secret
fidelity: auto
messages: {key: {text: "the key", private: true}, ask: "Say."}
steps:
  - {step: inner, read: [key, ask]}
  - {step: outer, read: [inner]}
"""
    findings = [found(step, "direct", 0.001) for step in ("inner", "outer")]
    resolved = resolve(parse_yaml(text), PLAIN, findings)
    assert {level for each in levels(resolved.workflow).values() for level in each} == {"exact"}
    assert "private" in resolved.notes[0].why


def test_a_workflow_within_is_chosen_for_wherever_it_runs() -> None:
    text = """
version: 1
name: outer
messages: {m: words}
workflows:
  inner:
    version: 1
    name: inner
    fidelity: auto
    messages: {n: words}
    steps: [{step: say, read: [n]}]
steps:
  - {step: left, workflow: inner}
  - {step: right, workflow: inner}
outputs: {all: left, other: right}
"""

    def chosen(*findings: Finding) -> str | None:
        inner = resolve(parse_yaml(text), PLAIN, findings).workflow.workflows["inner"]
        (step,) = inner.steps
        assert isinstance(step, Step)
        return step.fidelity

    assert chosen(found("left/say", "direct", 0.01)) == "exact"
    assert chosen(found("left/say", "direct", 0.01), found("right/say", "direct", 0.2)) == "exact"
    assert chosen(found("left/say", "direct", 0.01), found("right/say", "direct", 0.01)) == "direct"


def test_a_workflow_is_known_by_all_but_its_levels() -> None:
    base = digest_of(parse_yaml(FLOW))
    for same in (
        ("fidelity: auto\ntol", "fidelity: direct\ntol"), ("tolerance: 0.2", "tolerance: 0.3"),
        ("fidelity: auto\ntol", "fidelity: blended\nrecompute_share: 0.3\ntol"),
        ("step: one", "step: one, recompute_share: 0.4"), ("read: one,", "read: one, recompute_share: 0.4,"),
    ):  # fmt: skip
        assert digest_of(parse_yaml(FLOW.replace(*same))) == base
    for other in (("some words", "some word"), ("[b, a]", "[a, b]"), ("max: 2", "max: 3")):
        assert digest_of(parse_yaml(FLOW.replace(*other))) != base


def test_what_an_audit_finds_is_counted_by_calls() -> None:
    items = [
        StepAudit("in[1]/say[2]", "say", "direct", None, (0.1, 0.3), (True, False)),
        StepAudit("in[2]/say[1]", "say", "direct", None, (0.4,), (True,)),
        StepAudit("in[2]/say[1]", "say", "direct", 0, (0.2,), (True,)),
        StepAudit("x", "x", "written", None, (0.2,), (True,)),
        Decision("in[1]/say[2]", "say", "direct", "value v", "1", "2"),
    ]
    whole, read = found_in(items)
    assert (whole.key, whole.tally.num_calls, whole.tally.num_flips) == (("in/say", None, "direct", "audit"), 2, 1)
    assert whole.tally.kl_mean == pytest.approx(0.3)
    assert (whole.tally.num_tokens, whole.tally.num_agreed) == (3, 2)
    assert read.key == ("in/say", 0, "direct", "audit")
    assert all(each.tally.is_possible for each in (whole, read))


def test_the_bounds_hold_however_often_one_looks() -> None:
    """Means at the tolerance itself: to call them outside, or within, is an error."""
    wrong = {"outside": 0, "within": 0}
    for seed in range(100):
        rng, total = random.Random(seed), Tally()
        said = set()
        for _ in range(300):
            total = total.plus(Tally.of_call([rng.expovariate(1 / 0.05)], [True]))
            said |= {"outside"} if total.is_outside(0.05) else set()
            said |= {"within"} if total.is_within(0.05) else set()
        for each in said:
            wrong[each] += 1
    assert max(wrong.values()) <= 5


@pytest.mark.parametrize(("mean", "said"), [(0.1, "is_outside"), (0.01, "is_within")])
def test_what_is_far_from_the_tolerance_is_soon_told(mean: float, said: str) -> None:
    rng, total = random.Random(3), Tally()
    values = [rng.expovariate(1 / mean) for _ in range(150)]
    for value in values:
        total = total.plus(Tally.of_call([value], [True]))
    assert total.kl_mean == pytest.approx(fmean(values))
    assert getattr(total, said)(0.05)


def test_lint_says_what_auto_would_be() -> None:
    told = [each.message for each in lint(parse_yaml(FLOW)).diagnostics if "auto" in each.message]
    assert len(told) == 3
    assert any("read 1 of step 'two'" in each and "0.2 nats" in each for each in told)
    assert {degree.level for degree in CHEAPEST_FIRST} >= {"direct", "blended"}
