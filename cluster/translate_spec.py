"""Workflow documents as plain dicts to the structured `WorkflowSpec` and back.

Both walk the schema of laban.proto, so a field added there needs no code here. What the document keeps in
a mapping from names is a list of entries with a `key` in protobuf, whose maps have no order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.struct_pb2 import Struct, Value

from laban.actors.errors import InvalidInput, NotBuilt
from laban.cluster.translate import enum_number, enum_word
from laban.cluster.translate_values import schema_from_python, schema_to_python, value_from_python, value_to_python
from laban.cluster.workflow import shorthands
from laban.cluster.workflow.diagnostics import suggest
from laban.proto import laban_pb2 as pb

__all__ = ["RESERVED", "spec_from_dict", "spec_to_dict", "value_from_python", "value_to_python"]

RESERVED = frozenset({"tools"})

_EXPECTED: dict[int, tuple[tuple[type, ...], str]] = {
    FieldDescriptor.CPPTYPE_STRING: ((str,), "text"),
    FieldDescriptor.CPPTYPE_BOOL: ((bool,), "true or false"),
    FieldDescriptor.CPPTYPE_INT32: ((int,), "a whole number within 32 bits"),
    FieldDescriptor.CPPTYPE_INT64: ((int,), "a whole number within 64 bits"),
    FieldDescriptor.CPPTYPE_DOUBLE: ((int, float), "a number"),
}


def spec_to_dict(spec: pb.WorkflowSpec) -> dict[str, Any]:
    """The document's dict form: what is set, and nothing else.

    Raises NotBuilt for what is reserved, InvalidInput for a list entry whose key is missing or given twice.
    """
    return _to_dict(spec, "")


def spec_from_dict(document: Mapping[str, Any]) -> pb.WorkflowSpec:
    """The structured form of a document's dict form, its shorthands spelled out.

    Raises InvalidInput for unknown keys and wrong types. What the fields mean is for the server to check.
    """
    spec = pb.WorkflowSpec()
    _fill(spec, document, "")
    return spec


def _is_keyed(field: FieldDescriptor) -> bool:
    """Whether a repeated field stands for a mapping from names."""
    return field.message_type is not None and "key" in field.message_type.fields_by_name


def _join_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _to_dict(message: Any, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        at = _join_path(path, field.name)
        if field.name in RESERVED:
            raise NotBuilt("reserved in the schema, not served yet", field=at)
        if field.name == "key":
            continue
        if field.type == FieldDescriptor.TYPE_ENUM:
            if value not in field.enum_type.values_by_number:
                raise InvalidInput(f"not a value of {field.enum_type.name}", field=at, value=value)
            if value:
                found[field.name] = enum_word(pb.Fidelity, value, "FIDELITY_")
        elif field.type != FieldDescriptor.TYPE_MESSAGE:
            found[field.name] = list(value) if field.is_repeated else value
        elif not field.is_repeated:
            found[field.name] = _one_to_dict(value, at)
        elif _is_keyed(field):
            found[field.name] = _keyed_to_dict(value, at)
        else:
            found[field.name] = [_to_dict(item, f"{at}[{place}]") for place, item in enumerate(value)]
    return found


def _one_to_dict(value: Any, path: str) -> Any:
    if isinstance(value, pb.JsonSchema):
        return schema_to_python(value, path)
    if isinstance(value, Struct):
        return value_to_python(Value(struct_value=value), path)
    return value_to_python(value, path) if isinstance(value, Value) else _to_dict(value, path)


def _keyed_to_dict(entries: Sequence[Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, entry in enumerate(entries):
        if not entry.key or entry.key in found:
            problem = "given twice" if entry.key else "missing"
            raise InvalidInput(f"{problem}, expected a name of its own", field=f"{path}[{place}].key", value=entry.key)
        found[entry.key] = _to_dict(entry, f"{path}.{entry.key}")
    return found


_BARE = {
    "MessageSpec": "text", "AgentSpec": "prompt", "ReadSpec": "read", "OutputSpec": "read", "VoteSpec": "over",
    "ValueSpec": "regex", "BoundMessage": "read",
}  # fmt: skip
_SHORTHANDS: dict[str, Callable[[Any], Any]] = {
    **{kind: shorthands.bare(key) for kind, key in _BARE.items()},
    "JoinSpec": shorthands.join,
    "ForEachSpec": shorthands.for_each,
    "RetriesSpec": shorthands.retries,
    "StepSpec": shorthands.step,
}


def _spelled(kind: Descriptor, value: Any, path: str) -> Any:
    """A shorthand spelled out; anything else as it is."""
    try:
        value = _SHORTHANDS[kind.name](value) if kind.name in _SHORTHANDS else value
    except shorthands.ShorthandProblem as problem:
        raise InvalidInput(str(problem), field=_join_path(path, problem.key) if problem.key else path) from None
    if kind.name == "ForEachSpec" and isinstance(value, Mapping) and value.get("agents") == []:
        raise InvalidInput("a fan-out over no agents, expected at least one", field=_join_path(path, "agents"))
    return value


def _fill(message: Any, data: Any, path: str) -> None:
    kind: Descriptor = message.DESCRIPTOR
    data = _spelled(kind, data, path)
    if not isinstance(data, Mapping):
        raise InvalidInput("expected a mapping of names to values", field=path or "workflow", value=data)
    known = [name for name in kind.fields_by_name if name != "key"]
    for name, value in data.items():
        at = _join_path(path, str(name))
        if name not in known:
            raise InvalidInput(f"unknown key; {suggest(str(name), known)}".rstrip("; "), field=at)
        field = kind.fields_by_name[name]
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            _fill_scalar(message, field, value, at)
        elif value is None:
            continue
        elif not field.is_repeated:
            _fill_one(getattr(message, name), value, at)
        elif _is_keyed(field):
            value = shorthands.values(value) if name == "values" else value
            if not isinstance(value, Mapping):
                raise InvalidInput("expected a mapping of names to values", field=at, value=value)
            for key, item in value.items():
                entry = getattr(message, name).add()
                _set(entry, "key", str(key), _join_path(at, str(key)), "a name")
                _fill(entry, {} if item is None else item, _join_path(at, str(key)))
        else:
            for place, item in enumerate(_listed(value, at)):
                _fill(getattr(message, name).add(), item, f"{at}[{place}]")


def _fill_one(target: Any, value: Any, path: str) -> None:
    if isinstance(target, Value):
        target.CopyFrom(value_from_python(value, path))
    elif isinstance(target, pb.JsonSchema):
        target.CopyFrom(schema_from_python(value, path))
    elif isinstance(target, Struct):
        if not isinstance(value, Mapping):
            raise InvalidInput("expected a mapping of names to values", field=path, value=value)
        target.CopyFrom(value_from_python(value, path).struct_value)
    else:
        target.SetInParent()
        _fill(target, value, path)


def _fill_scalar(message: Any, field: FieldDescriptor, value: Any, path: str) -> None:
    if value is None:
        return
    if field.type == FieldDescriptor.TYPE_ENUM:
        words = [name.removeprefix("FIDELITY_").lower() for name in pb.Fidelity.keys() if pb.Fidelity.Value(name)]  # noqa: SIM118
        if value not in words:
            raise InvalidInput(f"expected one of {', '.join(words)}", field=path, value=value)
        setattr(message, field.name, enum_number(pb.Fidelity, value, "FIDELITY_"))
        return
    types, expected = _EXPECTED[field.cpp_type]
    values = _listed([value] if isinstance(value, str) else value, path) if field.is_repeated else [value]
    for item in values:
        if not isinstance(item, types) or (isinstance(item, bool) and bool not in types):
            raise InvalidInput(f"expected {expected}", field=path, value=item)
    _set(message, field.name, list(values) if field.is_repeated else value, path, expected)


def _set(message: Any, name: str, value: Any, path: str, expected: str) -> None:
    try:
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{error}; expected {expected}", field=path) from None


def _listed(value: Any, path: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InvalidInput("expected a list", field=path, value=value)
    return value
