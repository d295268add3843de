"""The values of a workflow's inputs, from flags: K=V, K=@FILE, K=@GLOB, K:=JSON, K:=@FILE.json, K:=@FILE.csv."""

from __future__ import annotations

import csv
import glob
import io
import json
from pathlib import Path

from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.cli.files import read_file


def parse_inputs(given: list[str]) -> dict[str, object]:
    """Each input once. Raises InvalidInput or NotFound, with what was expected."""
    inputs: dict[str, object] = {}
    for item in given:
        name, found, value = item.partition("=")
        if not found or not name.rstrip(":"):
            raise InvalidInput("expected K=V", field="--input", value=item)
        typed = name.endswith(":")
        name = name.removesuffix(":")
        if name in inputs:
            raise InvalidInput("is given twice", field=f"--input {name}", value=value)
        if typed:
            inputs[name] = _typed(name, value)
        else:
            inputs[name] = _texts(name, value[1:]) if value.startswith("@") else value
    return inputs


def _texts(name: str, pattern: str) -> str | list[str]:
    """The text of a file; of a pattern, those of all files that match, in the order of their names."""
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return _text(name, pattern)
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not paths:
        raise NotFound("no file matches", field=f"--input {name}", value=pattern)
    return [_text(name, path) for path in paths]


def _text(name: str, path: str) -> str:
    try:
        return read_file(path, f"--input {name}").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"is not UTF-8 ({error.reason})", field=f"--input {name}", value=path) from None


def _typed(name: str, value: str) -> object:
    """JSON, here or in a file, or a column of a CSV file."""
    if not value.startswith("@"):
        return _json(name, value, value)
    path, _, column = value[1:].rpartition(":")
    if not path.lower().endswith(".csv"):
        path, column = value[1:], ""
    text = _text(name, path)
    return _column(name, path, text, column) if path.lower().endswith(".csv") else _json(name, text, path)


def _json(name: str, text: str, shown: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"is not JSON ({error})", field=f"--input {name}", value=shown) from None


def _column(name: str, path: str, text: str, column: str) -> list[str]:
    """The cells of one column, without its head."""
    field = f"--input {name}"
    try:
        head, *rows = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    except ValueError:
        raise InvalidInput("has no row, expected a head with the columns' names", field=field, value=path) from None
    except csv.Error as error:
        raise InvalidInput(f"is not CSV ({error})", field=field, value=path) from None
    columns = f"a column, one of {', '.join(head)}"
    if not column and len(head) > 1:
        raise InvalidInput(f"has {len(head)} columns, expected {columns}, as in @{path}:{head[0]}", field=field)
    if column and column not in head:
        raise InvalidInput(f"has no such column, expected {columns}", field=field, value=column)
    at = head.index(column) if column else 0
    for number, row in enumerate(rows, 1):
        if row and len(row) != len(head):
            problem = f"row {number} has {len(row)} cells, expected {len(head)}"
            raise InvalidInput(problem, field=field, value=path)
    return [row[at] for row in rows if row]
