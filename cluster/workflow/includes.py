"""The files that a workflow names: `{step: research, workflow: parts/research.yaml}`.

A path is seen from the file that names it; `files` has each by its path as seen from the first one.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from laban.cluster.workflow.diagnostics import Loc

ENDINGS = (".yaml", ".yml")
MAX_DEPTH = 8  # of workflows in workflows


def path_from(including: str, path: str) -> str:
    """
    >>> path_from("parts/research.yaml", "../common/summary.yaml")
    'common/summary.yaml'
    """
    return posixpath.normpath(posixpath.join(posixpath.dirname(including), path))


def files_named(document: object) -> Iterator[tuple[Loc, str]]:
    """Where a document, not validated yet, names a file, and which, each once in each of its workflows.

    >>> within = {"workflows": {"part": {"steps": [{"step": "a", "workflow": "b.yaml"}]}}}
    >>> list(files_named(within))
    [(('workflows', 'part', 'steps', 0, 'workflow'), 'b.yaml')]
    """
    waiting: list[tuple[object, Loc]] = [(document, ())]
    while waiting:
        workflow, at = waiting.pop()
        if not isinstance(workflow, Mapping):
            continue
        given = workflow.get("workflows")
        inside = given if isinstance(given, Mapping) else {}
        known = set(inside)
        for loc, name in _workflows_named(workflow.get("steps"), (*at, "steps")):
            if name not in known and name.endswith(ENDINGS):
                known.add(name)
                yield loc, name
        if len(at) < 2 * MAX_DEPTH:
            waiting += [(inner, (*at, "workflows", name)) for name, inner in inside.items()]


def holder(loc: Loc) -> Loc:
    """Where the workflow is whose step stands at `loc`: () is the document.

    >>> holder(("workflows", "part", "steps", 0, "workflow")), holder(("steps", 2, "steps", 0, "workflow"))
    (('workflows', 'part'), ())
    """
    end = 0
    while loc[end] == "workflows":
        end += 2
    return loc[:end]


def put_in(document: Any, included: Mapping[Loc, Mapping[str, object]]) -> Any:
    """The document with what was `included` among the `workflows` of each holder; what was given is left as it is."""
    for at, found in included.items():
        document = _with(document, at, found)
    return document


def _with(workflow: Any, at: Loc, found: Mapping[str, object]) -> Any:
    given = workflow.get("workflows")
    inside = given if isinstance(given, Mapping) else {}
    if at:
        return {**workflow, "workflows": {**inside, at[1]: _with(inside[at[1]], at[2:], found)}}
    return {**workflow, "workflows": {**inside, **found}}


def _workflows_named(entries: Any, loc: Loc) -> Iterator[tuple[Loc, str]]:
    stack: list[tuple[Any, Loc]] = [(entries, loc)]
    while stack:
        found, at = stack.pop()
        if not isinstance(found, Sequence) or isinstance(found, str):
            continue
        for index, entry in enumerate(found):
            if isinstance(entry, Mapping):
                name = entry.get("workflow")
                if isinstance(name, str):
                    yield (*at, index, "workflow"), name
                stack += [(entry.get(key), (*at, index, key)) for key in ("steps", "otherwise")]
