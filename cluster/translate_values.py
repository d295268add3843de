"""Plain JSON values as protobuf values, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value

from laban.actors.errors import InvalidInput
from laban.proto import laban_pb2 as pb

MAX_DEPTH = 30
MAX_WHOLE = 2**53  # the largest whole number that a protobuf Value keeps exactly


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


def struct_from_python(values: Mapping[str, object]) -> Struct:
    """Values that are ours to tell, so that none is refused: what a Struct cannot hold goes as text, or as null."""
    return Struct(fields={_text(key): value_from_python(_tellable(item), key) for key, item in values.items()})


def struct_to_python(values: Struct) -> dict[str, Any]:
    return {key: value_to_python(item, key) for key, item in values.fields.items()}


def schema_from_python(schema: object, path: str) -> pb.JsonSchema:
    """Raises InvalidInput for what is no mapping, or has in it what JSON cannot say."""
    if not isinstance(schema, Mapping):
        raise InvalidInput("expected a mapping of names to values", field=path, value=schema)
    value_from_python(schema, path)
    return pb.JsonSchema(json=json.dumps(schema, ensure_ascii=False))


def schema_to_python(schema: pb.JsonSchema, path: str) -> dict[str, Any]:
    """Raises InvalidInput for a text that is no JSON object."""
    try:
        found = json.loads(schema.json, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"not JSON ({str(error)[:100]})", field=path) from None
    if not isinstance(found, dict):
        raise InvalidInput("expected a JSON object", field=path, value=type(found).__name__)
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _tellable(value: object, depth: int = 1) -> object:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if abs(value) <= MAX_WHOLE else str(value)
    if isinstance(value, Mapping | list | tuple) and depth >= MAX_DEPTH:
        return _text(json.dumps(value, default=str))
    if isinstance(value, Mapping):
        return {_text(str(key)): _tellable(item, depth + 1) for key, item in value.items()}
    return [_tellable(item, depth + 1) for item in value] if isinstance(value, list | tuple) else value


def _text(text: str) -> str:
    """Without lone surrogates, which JSON can bring and protobuf refuses."""
    return text.encode("utf-8", "replace").decode()
