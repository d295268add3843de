"""values.schema.json of the chart: the hand-written values.schema.yaml, and `config` as cluster/config.py has it.

python helm/schema.py --write | --check
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from laban.cluster.config import LabanConfig
from laban.cluster.config_grants import GrantedMessage, GrantSection
from laban.cluster.config_models import AdapterSection, ModelSection, parse_budget
from laban.cluster.sizes import parse_size

HERE = Path(__file__).parent
SHIPPED = HERE / "laban" / "values.schema.json"
LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""As pydantic leaves them where a validator stands before them, and as JSON Schema has them."""
SIZE = {"type": "string", "pattern": r"^\s*\d{1,18}(\.\d{1,9})?([eE]\d{1,2})?\s*(([KkMmGgTt][Ii]?)?[Bb]|%)?\s*$"}
NARROWER: dict[str, dict[str, Any]] = {
    # Services and probes have to know them, and who is nobody may not take those below.
    "server.port": {"type": "integer", "minimum": 1024, "maximum": 65535},
    "http.port": {"type": "integer", "minimum": 1024, "maximum": 65535},
    "metrics.port": {"type": "integer", "minimum": 1024, "maximum": 65535},
    # It would stand in a ConfigMap.
    "journal.url": {
        "type": ["string", "null"],
        "pattern": "^[^@]*$|^[^:]+://[^:@/]*@",
        "description": "a URL with a password belongs into a Secret: secrets.journal",
    },
}
ENTRIES: dict[str, tuple[type[BaseModel], list[dict[str, Any]]]] = {
    "models": (ModelSection, []),
    "adapters": (AdapterSection, [{"type": "string"}]),
    "grants": (GrantSection, []),
}
"""What may stand behind a name; of an adapter also its path alone."""
LISTED: dict[str, type[BaseModel]] = {"*.messages": GrantedMessage}
"""What lists are of."""
REQUIRED = {
    "": ["workers", "engine", "server", "http", "metrics", "ray"],
    "engine.": ["shards", "device"],
    "server.": ["host", "port"],
    "http.": ["host", "port"],
    "metrics.": ["host", "port"],
    "ray.": ["address"],
}
"""What templates read. A null of the user's takes a default away."""


def schema() -> dict[str, Any]:
    base: dict[str, Any] = yaml.safe_load((HERE / "values.schema.yaml").read_text(encoding="utf-8"))
    base["properties"]["config"] = _section(LabanConfig)
    return base


def text() -> str:
    return json.dumps(schema(), indent=1) + "\n"


def _section(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    found = model.model_json_schema(ref_template="{model}")
    properties = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            properties[name] = _section(field.annotation, f"{prefix}{name}.")
        elif prefix + name in ENTRIES:
            properties[name] = _entries(found["properties"][name], *ENTRIES[prefix + name])
        else:
            properties[name] = _field(field, found["properties"][name], prefix + name)
    return {
        "type": "object",
        "description": (model.__doc__ or "").strip(),
        "additionalProperties": False,
        **({"required": REQUIRED[prefix]} if prefix in REQUIRED else {}),
        "properties": properties,
    }


def _entries(found: dict[str, Any], kind: type[BaseModel], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a mapping from names to sections."""
    (pattern,) = found["patternProperties"]
    section = {"anyOf": [_section(kind, "*."), *others]}
    return {key: value for key, value in found.items() if key != "title"} | {
        "patternProperties": {pattern: section},
        "additionalProperties": False,
    }


def _field(field: FieldInfo, found: dict[str, Any], path: str) -> dict[str, Any]:
    found = {key: value for key, value in found.items() if key != "title"} | NARROWER.get(path, {})
    if path in NARROWER:
        found.pop("anyOf", None)
    if path in LISTED:
        found["items"] = _section(LISTED[path], "**.")
    kinds = [{LIMITS.get(key, key): value for key, value in kind.items()} for kind in found.pop("anyOf", [])]
    if _is_size(field):
        kinds = kinds or [{key: found.pop(key) for key in list(found) if key not in ("description", "default")}]
        kinds.append(SIZE)
    return found | ({"anyOf": kinds} if kinds else {})


def _is_size(field: FieldInfo) -> bool:
    parts = [*field.metadata, *(part for kind in get_args(field.annotation) for part in get_args(kind))]
    return any(getattr(part, "func", None) in (parse_size, parse_budget) for part in parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="schema", description="The schema of the chart's values.")
    parser.add_argument("--write", action="store_true", help="renew it")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if it is stale")
    arguments = parser.parse_args(argv)
    if arguments.write:
        SHIPPED.write_text(text(), encoding="utf-8")
    if arguments.check and SHIPPED.read_text(encoding="utf-8") != text():
        print(f"stale: {SHIPPED.name}; run python helm/schema.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
