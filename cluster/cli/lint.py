"""`laban lint`: everything that can be said of a workflow before it runs. Needs no Ray, torch or cluster."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from laban.actors.framing import Framing, derive_framing
from laban.actors.models import check_model_folder, converted_default_model
from laban.actors.tokenizer import Tokenizer
from laban.cluster.cli.files import read_file
from laban.cluster.cli.flags import as_flag
from laban.cluster.cli.inputs import parse_inputs
from laban.cluster.cli.quote import quoted
from laban.cluster.client_files import files_named_in
from laban.cluster.config import resolve
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.lint import LintReport, lint
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.states import Overrides

DEFAULT_CONTEXT = 8192
NO_MODEL = "no model"
BYTES_PER_TOKEN = 2  # fewer than any text that people write has with a vocabulary of 30,000 or more
FRAME_TOKENS = 16
ROOT_TOKENS = 64
SHOWN = 20  # findings of one kind; --json has them all


@dataclass(frozen=True)
class EstimatedFraming:
    """Lengths without a tokenizer, rather too long than too short."""

    def root(self, first_role: str) -> range:
        return range(ROOT_TOKENS)

    def message(self, role: str, text: str, name: str | None = None) -> range:
        return range(FRAME_TOKENS + _tokens(text) + _tokens(name or ""))

    def header(self, role: str, name: str | None = None, *, prefill: str = "") -> range:
        return range(FRAME_TOKENS + _tokens(prefill) + _tokens(name or ""))

    def terminator(self, role: str, *, after_stop_token: bool) -> range:
        return range(FRAME_TOKENS)


@dataclass(frozen=True)
class Measure:
    """How views are measured, and what there is to say about it."""

    framing: Framing | EstimatedFraming
    max_context: int
    model: str
    notes: tuple[str, ...]


def lint_file(arguments: Namespace) -> int:
    """Prints the report; returns 0, or 2 if there are errors."""
    text = read_file(arguments.file)
    config = resolve(arguments.config, flags={"model": arguments.model}).config
    plans = config.model_plans()
    parses = config.engine.parse_special_tokens
    measure = _measure(plans[0].path, parses)
    of_models = {plan.name: _measure(plan.path, parses) for plan in plans if plan.name is not None}
    estimated = any(isinstance(each.framing, EstimatedFraming) for each in (measure, *of_models.values()))
    served = {plan.name or measure.model: [name for name, _ in plan.adapters] for plan in plans}
    overrides = Overrides(fidelity=arguments.fidelity)
    try:
        workflow = parse_yaml(text, arguments.file, files_named_in(text, Path(arguments.file)))
        report = lint(
            workflow,
            parse_inputs(arguments.inputs),
            overrides,
            framing=measure.framing,
            max_context=measure.max_context,
            models={name: measured(each) for name, each in of_models.items()} or None,
            adapters=None if measure.model == NO_MODEL else served,
            configured=bool(config.models or config.adapters),
            estimated=estimated,
        )
    except WorkflowErrors as error:
        report = LintReport(error.diagnostics)
    report = replace(report, diagnostics=tuple(map(as_flag, report.diagnostics)))
    if arguments.json:
        print(json.dumps(_document(report, measure), ensure_ascii=False, default=str))
    else:
        _print(arguments.file, report, measure, of_models)
    return 0 if report.ok else 2


def _measure(model: str | None, parse_special_tokens: bool) -> Measure:
    folder = converted_default_model() if model is None else model
    if folder is None:
        note = f"lengths are estimates, {BYTES_PER_TOKEN} bytes a token: the default model is set up by the first run"
        return Measure(EstimatedFraming(), DEFAULT_CONTEXT, NO_MODEL, (note,))
    facts = check_model_folder(folder)
    framing = derive_framing(folder, Tokenizer.from_folder(folder, parse_special_tokens=parse_special_tokens))
    return Measure(framing, facts.max_context, facts.name, framing.notes)


def measured(measure: Measure) -> tuple[Framing | EstimatedFraming, int]:
    return measure.framing, measure.max_context


def _print(name: str, report: LintReport, measure: Measure, of_models: Mapping[str, Measure]) -> None:
    """`measure` is the default model's, `of_models` those of all where there are several."""
    for diagnostic in report.diagnostics:
        print("\n".join(quoted(diagnostic, name)))
    if report.num_instances:
        print(f"{name}: {report.num_instances} step instance{'s' if report.num_instances != 1 else ''}")
    if report.views:
        longest = max(report.views, key=lambda view: view.total)
        print(
            f"longest view: {longest.address}, {longest.total} of {longest.max_context} tokens at its worst "
            f"({of_models.get(longest.model, measure).model})"
        )
    for note in measure.notes:
        print(f"note: {note}")
    if report.leaks:
        print("leakage (under `direct`, a step also learns what the messages that it reads were made from):")
    for leak in report.leaks[:SHOWN]:
        private = ", which is private" if leak.private else ""
        print(f"  {leak.step} reads {leak.message} through {leak.through}{private}")
    _print_rest(len(report.leaks))
    if report.blockages:
        print("blockage (under `direct`, these messages of a view were encoded unaware of each other):")
    for blockage in report.blockages[:SHOWN]:
        pairs = ", ".join(f"{one} / {other}" for one, other in blockage.pairs[:4])
        more = f" and {blockage.num_pairs - 4} more" if blockage.num_pairs > 4 else ""
        print(f"  {blockage.address}: {pairs}{more}")
    _print_rest(len(report.blockages))
    errors = sum(diagnostic.severity == "error" for diagnostic in report.diagnostics)
    print(f"{errors} error{'s' if errors != 1 else ''}" if errors else "no errors")


def _print_rest(found: int) -> None:
    if found > SHOWN:
        print(f"  ... and {found - SHOWN} more; --json has them all")


def _document(report: LintReport, measure: Measure) -> dict[str, object]:
    return {
        "ok": report.ok,
        "model": measure.model,
        "max_context": measure.max_context,
        "diagnostics": [asdict(diagnostic) for diagnostic in report.diagnostics],
        "num_instances": report.num_instances,
        "views": [{**asdict(view), "fits": view.fits} for view in report.views],
        "leaks": [asdict(leak) for leak in report.leaks],
        "blockages": [asdict(blockage) for blockage in report.blockages],
        "notes": list(measure.notes),
    }


def _tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)
