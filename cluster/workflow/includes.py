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
    """Where a document, not validated yet, names a file, and which, each once."""
    if not isinstance(document, Mapping):
        return
    inside = document.get("workflows")
    known = set(inside) if isinstance(inside, Mapping) else set()
    for loc, name in _workflows_named(document.get("steps"), ("steps",)):
        if name not in known and name.endswith(ENDINGS):
            known.add(name)
            yield loc, name


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
