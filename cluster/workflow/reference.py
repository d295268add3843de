"""The reference of the workflow language, from its schema: docs/workflow.schema.json and the tables of its page.

python -m laban.cluster.workflow.reference --write      renews both; --check only compares
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from laban.cluster.workflow import schema
from laban.cluster.workflow.json_schema import workflow_schema
from laban.cluster.workflow.reference_texts import COUNT, TEXTS, models
from laban.cluster.workflow.schema import Model

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, SCHEMA = DOCS / "workflow-language.md", DOCS / "workflow.schema.json"
_PLAIN = {"string": "text", "boolean": "`true`, `false`", "integer": "integer", "number": "number"}
_MARKED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def table_of(model: type[Model], found: Mapping[str, Any]) -> str:
    """`found` is the JSON Schema: types stand there as they are written in a file."""
    rows = ["| key | type | default | what it is |", "|---|---|---|---|"]
    for key, field in model.model_fields.items():
        type_ = _type_text(found["$defs"][model.__name__]["properties"][key])
        rows.append(f"| `{key}` | {type_} |{_default_text(field)}| {TEXTS[model][key]} |")
        if model is schema.Step and key == "for_each":
            rows.append(f"| `count` | integer | | {COUNT} |")
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with its tables renewed."""
    found = workflow_schema()
    named = {model.__name__: model for model in models()}

    def renew(match: re.Match[str]) -> str:
        return f"{match[1]}{table_of(named[match[2]], found)}{match[3]}"

    return _MARKED.sub(renew, page)


def schema_text() -> str:
    return json.dumps(workflow_schema(), indent=1, ensure_ascii=False) + "\n"


def stale() -> list[Path]:
    """The files that are not as they would be written."""
    wanted = {PAGE: written(PAGE.read_text()), SCHEMA: schema_text()}
    return [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="reference", description="The reference of the workflow language.")
    parser.add_argument("--write", action="store_true", help="renew what is generated of docs/")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if it is stale")
    arguments = parser.parse_args(argv)
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text()))
        SCHEMA.write_text(schema_text())
    if arguments.check:
        for path in stale():
            print(f"stale: docs/{path.name}; run python -m laban.cluster.workflow.reference --write", file=sys.stderr)
        return int(bool(stale()))
    if not arguments.write:
        print(schema_text(), end="")
    return 0


def _type_text(found: Mapping[str, Any]) -> str:
    """
    >>> _type_text({"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 2000}})
    'list of integer, 1 to 2,000'
    """
    if "anyOf" in found:
        return " or ".join(dict.fromkeys(_type_text(option) for option in found["anyOf"]))
    if "$ref" in found:
        return "mapping"
    if "title" in found:
        return str(found["title"])
    if "const" in found or "enum" in found:
        return ", ".join(f"`{value}`" for value in found.get("enum", [found.get("const")]))
    if found.get("type") == "array":
        inner = _type_text(found["items"])
        return f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if found.get("type") == "object":
        return "mapping"
    return f"{_PLAIN.get(found.get('type', ''), 'any value')}{_range_text(found)}"


def _range_text(found: Mapping[str, Any]) -> str:
    least, most = found.get("minimum"), found.get("maximum")
    if "exclusiveMinimum" in found:
        return f", more than {found['exclusiveMinimum']:,}, at most {most:,}"
    return "" if least is None else f", {least:,} to {most:,}"


def _default_text(field: FieldInfo) -> str:
    """A cell's inside, with the spaces around it."""
    text = _shown_default(field)
    return f" {text} " if text else " "


def _shown_default(field: FieldInfo) -> str:
    value = field.default
    if field.is_required():
        return "needed"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, schema.Join):
        return "`all`"
    if value is None or value is PydanticUndefined or value in ("", [], {}) or isinstance(value, Model):
        return ""
    return f"`{json.dumps(value)}`" if value == "\n\n" else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    sys.exit(main())
