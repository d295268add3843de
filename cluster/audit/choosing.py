"""What `auto` becomes: the cheapest level that was found within the tolerance asked for, once, when a workflow is
submitted. What is not known is exact. Pure.

Nothing else knows of `auto`: a workflow is taken in, and written to the journal, with the levels chosen for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from laban.actors.errors import InvalidInput
from laban.cluster.audit.findings import SOURCES, Finding, Source, merged
from laban.cluster.audit.identity import changed
from laban.cluster.audit.tally import MIN_CALLS, Tally
from laban.cluster.records import FidelityNote
from laban.cluster.workflow.blocks import steps_of
from laban.cluster.workflow.build import build_graph
from laban.cluster.workflow.fidelity import AUTO, CHEAPEST_FIRST, TOLERANCE, Degree
from laban.cluster.workflow.schema import Step, Workflow
from laban.cluster.workflow.states import Overrides
from laban.cluster.workflow.visibility import private_leaks

EXACT = Degree("exact")
MAX_NOTES = 1_000


@dataclass(frozen=True, slots=True)
class Resolved:
    """What is to be run. `notes` say what `auto` became and why, and what is known of the other levels."""

    workflow: Workflow
    overrides: Overrides
    notes: tuple[FidelityNote, ...] = ()


def asks_auto(workflow: Workflow, overrides: Overrides) -> bool:
    return asks_for(workflow, AUTO) if overrides.fidelity is None else overrides.fidelity == AUTO


def asks_for(workflow: Workflow, level: str) -> bool:
    """Whether anything of it, or of those within it, does."""
    asked = [workflow.fidelity]
    for step in steps_of(workflow):
        asked += [each for each in (step.fidelity, *(read.fidelity for read in step.read)) if each is not None]
    return level in asked or any(asks_for(inner, level) for inner in workflow.workflows.values())


def is_exact(workflow: Workflow, overrides: Overrides) -> bool:
    """Whether nothing of it asks for anything else: then there is nothing to look up, or to say."""
    if overrides.fidelity is not None:
        return overrides.fidelity == "exact"
    return workflow.fidelity == "exact" and all(
        level in (None, "exact")
        for step in steps_of(workflow)
        for level in (step.fidelity, *(read.fidelity for read in step.read))
    ) and all(is_exact(inner, overrides) for inner in workflow.workflows.values())  # fmt: skip


def resolve(workflow: Workflow, overrides: Overrides, findings: Iterable[Finding]) -> Resolved:
    """With the levels chosen for all that asks for `auto`; the same where nothing does."""
    known = merged(findings)
    if not asks_auto(workflow, overrides):
        return Resolved(workflow, overrides, _known(known, workflow))
    chooser = _Chooser(known, overrides)
    chosen = chooser.workflow(workflow, ("",))
    if _leaks(chosen):
        why = "a private message would reach readers who are not given it"
        chooser = _Chooser({}, overrides)
        chosen = chooser.workflow(workflow, ("",))
        chooser.notes = [replace(note, why=why) for note in chooser.notes]
    plain = replace(overrides, fidelity=None, tolerance=None) if overrides.fidelity == AUTO else overrides
    return Resolved(chosen, plain, (*chooser.notes[:MAX_NOTES], *_known(known, chosen)))


def fallen_back(workflow: Workflow, overrides: Overrides, why: str) -> Resolved:
    """All of it exact, whatever it asks for."""
    note = FidelityNote(level="exact", why=why)
    return Resolved(workflow, replace(overrides, fidelity="exact", tolerance=None), (note,))


def best(
    known: Mapping[tuple[str, int | None, str, Source], Tally], step: str, read: int | None, level: str
) -> Tally | None:
    """By the best evidence of which there is enough, with the flips that an audit found; else what there is most of."""
    there = [tally for source in SOURCES if (tally := known.get((step, read, level, source))) is not None]
    if not there:
        return None
    tally = next((each for each in there if each.is_enough), max(there, key=lambda each: each.num_calls))
    decided = known.get((step, read, level, "audit"), Tally())
    return replace(tally, num_decisions=decided.num_decisions, num_flips=decided.num_flips)


class _Chooser:
    def __init__(self, known: Mapping[tuple[str, int | None, str, Source], Tally], overrides: Overrides) -> None:
        self._known = known
        self._all_auto = overrides.fidelity == AUTO
        self._tolerance = overrides.tolerance
        self.notes: list[FidelityNote] = []

    def workflow(self, workflow: Workflow, paths: tuple[str, ...]) -> Workflow:
        """`paths` are those of the steps that run it, each with a / behind it."""
        ways = _ways(workflow, paths)
        within = {name: self.workflow(inner, ways.get(name, ())) for name, inner in workflow.workflows.items()}
        stated = "exact" if workflow.fidelity == AUTO or self._all_auto else workflow.fidelity
        held_to = workflow.tolerance if self._tolerance is None else self._tolerance
        changes: dict[str, object] = {"fidelity": stated, "tolerance": held_to}
        if within:
            changes["workflows"] = within
        steps = changed(workflow.steps, lambda step: self._step(step, workflow, paths))
        return workflow.model_copy(update=changes | {"steps": steps})

    def _step(self, step: Step, workflow: Workflow, paths: tuple[str, ...]) -> Step:
        tolerance = next(
            (each for each in (self._tolerance, step.tolerance, workflow.tolerance) if each is not None), TOLERANCE
        )
        steps = [path + step.step for path in paths]
        asked = AUTO if self._all_auto else step.fidelity or workflow.fidelity
        stated_share = step.recompute_share or workflow.recompute_share
        makes_calls = step.external is None and step.workflow is None
        changes: dict[str, object] = {}
        if asked == AUTO:
            chosen = self._choose(steps, None, tolerance) if makes_calls else EXACT
            changes |= {"fidelity": chosen.level, "recompute_share": chosen.share}
        reads = []
        for index, read in enumerate(step.read):
            if self._all_auto:
                read = read.model_copy(update={"fidelity": None, "tolerance": None, "recompute_share": None})
            elif read.fidelity == AUTO:
                own = tolerance if read.tolerance is None or self._tolerance is not None else read.tolerance
                chosen = self._choose(steps, index, own) if makes_calls else EXACT
                read = read.model_copy(update={"fidelity": chosen.level, "recompute_share": chosen.share})
            elif asked == AUTO:  # the step's share is now that of what was chosen
                own_share = (read.recompute_share or stated_share) if read.fidelity == "blended" else None
                read = read.model_copy(update={"recompute_share": own_share})
            reads.append(read)
        return step.model_copy(update=changes | ({"read": reads} if reads else {}))

    def _choose(self, steps: list[str], read: int | None, tolerance: float) -> Degree:
        """The cheapest that will do wherever the step is run."""
        closest: tuple[str, Tally] | None = None
        for degree in CHEAPEST_FIRST:
            level = str(degree)
            found = [best(self._known, step, read, level) for step in steps]
            worst = max((each for each in found if each is not None), key=lambda each: each.kl_mean, default=None)
            if found and all(each is not None and each.is_within(tolerance) for each in found):
                assert worst is not None
                self._note(steps, read, level, worst, f"within {tolerance:g}")
                return degree
            if worst is not None and (closest is None or worst.kl_mean < closest[1].kl_mean):
                closest = level, worst
        if closest is None:
            self._note(steps, read, "exact", Tally(), "nothing is known of other levels")
        else:
            nearest, tally = closest
            what = f"{nearest} has a KL of {tally.kl_mean:.3g} over {tally.num_calls} audited calls"
            flips = f", {tally.num_flips} of {tally.num_decisions} decisions flip" if tally.num_decisions else ""
            few = "" if tally.is_enough else f", expected at least {MIN_CALLS} calls"
            self._note(steps, read, "exact", Tally(), f"{what}{few or flips}: not surely within {tolerance:g}")
        return EXACT

    def _note(self, steps: list[str], read: int | None, level: str, tally: Tally, why: str) -> None:
        self.notes += [FidelityNote(step, read, level, tally.kl_mean, tally.num_calls, why) for step in steps]


def _known(known: Mapping[tuple[str, int | None, str, Source], Tally], workflow: Workflow) -> tuple[FidelityNote, ...]:
    """What is known of whole steps at each level. `blended` at the share that a step has is called just that."""
    found, shares = [], dict(_shares(workflow, ("",))) if known else {}
    for step, level in dict.fromkeys((step, level) for step, read, level, _ in known if read is None):
        tally = best(known, step, None, level)
        if tally is not None and tally.num_calls:
            own = step in shares and level == str(Degree("blended", shares[step]))
            found.append(FidelityNote(step, None, "blended" if own else level, tally.kl_mean, tally.num_calls))
    return tuple(found[:MAX_NOTES])


def _shares(workflow: Workflow, paths: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Of each step whose reads have one share."""
    for step in steps_of(workflow):
        share = step.recompute_share or workflow.recompute_share
        if all(read.recompute_share in (None, share) for read in step.read):
            yield from ((path + step.step, share) for path in paths)
    for name, within in _ways(workflow, paths).items():
        if name in workflow.workflows:
            yield from _shares(workflow.workflows[name], within)


