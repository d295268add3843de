"""`laban audit`: what other fidelities change in a workflow's runs, what they save, and which to choose."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laban.actors.errors import FailedPrecondition, InvalidInput, LabanError
from laban.cluster.audit.advice import Advice, advise
from laban.cluster.audit.data import read_data
from laban.cluster.audit.findings import found_in
from laban.cluster.audit.levels import EXPECTED, named, problem_with
from laban.cluster.audit.page import page
from laban.cluster.audit.records import AS_WRITTEN, AuditItem, RecordedStep, StepAudit
from laban.cluster.audit.report import BASELINE, AuditedInput, Report, summarize
from laban.cluster.audit.table import lines
from laban.cluster.audit.tally import MIN_CALLS
from laban.cluster.audit.writing import Path as YamlPath
from laban.cluster.audit.writing import set_fidelities
from laban.cluster.cli.files import read_file
from laban.cluster.cli.recording import record_run
from laban.cluster.cli.show import Waiting
from laban.cluster.workflow.build import build_graph
from laban.cluster.workflow.fidelity import AUTO, CHEAPEST_FIRST, Degree
from laban.cluster.workflow.inputs import check_inputs
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import Overrides
from laban.cluster.workflow.visibility import Visibility

if TYPE_CHECKING:
    from laban.cluster.cli.shell import ShellTool
    from laban.cluster.client import Client
    from laban.cluster.workflow.schema import Workflow

EXACT = Degree("exact")
NUM_APART = 4
MAX_WHY = 8


class AuditPlan:
    """What is to be audited, checked before any cluster is asked. Raises WorkflowErrors, InvalidInput."""

    def __init__(self, request: Mapping[str, Any], arguments: Namespace) -> None:
        self.request = dict(request)
        self.workflow: Workflow = parse_yaml(request["workflow"], request["source_name"], request["files"])
        if request["fidelity"] is not None:
            raise InvalidInput("says which levels to compare with exact: give --levels", field="--fidelity")
        self.tolerance = _tolerance(arguments.tolerance)
        self.levels = _levels(arguments.levels, self.workflow)
        base = request["inputs"]
        if arguments.data is None:
            self.inputs = [(1, dict(base))]
        else:
            text = read_file(arguments.data, "--data").decode("utf-8", "replace")
            self.inputs = read_data(text, self.workflow, base, arguments.data)
        changes = {tuple(key.rpartition(".")[::2]): value for key, value in request["overrides"].items()}
        for _, inputs in self.inputs:
            run = Run(self.workflow, inputs, Overrides(BASELINE, request["seed"], changes))
        self.run = run  # of the last inputs: its graph says where each step stands

    def options(self, **changes: object) -> dict[str, Any]:
        """For a submission, without the inputs."""
        return {key: value for key, value in self.request.items() if key != "inputs"} | changes


def _tolerance(value: float) -> float:
    if not 0 <= value <= 100:
        raise InvalidInput("expected 0 to 100, nats a token and a share of decisions", field="--tolerance", value=value)
    return value


def _levels(given: str | None, workflow: Workflow) -> tuple[str, ...]:
    if given is None:
        usual = tuple(map(str, CHEAPEST_FIRST))
        return (*usual, AS_WRITTEN) if _states_levels(workflow) else usual
    levels = tuple(dict.fromkeys(level.strip() for level in given.split(",") if level.strip()))
    for level in levels:
        problem = problem_with(level)
        if problem:
            raise InvalidInput(f"{problem}, expected {EXPECTED}, or {AS_WRITTEN}", field="--levels", value=level)
    levels = tuple(dict.fromkeys(named(level, workflow) for level in levels if level != BASELINE))
    if not levels:
        raise InvalidInput(f"names no level beside {BASELINE}", field="--levels", value=given)
    return levels


def _states_levels(workflow: Workflow) -> bool:
    """Whether the workflow states more than one fidelity, so that as written it is none of the levels."""
    graph, _ = build_graph(workflow)
    return graph is not None and len({source.fidelity for node in graph.nodes.values() for source in node.sources}) > 1


class Auditing:
    """Runs and audits one set of inputs after the other, and says how far it has come."""

    def __init__(self, client: Client, plan: AuditPlan, tools: dict[str, ShellTool], server: str) -> None:
        """`server` is the client's address: steps that wait for somebody are told of with it."""
        self._client, self._plan, self._tools, self._server = client, plan, tools, server
        self._is_terminal = sys.stderr.isatty()

    def all(self) -> list[AuditedInput]:
        found = []
        for place, (line, inputs) in enumerate(self._plan.inputs, 1):
            self._say(place, "running under exact")
            recorded, error = self._record(inputs)
            if error:
                found.append(AuditedInput(line, (), error))
                continue
            found.append(AuditedInput(line, tuple(self._compare(place, inputs, recorded))))
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        return found

    def _record(self, inputs: Mapping[str, object]) -> tuple[list[RecordedStep], str]:
        options = self._plan.options(fidelity=BASELINE)
        return record_run(self._client, inputs, options, self._tools, Waiting(self._server, self._note))

    def _compare(
        self, place: int, inputs: Mapping[str, object], recorded: Sequence[RecordedStep]
    ) -> Sequence[AuditItem]:
        plan, items = self._plan, []
        options = plan.options(fidelity=None)
        total = len(plan.levels) * sum(bool(step.token_ids) for step in recorded)
        found = self._client.audit(inputs=inputs, recorded=recorded, levels=plan.levels, num_apart=NUM_APART, **options)
        for item in found:
            items.append(item)
            done = sum(isinstance(each, StepAudit) and each.read is None for each in items)
            self._say(place, f"compared {done} of {total} steps" if done < total else "replaying whole runs, for time")
        return items

    def _note(self, line: str) -> None:
        print(f"\r\x1b[K{line}" if self._is_terminal else line, file=sys.stderr, flush=True)

    def _say(self, place: int, doing: str) -> None:
        line = f"input {place} of {len(self._plan.inputs)}: {doing}"
        if self._is_terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif doing.startswith("running"):
            print(line, file=sys.stderr, flush=True)


