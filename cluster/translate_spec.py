"""Workflow documents as plain dicts to the structured `WorkflowSpec` and back, and plain values likewise.

Both walk the schema of laban.proto, so a field added there needs no code here. What the document keeps in
a mapping from names is a list of entries with a `key` in protobuf, whose maps have no order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value

from laban.actors.errors import InvalidInput, NotBuilt
from laban.cluster.translate import enum_number, enum_word
from laban.cluster.workflow import shorthands
from laban.cluster.workflow.diagnostics import suggest
from laban.proto import laban_pb2 as pb

RESERVED = frozenset({"model", "adapter", "tools", "response_schema"})
MAX_DEPTH = 30
MAX_WHOLE = 2**53  # the largest whole number that a protobuf Value keeps exactly

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


def value_from_python(value: object, path: str, depth: int = 0) -> Value:
    """Raises InvalidInput for what a protobuf Value cannot hold exactly."""
    if depth > MAX_DEPTH:
        raise InvalidInput(f"nested too deep, expected at most {MAX_DEPTH} levels", field=path)
    if value is None:
        return Value(null_value=NULL_VALUE)
    if isinstance(value, bool):
        return Value(bool_value=value)
    if isinstance(value, str):
        try:
            return Value(string_value=value)
        except ValueError as error:
            raise InvalidInput(f"not valid Unicode text ({error})", field=path) from None
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidInput("expected a finite number", field=path, value=value)
        if isinstance(value, int) and abs(value) > MAX_WHOLE:
            raise InvalidInput("expected a whole number within 2^53; give larger ones as text", field=path, value=value)
        return Value(number_value=value)
    if isinstance(value, Mapping):
        fields = {str(key): value_from_python(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
        return Value(struct_value=Struct(fields=fields))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        items = [value_from_python(item, f"{path}[{place}]", depth + 1) for place, item in enumerate(value)]
        return Value(list_value=ListValue(values=items))
    raise InvalidInput(
        "expected text, a number, true, false, null, a list or a mapping", field=path, value=type(value).__name__
    )


def value_to_python(value: Value, path: str) -> Any:
    """Whole numbers come out as int. Raises InvalidInput for a Value with nothing in it or a number not finite."""
    kind = value.WhichOneof("kind")
    if kind is None:
        raise InvalidInput("empty, expected a value", field=path)
    if kind == "null_value":
        return None
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise InvalidInput("expected a finite number", field=path, value=number)
        return int(number) if number.is_integer() and abs(number) <= MAX_WHOLE else number
    if kind == "struct_value":
        return {key: value_to_python(item, f"{path}.{key}") for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [value_to_python(item, f"{path}[{place}]") for place, item in enumerate(value.list_value.values)]
    return value.bool_value if kind == "bool_value" else value.string_value


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
            found[field.name] = _plain_value(value, at) if isinstance(value, Value | Struct) else _to_dict(value, at)
        elif _is_keyed(field):
            found[field.name] = _keyed_to_dict(value, at)
        else:
            found[field.name] = [_to_dict(item, f"{at}[{place}]") for place, item in enumerate(value)]
    return found


def _plain_value(value: Value | Struct, path: str) -> Any:
    return value_to_python(value if isinstance(value, Value) else Value(struct_value=value), path)


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
