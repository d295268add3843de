"""Writing fidelities into a workflow's file, with every comment and the layout as they were.

Only the characters of the values that change are touched. What comes out is read again and compared with what was
asked for; where they differ (an anchor that others use, say) nothing is written.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from laban.actors.errors import FailedPrecondition
from laban.cluster.workflow.fidelity import Degree
from laban.cluster.workflow.yamltree import load

Path = tuple[str | int, ...]
Edit = tuple[int, int, str]
"""Of the characters from one place to another."""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def set_fidelities(text: str, degrees: Mapping[Path, Degree], inherited: Collection[Path] = ()) -> str:
    """The document with these levels, and of `blended` the shares, by the paths of steps (`("steps", 0)`) and reads
    (`("steps", 0, "read", 1)`). Reads that are `inherited` have their steps' then: they say none of their own any more
    where they stand in braces on one line, else the same.

    Raises FailedPrecondition where it cannot be done without changing something else.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    values = {path: _values(degree) for path, degree in degrees.items()}
    edits: list[Edit] = []
    left_out: dict[Path, object] = {}
    for path, wanted in values.items():
        node = _node(root, path)
        if path in inherited and _is_short(text, node):
            edit, left_out[path] = _without(text, node)
            edits.append(edit)
        else:
            edits += _edits(text, node, path, wanted)
    changed = text
    for begin, end, new in sorted(edits, reverse=True):
        changed = changed[:begin] + new + changed[end:]
    expected = copy.deepcopy(load(text, "")[0])
    for path, wanted in values.items():
        if path in left_out:
            _replace(expected, path, left_out[path])
        else:
            _set(expected, path, wanted)
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


def _values(degree: Degree) -> dict[str, object]:
    share = {"recompute_share": degree.share} if degree.level == "blended" else {}
    return {"fidelity": degree.level, **share}


def _edits(text: str, node: yaml.Node, path: Path, values: Mapping[str, object]) -> list[Edit]:
    begin, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.MappingNode):
        there = {name.value: value for name, value in node.value if name.value in values}
        edits = [(old.start_mark.index, old.end_mark.index, f"{values[name]}") for name, old in there.items()]
        entries = [f"{name}: {value}" for name, value in values.items() if name not in there]
        return [*edits, _insertion(text, node, entries)] if entries else edits
    if isinstance(node, yaml.ScalarNode):
        written = text[begin:end]
        if not node.style and _PLAIN.fullmatch(written) is None:
            written = json.dumps(node.value, ensure_ascii=False)
        entries = [f"{name}: {value}" for name, value in {"read": written, **values}.items()]
        return [(begin, end, f"{{{', '.join(entries)}}}")]
    raise FailedPrecondition(f"{_shown(path)} is no step or read", field="--write")


def _is_short(text: str, node: yaml.Node) -> bool:
    """Whether it is a mapping in braces, on one line (so without comments), and without anchors and aliases."""
    inside = text[node.start_mark.index : node.end_mark.index]
    return isinstance(node, yaml.MappingNode) and bool(node.flow_style) and not set("\n&*") & set(inside)


def _without(text: str, node: yaml.Node) -> tuple[Edit, object]:
    """A read without a level of its own, and what it then is: of one that says nothing else the bare text is left."""
    assert isinstance(node, yaml.MappingNode)
    kept = [(name, value) for name, value in node.value if name.value not in ("fidelity", "recompute_share")]
    begin, end = node.start_mark.index, node.end_mark.index
    if [name.value for name, _ in kept] == ["read"]:
        value = kept[0][1]
        new = text[value.start_mark.index : value.end_mark.index]
    else:
        new = f"{{{', '.join(text[name.start_mark.index : value.end_mark.index] for name, value in kept)}}}"
    found: Any = load(f"it: {new}", "")[0]
    return (begin, end, new), found["it"]


def _insertion(text: str, node: yaml.MappingNode, entries: list[str]) -> Edit:
    name, value = node.value[0]
    first = name.start_mark
    if node.flow_style:
        return first.index, first.index, "".join(f"{entry}, " for entry in entries)
    newline = ("\r\n" if "\r\n" in text else "\n") + " " * first.column
    if isinstance(value, yaml.ScalarNode) and value.style not in ("|", ">"):
        # On lines of their own after the first entry, so that a step goes on to begin with its name.
        at = text.find("\n", value.end_mark.index)
        at = len(text) if at < 0 else at - (text[at - 1] == "\r")
        return at, at, "".join(newline + entry for entry in entries)
    return first.index, first.index, "".join(entry + newline for entry in entries)


def _set(document: Any, path: Path, values: Mapping[str, object]) -> None:
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    old = parent[path[-1]]
    parent[path[-1]] = {**old, **values} if isinstance(old, dict) else {"read": old, **values}


def _replace(document: Any, path: Path, value: object) -> None:
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value


def _shown(path: Path) -> str:
    return ".".join(map(str, path))