def record(client: Client, plan: AuditPlan, inputs: Sequence[AuditedInput]) -> None:
    """Have the server keep what was found."""
    findings = found_in(item for each in inputs for item in each.items)
    if not findings:
        return
    what = {name: plan.request[name] for name in ("source_name", "files")}
    client.record_findings(plan.request["workflow"], findings, **what)
    fewest = min(each.tally.num_calls for each in findings if each.read is None)
    few = f"; it takes {MIN_CALLS} calls of a step, one has {fewest}" if fewest < MIN_CALLS else ""
    print(f"recorded: {AUTO} chooses by it{few}", file=sys.stderr)


def finish(
    plan: AuditPlan, inputs: Sequence[AuditedInput], arguments: Namespace, keep: Callable[[], None] | None
) -> int:
    """Shows what was found, then writes and keeps it: what cannot be written takes nothing else away. Returns the exit
    code."""
    report = summarize(plan.workflow.name, inputs)
    if not report.num_inputs:
        raise FailedPrecondition(f"no run under {BASELINE} succeeded: {inputs[0].error}")
    report = summarize(plan.workflow.name, inputs, _why(plan, report))
    advice = advise(report, plan.tolerance)
    if arguments.json:
        document = {**asdict(report), "tolerance": plan.tolerance, "advice": [asdict(one) for one in advice]}
        print(json.dumps(document, ensure_ascii=False))
    else:
        print("\n".join(lines(report, advice, plan.tolerance)))
    sys.stdout.flush()
    tasks: list[Callable[[], None]] = []
    if arguments.html:
        tasks.append(lambda: _write(arguments.html, page(report, advice, plan.tolerance), "--html"))
    if keep is not None:
        tasks.append(keep)
    if arguments.write:
        tasks.append(lambda: _change(plan, advice, arguments.file))
    code = 0
    for task in tasks:
        try:
            task()
        except LabanError as error:
            print(f"laban: {error}", file=sys.stderr)
            code = 1
    return code


def _change(plan: AuditPlan, advice: Sequence[Advice], file: str) -> None:
    changed = write_back(plan, advice)
    if changed is None:
        print(f"{file}: says so already", file=sys.stderr)
    else:
        _write(file, changed, "--write")
        print(f"{file}: written", file=sys.stderr)


def write_back(plan: AuditPlan, advice: Sequence[Advice]) -> str | None:
    """The file with the fidelities recommended; None if it has them. Steps of other files stay as they are."""
    text = plan.request["workflow"].decode("utf-8")
    places = {node.step.step: (node.loc, node.step) for node in plan.run.graph.nodes.values()}
    degrees: dict[YamlPath, Degree] = {}
    inherited: list[YamlPath] = []
    for one in advice:
        if one.step not in places:
            continue
        loc, step = places[one.step]
        usual = step.recompute_share or plan.workflow.recompute_share
        whole = _degree(one.level if not one.reads else BASELINE)
        if _stated(step.fidelity or plan.workflow.fidelity, usual) != whole:
            degrees[tuple(loc)] = whole
        for index, read in enumerate(step.read):
            wanted = _degree(one.level) if not one.reads or index in one.reads else EXACT
            share = read.recompute_share or (whole.share if whole.level == "blended" else usual)
            if _stated(read.fidelity or whole.level, share) != wanted:
                degrees[(*loc, "read", index)] = wanted
                inherited += [(*loc, "read", index)] if wanted == whole else []
    return set_fidelities(text, degrees, inherited) if degrees else None


def _degree(name: str) -> Degree:
    degree = Degree.of(name)
    assert degree is not None  # it was checked, or is the audit's own
    return degree


def _stated(fidelity: str, share: float) -> Degree | None:
    """None for `auto`."""
    return Degree.of(fidelity, share)


def _why(plan: AuditPlan, report: Report) -> list[str]:
    """Leakage and blockage of the steps that diverge most, where every read is direct."""
    worst = sorted((row for row in report.steps if not row.is_same), key=lambda row: -row.kl_mean)
    names = list(dict.fromkeys(row.step for row in worst))[:MAX_WHY]
    if not names:
        return []
    values, _ = check_inputs(plan.workflow, plan.inputs[0][1])
    graph, _ = build_graph(plan.workflow, "direct", values)
    if graph is None:
        return []
    visibility = Visibility(graph)
    told = [
        f"leakage: {leak.step} is not given {leak.message}, and learns of it through {leak.through}"
        for leak in visibility.leaks()
        if leak.step in names
    ]
    for blockage in visibility.blockages():
        if blockage.step in names:
            pairs = ", ".join(f"{one} / {other}" for one, other in blockage.pairs[:3])
            more = f" and {blockage.num_pairs - 3} more pairs" if blockage.num_pairs > 3 else ""
            told.append(f"blockage: {blockage.address} reads messages encoded unaware of each other: {pairs}{more}")
    return ["", "why, under `direct`:", *(f"  {line}" for line in told)] if told else []


def _write(path: str, text: str, flag: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise LabanError(f"cannot be written ({error.strerror})", field=flag, value=path) from None
