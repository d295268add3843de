"""YAML text as plain values, with the place of every value and key.

YAML 1.2's core scalars (`no` is a text, `1:30` too), no tags of other kinds, no merge keys, and every key a
text given once. Built from the parser's events with a stack of its own, so that neither depth nor aliases can
exhaust the process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from laban.cluster.workflow.diagnostics import Loc, Marks, Problem

MAX_CHARS = 8_000_000
MAX_DEPTH = 40
MAX_VALUES = 50_000  # aliases written out

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser where PyYAML has it
_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,300}")
_INT_OF_BASE = re.compile(r"0o[0-7]{1,300}|0x[0-9a-fA-F]{1,250}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")
_INF = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")
_TAGS = {"str", "int", "float", "bool", "null", "seq", "map"}


class YamlProblem(ValueError):
    """Text that is not YAML, or not of the kind accepted; line and column count from 1."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        self.message, self.line, self.column = message, line, column
        super().__init__(message)


@dataclass(slots=True)
class _Node:
    """A value as written. `items` of a mapping are (key, its place, value); of a list (index, None, value)."""

    place: tuple[int, int]
    kind: str  # "scalar", "list", "map"
    value: object = None
    items: list[tuple[str | int, tuple[int, int] | None, _Node]] = field(default_factory=list)
    size: int = 1  # values in it, aliases written out
    height: int = 0


def load(text: str, source: str) -> tuple[object, Marks, list[Problem]]:
    """The value of a document, where its parts stand, and keys given twice. Raises YamlProblem."""
    if len(text) > MAX_CHARS:
        raise YamlProblem(f"a file of {len(text)} characters, at most {MAX_CHARS}")
    try:
        root = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
        raise YamlProblem(_said(error, text, mark), *place) from None
    except yaml.reader.ReaderError as error:
        raise YamlProblem(f"a character that YAML does not allow: {error.reason}", *_place_of(text, error)) from None
    except UnicodeError:
        raise YamlProblem("text that is not valid Unicode") from None
    except yaml.YAMLError as error:
        raise YamlProblem(str(error)) from None
    if root is None:
        raise YamlProblem("an empty file", 1, 1)
    return _write_out(root, source)


def _said(error: Any, text: str, mark: Any) -> str:
    """What the parser says, and of a tab in front of a line what the parser leaves out."""
    message = error.problem or error.context or "not YAML"
    line = text.split("\n")[mark.line : mark.line + 1] if mark is not None else []
    indent = line[0][: len(line[0]) - len(line[0].lstrip())] if line else ""
    return f"{message}: a tab; YAML is indented by spaces" if "\t" in indent else message


def _place_of(text: str, error: Any) -> tuple[int | None, int | None]:
    """The line and column of a character that the reader refuses."""
    position = error.position
    if not isinstance(position, int) or not 0 <= position < len(text):
        return None, None
    if isinstance(error.character, bytes) or error.encoding == "utf-8":  # the C parser counts bytes
        position = len(text.encode("utf-8", "replace")[:position].decode("utf-8", "replace"))
    before = text[:position]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _compose(text: str) -> _Node | None:
    composer = _Composer()
    for event in yaml.parse(text, Loader=_LOADER):
        composer.take(event)
    return composer.root