def _ways(workflow: Workflow, paths: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Of each workflow within, the paths of the steps that run it."""
    ways: dict[str, tuple[str, ...]] = {}
    for step in steps_of(workflow):
        if step.workflow is not None:
            ways[step.workflow] = (*ways.get(step.workflow, ()), *(f"{path}{step.step}/" for path in paths))
    return ways


def check_steps(workflow: Workflow, findings: Iterable[Finding], path: str) -> None:
    """Raises InvalidInput for findings of steps and reads that the workflow does not have."""
    steps: dict[int, dict[str, Step]] = {}  # of each workflow, by its id

    def find(inner: Workflow, name: str) -> Step | None:
        if id(inner) not in steps:
            steps[id(inner)] = {step.step: step for step in steps_of(inner)}
        return steps[id(inner)].get(name)

    for place, finding in enumerate(findings):
        inner: Workflow | None = workflow
        step: Step | None = None
        for name in finding.step.split("/"):
            step = None if inner is None else find(inner, name)
            inner = None if inner is None or step is None or step.workflow is None else inner.workflows[step.workflow]
        if step is None:
            raise InvalidInput("the workflow has no such step", field=f"{path}[{place}].step", value=finding.step)
        if finding.read is not None and finding.read >= len(step.read):
            raise InvalidInput(
                f"the step has {len(step.read)} reads", field=f"{path}[{place}].read", value=finding.read
            )


def _leaks(workflow: Workflow) -> bool:
    """Whether what was chosen is refused."""
    graph, _ = build_graph(workflow)
    return graph is not None and bool(private_leaks(graph))
