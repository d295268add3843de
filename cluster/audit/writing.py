"""Writing fidelities into a workflow's file, with every comment and the layout as they were.

Only the characters of the values that change are touched. What comes out is read again and compared with what was
asked for; where they differ (an anchor that others use, say) nothing is written.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from laban.actors.errors import FailedPrecondition
from laban.cluster.workflow.yamltree import load

Path = tuple[str | int, ...]
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def set_fidelities(text: str, levels: Mapping[Path, str]) -> str:
    """The document with these levels, by the paths of steps (`("steps", 0)`) and reads (`("steps", 0, "read", 1)`).

    Raises FailedPrecondition where it cannot be done without changing something else.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    edits: list[tuple[int, int, str]] = []
    for path, level in levels.items():
        edits.append(_edit(text, _node(root, path), path, level))
    changed = text
    for begin, end, new in sorted(edits, reverse=True):
        changed = changed[:begin] + new + changed[end:]
    expected = copy.deepcopy(load(text, "")[0])
    for path, level in levels.items():
        _set(expected, path, level)
    try:
        found = load(changed, "")[0]
    except ValueError:
        found = None
    if found != expected:
        raise FailedPrecondition("its layout does not allow it: write the fidelities by hand", field="--write")
    return changed


def _node(root: Any, path: Path) -> yaml.Node:
    node: Any = root
    for key in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            node = node.value[key]
        elif isinstance(node, yaml.MappingNode):
            node = next((value for name, value in node.value if name.value == key), None)
        if node is None:
            raise FailedPrecondition(f"{_shown(path)} is not in the file", field="--write")
    assert isinstance(node, yaml.Node)
    return node


def _edit(text: str, node: yaml.Node, path: Path, level: str) -> tuple[int, int, str]:
    begin, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == "fidelity":
                return value.start_mark.index, value.end_mark.index, level
        first = node.value[0][0].start_mark
        if node.flow_style:
            return first.index, first.index, f"fidelity: {level}, "
        newline = "\r\n" if "\r\n" in text else "\n"
        value = node.value[0][1]
        if isinstance(value, yaml.ScalarNode) and value.style not in ("|", ">"):
            # On a line of its own after the first entry, so that a step goes on to begin with its name.
            at = text.find("\n", value.end_mark.index)
            at = len(text) if at < 0 else at - (text[at - 1] == "\r")
            return at, at, f"{newline}{' ' * first.column}fidelity: {level}"
        return first.index, first.index, f"fidelity: {level}{newline}{' ' * first.column}"
    if isinstance(node, yaml.ScalarNode):
        written = text[begin:end]
        if not node.style and _PLAIN.fullmatch(written) is None:
            written = json.dumps(node.value, ensure_ascii=False)
        return begin, end, f"{{read: {written}, fidelity: {level}}}"
    raise FailedPrecondition(f"{_shown(path)} is no step or read", field="--write")


def _set(document: Any, path: Path, level: str) -> None:
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    old = parent[path[-1]]
    parent[path[-1]] = {**old, "fidelity": level} if isinstance(old, dict) else {"read": old, "fidelity": level}


def _shown(path: Path) -> str:
    return ".".join(map(str, path))
