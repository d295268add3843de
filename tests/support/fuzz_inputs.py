"""Random input for what reads input: documents, requests, bytes. Valid ones bent, and such as never were valid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from mixed_flows import KINDS, Flow
from random_workflows import workflows

EXAMPLES = [path.read_text() for path in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))]
DOCUMENTS = [*EXAMPLES, *(Flow(kind, "rain").text for kind in KINDS)]
WORDS = [
    "", "step", "all", "answer[all,last]", "a[", "[0]", "{{ x }}", "{{", "{% for", "x" * 300, "null", "1e999", "-1",
    "0x10", "&a", "*a", "!!python/object:os.system", "<<", "é\u202e🌍", "\x00", "\ud7ff", "previous", "winner(judge)",
    "steps[0]", "agents", "exact", "w0", "task", "[", "}", "'", '"', "|", ">", "? a", "- - -", "1 / 0", "9" * 400,
    "(" * 60,
]  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-2, 5), st.sampled_from([2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 10**30, 10**400]), st.integers()
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.sampled_from(WORDS), st.text(max_size=12))
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), inner, max_size=4),
    ),
    max_leaves=12,
)


@st.composite
def bent_bytes(draw: st.DrawFn, source: bytes) -> bytes:
    """Cut, overwritten, repeated, with bits turned."""
    data = bytearray(source)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "write", "insert", "repeat", "bit"])):
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "write":
                new = draw(st.binary(min_size=1, max_size=8))
                data[at : at + len(new)] = new
            case "insert":
                data[at:at] = draw(st.binary(max_size=20))
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 60))]
            case "bit":
                if at < len(data):
                    data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


@st.composite
def bent_lines(draw: st.DrawFn, source: str) -> str:
    """Lines lost, doubled, moved or indented, and pieces put in the place of others."""
    lines = source.splitlines()
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, len(lines) - 1)))
        match draw(st.sampled_from(["drop", "double", "move", "indent", "word", "insert"])):
            case "drop":
                lines[at : at + draw(st.integers(1, 3))] = []
            case "double":
                lines[at:at] = lines[at : at + draw(st.integers(1, 6))]
            case "move" if lines:
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "indent" if lines:
                lines[at] = draw(st.sampled_from(["  ", " ", "\t", "- ", "    "])) + lines[at]
            case "word" if lines:
                words = lines[at].split(" ")
                words[draw(st.integers(0, len(words) - 1))] = str(draw(SCALARS))
                lines[at] = " ".join(words)
            case _:
                lines.insert(at, draw(st.sampled_from(WORDS)))
        lines = lines or [""]
    return "\n".join(lines)


@st.composite
def bent_trees(draw: st.DrawFn, source: Any) -> Any:
    """A tree of mappings and lists in which something is replaced, lost or has another name."""
    for _ in range(draw(st.integers(1, 3))):
        source = _bent(draw, source)
    return source


def _bent(draw: st.DrawFn, tree: Any) -> Any:
    inside = isinstance(tree, dict | list) and bool(tree) and draw(st.integers(0, 4)) > 0
    if not inside:
        return draw(TREES)
    if isinstance(tree, list):
        at = draw(st.integers(0, len(tree) - 1))
        return [_bent(draw, each) if number == at else each for number, each in enumerate(tree)]
    key = draw(st.sampled_from(sorted(tree, key=str)))
    match draw(st.sampled_from(["inside", "inside", "inside", "lose", "rename"])):
        case "lose":
            return {name: value for name, value in tree.items() if name != key}
        case "rename":
            other = draw(st.one_of(st.sampled_from(WORDS), st.sampled_from(sorted(tree, key=str))))
            return {other if name == key else name: value for name, value in tree.items()}
    return {name: _bent(draw, value) if name == key else value for name, value in tree.items()}


@st.composite
def documents(draw: st.DrawFn) -> str | bytes:
    """What may come as a workflow's YAML."""
    match draw(st.sampled_from(["lines", "tree", "tree", "random", "random tree", "bytes", "any"])):
        case "lines":
            return draw(bent_lines(draw(st.sampled_from(DOCUMENTS))))
        case "tree":
            return _dumped(draw(bent_trees(yaml.safe_load(draw(st.sampled_from(DOCUMENTS))))))
        case "random":
            return _dumped(draw(workflows()))
        case "random tree":
            return _dumped(draw(bent_trees(draw(workflows()))))
        case "bytes":
            return draw(bent_bytes(draw(st.sampled_from(DOCUMENTS)).encode()))
    return draw(st.one_of(st.text(max_size=200), st.binary(max_size=200), TREES.map(_dumped)))


