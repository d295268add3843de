"""From YAML, or from a dict, to a workflow that can run; or to everything that is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from laban.cluster.workflow.diagnostics import Diagnostic, Loc, Marks, Problem, WorkflowErrors
from laban.cluster.workflow.explain import explain, plain_loc
from laban.cluster.workflow.includes import MAX_DEPTH as MAX_INCLUDES
from laban.cluster.workflow.includes import files_named, holder, path_from, put_in
from laban.cluster.workflow.nested import check_whole
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.yamltree import MAX_DEPTH, MAX_VALUES, YamlProblem, load

__all__ = ["Diagnostic", "Workflow", "WorkflowErrors", "parse_dict", "parse_yaml", "to_dict"]


def parse_yaml(text: str | bytes, source: str = "workflow", files: Mapping[str, str | bytes] | None = None) -> Workflow:
    """The workflow that a YAML text declares; `source` names it in diagnostics. Raises WorkflowErrors.

    A workflow that is returned can be run with the right inputs: its references, joins and order are checked. `files`
    are those that it names, and theirs, by their paths as seen from it.
    """
    return _parse(text, source, files or {}, ("",), {})


def _parse(
    text: str | bytes,
    source: str,
    files: Mapping[str, str | bytes],
    within: tuple[str, ...],
    parsed: dict[str, Workflow | None],
) -> Workflow:
    """`within` are the paths of the files that this one stands in, its own last; `parsed` those done, None if wrong."""
    try:
        value, marks, problems = load(_decode(text), source)
    except YamlProblem as error:
        found = Diagnostic("error", "", error.line, error.column, error.message, source=source)
        raise WorkflowErrors([found]) from None
    included: dict[Loc, dict[str, Workflow]] = {}  # by the workflow that names them
    faults: list[Diagnostic] = []
    for loc, name in files_named(value):
        at, path = holder(loc), path_from(within[-1], name)
        # What stands among a file's `workflows` is a level below it, as a file that it names is.
        outer = (*within, *within[-1:] * (len(at) // 2))
        if path in within or len(outer) > MAX_INCLUDES:
            problems.append(Problem(loc, "a workflow that comes to run itself", name, "other workflows only"))
        elif path not in files:
            problems.append(Problem(loc, "the file was not given with the workflow", name, "its path from here"))
        else:
            if path not in parsed:
                parsed[path] = None
                try:
                    parsed[path] = _parse(files[path], path, files, (*outer, path), parsed)
                except WorkflowErrors as error:
                    faults += error.diagnostics
            found_there = parsed[path]
            if found_there is not None:
                included.setdefault(at, {})[name] = found_there
    if faults:
        raise WorkflowErrors([*faults, *marks.locate(problems)])
    checked = frozenset(id(inner) for found in included.values() for inner in found.values())
    return _validate(put_in(value, included), marks, problems, checked)


def parse_dict(data: Mapping[str, object], source: str = "") -> Workflow:
    """The same for the dict form, which the builder and the protobuf messages give. Diagnostics have no lines."""
    problem = _not_plain(data)
    if problem:
        raise WorkflowErrors([Diagnostic("error", "", None, None, problem, source=source)])
    return _validate(data, Marks(source), [])


def to_dict(workflow: Workflow) -> dict[str, object]:
    """The dict form: what was given, shorthands spelled out. `parse_dict` makes an equal workflow of it."""
    return workflow.model_dump(exclude_unset=True)


def _validate(value: object, marks: Marks, problems: list[Problem], checked: frozenset[int] = frozenset()) -> Workflow:
    """`checked` are those in it that have been validated already, by identity."""
    try:
        workflow = Workflow.model_validate(value)
    except ValidationError as error:
        problems = [*problems, *explain(error)]
        if any(problem.code == "not_built" for problem in problems):
            raise WorkflowErrors(marks.locate(problems)) from None
        locs = [plain_loc(detail["loc"]) for detail in error.errors() if detail["type"] == "extra_forbidden"]
        try:  # keys too many need not hide what else is wrong
            workflow = Workflow.model_validate(_without(value, locs))
        except (ValidationError, LookupError, TypeError, AttributeError):
            raise WorkflowErrors(marks.locate(problems)) from None
    workflow = workflow.with_marks(marks)
    said = {problem.loc for problem in problems}
    problems = [*problems, *(problem for problem in check_whole(workflow, checked) if problem.loc not in said)]
    if problems:
        raise WorkflowErrors(marks.locate(problems))
    return workflow


def _without(value: object, locs: list[Loc]) -> object:
    """A copy of a plain value without the entries at `locs`."""
    copy = deepcopy(value)
    for loc in locs:
        inner: Any = copy
        for part in loc[:-1]:
            inner = inner[part]
        inner.pop(loc[-1])
    return copy


def _decode(text: str | bytes) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        before = text[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise YamlProblem(f"not UTF-8: the byte {text[error.start]:#04x}", line, column) from None


def _not_plain(data: object) -> str:
    """Why `data` is not a tree of plain values of bounded size; empty if it is."""
    stack: list[tuple[object, int]] = [(data, 0)]
    num_values = 0
    while stack:
        value, depth = stack.pop()
        num_values += 1
        if num_values > MAX_VALUES:
            return f"more than {MAX_VALUES} values"
        if depth > MAX_DEPTH:
            return f"nested more than {MAX_DEPTH} deep"
        if isinstance(value, Mapping):
            bad = next((key for key in value if not isinstance(key, str)), None)
            if bad is not None:
                return f"a key must be a text, got {str(bad)[:60]!r}"
            stack += [(child, depth + 1) for child in value.values()]
        elif isinstance(value, list | tuple):
            stack += [(child, depth + 1) for child in value]
        elif isinstance(value, int) and abs(value) > 10**300:
            return "a number of more than 300 digits"
        elif not (value is None or isinstance(value, str | int | float | bool)):
            return f"a value of the type {type(value).__name__}"
        elif isinstance(value, float) and math.isnan(value):
            continue  # where numbers go, the schema says so with the path
    return ""