class _Composer:
    """Builds one document from parser events."""

    def __init__(self) -> None:
        self.root: _Node | None = None
        self._anchors: dict[str, _Node | None] = {}  # None: still open
        self._open: list[tuple[_Node, str | None]] = []  # with their anchors
        self._keys: list[tuple[str, tuple[int, int]] | None] = []  # of each open one, the key that waits for its value

    def take(self, event: Any) -> None:
        """Raises YamlProblem for what is not served."""
        place = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise YamlProblem("a second document in the file", *place)
        if isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            self._begin(event, place)
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            node, anchor = self._open.pop()
            self._keys.pop()
            self._name(anchor, node)
            self._add(node, place)
        elif isinstance(event, yaml.AliasEvent):
            node_or_none = self._anchors.get(str(event.anchor))
            if node_or_none is None:
                what = "inside itself" if event.anchor in self._anchors else "that is nowhere"
                raise YamlProblem(f"an alias of '{event.anchor}' {what}", *place)
            if self._wants_key():
                raise YamlProblem("an alias as a key", *place)
            self._add(node_or_none, place)
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event, place)

    def _wants_key(self) -> bool:
        return bool(self._open) and self._open[-1][0].kind == "map" and self._keys[-1] is None

    def _name(self, anchor: str | None, node: _Node | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _begin(self, event: Any, place: tuple[int, int]) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise YamlProblem(f"nested more than {MAX_DEPTH} deep", *place)
        _check_tag(event.tag, place)
        if self._wants_key():
            raise YamlProblem("a key must be a text", *place)
        self._name(event.anchor, None)
        kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "map"
        self._open.append((_Node(place, kind), event.anchor))
        self._keys.append(None)

    def _scalar(self, event: Any, place: tuple[int, int]) -> None:
        value = _scalar(event, place)
        if not self._wants_key():
            node = _Node(place, "scalar", value)
            self._name(event.anchor, node)
            return self._add(node, place)
        if event.value == "<<" and not event.style:
            raise YamlProblem("merge keys (<<) are not served: write the keys out", *place)
        if not isinstance(value, str):
            raise YamlProblem(f"a key must be a text; write '{event.value[:60]}' in quotes", *place)
        if event.anchor is not None:
            raise YamlProblem("an anchor on a key", *place)
        self._keys[-1] = (value, place)
        return None

    def _add(self, node: _Node, place: tuple[int, int]) -> None:
        """Puts a finished node where it belongs."""
        if not self._open:
            self.root = node
            return
        parent = self._open[-1][0]
        parent.size += node.size
        parent.height = max(parent.height, node.height + 1)
        if parent.size > MAX_VALUES:
            raise YamlProblem(f"more than {MAX_VALUES} values, aliases written out", *place)
        if parent.height > MAX_DEPTH:
            raise YamlProblem(f"nested more than {MAX_DEPTH} deep, aliases written out", *place)
        key = self._keys[-1]
        if parent.kind == "list":
            parent.items.append((len(parent.items), None, node))
        else:
            assert key is not None  # a mapping's value follows its key
            parent.items.append((*key, node))
            self._keys[-1] = None


def _check_tag(tag: str | None, place: tuple[int, int]) -> str:
    short = (tag or "").removeprefix("tag:yaml.org,2002:")
    if tag not in (None, "!") and short not in _TAGS:
        raise YamlProblem(f"tags are not served (got {str(tag)[:60]})", *place)
    return short


def _scalar(event: Any, place: tuple[int, int]) -> object:
    tag, text = _check_tag(event.tag, place), event.value
    if tag == "str" or tag == "!" or (tag == "" and event.style):
        return text
    value = _plain(text)
    wanted = {"int": int, "float": float, "bool": bool, "null": type(None)}.get(tag)
    if tag == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is not None and type(value) is not wanted:
        raise YamlProblem(f"'{text[:60]}' is not of the type !!{tag}", *place)
    return value


def _plain(text: str) -> object:
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _INT_OF_BASE.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    infinite = _INF.fullmatch(text)
    if infinite is not None:
        return float(f"{infinite.group(1)}inf")
    return float("nan") if _NAN.fullmatch(text) else text


def _write_out(root: _Node, source: str) -> tuple[object, Marks, list[Problem]]:
    values: list[tuple[Loc, tuple[int, int]]] = []
    keys: list[tuple[Loc, tuple[int, int]]] = []
    problems: list[Problem] = []

    def plain(node: _Node, loc: Loc) -> object:
        values.append((loc, node.place))
        if node.kind == "scalar":
            return node.value
        if node.kind == "list":
            return [plain(child, (*loc, index)) for index, _, child in node.items]
        mapping: dict[str, object] = {}
        first: dict[str, int] = {}
        for key, place, child in node.items:
            assert isinstance(key, str)
            assert place is not None
            if key in mapping:
                again = (*loc, f"{key} (line {place[0]})")
                keys.append((again, place))
                problems.append(
                    Problem(
                        (*again, "[key]"),
                        f"the key '{key}' is given twice",
                        None,
                        f"one '{key}', as in line {first[key]}",
                    )
                )
                continue
            first[key] = place[0]
            keys.append(((*loc, key), place))
            mapping[key] = plain(child, (*loc, key))
        return mapping

    value = plain(root, ())
    return value, Marks(source, tuple(values), tuple(keys)), problems