def _dumped(tree: Any) -> str:
    return str(yaml.safe_dump(tree, allow_unicode=True))


def _as_bytes(document: str | bytes) -> bytes:
    return document.encode(errors="surrogatepass") if isinstance(document, str) else document


def requests(kind: Descriptor, names: Sequence[str]) -> st.SearchStrategy[bytes]:
    """Serialized messages of a kind, bent ones and random bytes. `names` are ids that may mean something."""
    sound = messages(kind, names).map(lambda message: message.SerializeToString())
    return st.one_of(sound, sound, sound.flatmap(bent_bytes), st.binary(max_size=60))


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, names: Sequence[str], depth: int = 3) -> Message:
    """One with some of its fields set to anything."""
    if kind.full_name.startswith("google.protobuf.") and kind.name in ("Value", "Struct", "ListValue"):
        tree = draw(st.dictionaries(st.text(max_size=4), PLAIN, max_size=3) if kind.name == "Struct" else PLAIN)
        made = GetMessageClass(kind)()
        if kind.name == "ListValue":
            tree = [tree]
        json_format.ParseDict(tree, made)
        return made
    made = GetMessageClass(kind)()
    fields = list(kind.fields)
    for field in (
        draw(st.lists(st.sampled_from(fields), max_size=5, unique_by=lambda each: each.name)) if fields else []
    ):
        _set(draw, made, field, names, depth)
    return made


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


def _set(draw: st.DrawFn, made: Any, field: FieldDescriptor, names: Sequence[str], depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key = draw(st.sampled_from(["", "question", "topic", *WORDS[:4]]))
        value = field.message_type.fields_by_name["value"]
        if value.message_type is not None:
            getattr(made, field.name)[key].CopyFrom(draw(messages(value.message_type, names, depth - 1)))
        else:
            getattr(made, field.name)[key] = draw(_scalars(value, names))
    elif field.message_type is not None:
        if depth == 0:
            return
        inner = messages(field.message_type, names, depth - 1)
        if field.is_repeated:
            getattr(made, field.name).extend(draw(st.lists(inner, max_size=3)))
        else:
            getattr(made, field.name).CopyFrom(draw(inner))
    elif field.is_repeated:
        getattr(made, field.name).extend(draw(st.lists(_scalars(field, names), max_size=4)))
    else:
        setattr(made, field.name, draw(_scalars(field, names)))


def _scalars(field: FieldDescriptor, names: Sequence[str]) -> st.SearchStrategy[Any]:
    small = st.integers(0, 3)
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return st.one_of(
                documents().map(_as_bytes), st.sampled_from(DOCUMENTS).map(_as_bytes), st.binary(max_size=20)
            )
        case FieldDescriptor.CPPTYPE_STRING:
            text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
            return st.one_of(st.sampled_from([*names, *names, *WORDS]), text)
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.one_of(st.sampled_from([each.number for each in field.enum_type.values]), st.integers(0, 99))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return st.one_of(st.floats(width=32), st.floats(0, 2, width=32))
        case FieldDescriptor.CPPTYPE_INT32:
            return st.one_of(small, st.integers(-(2**31), 2**31 - 1))
        case FieldDescriptor.CPPTYPE_INT64:
            return st.one_of(small, st.integers(-(2**63), 2**63 - 1))
        case FieldDescriptor.CPPTYPE_UINT32:
            return st.one_of(small, st.integers(0, 2**32 - 1))
    return st.one_of(small, st.integers(0, 2**64 - 1))
