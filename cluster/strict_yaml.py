"""YAML of files that people keep by hand: plain values, and no key twice.

YAML lets a reader take the last of two equal keys. A second `auth:` or `tenants:` at the end of a file would then undo
the first one without a word.
"""

from __future__ import annotations

from typing import Any

import yaml


class KeyTwice(yaml.MarkedYAMLError):
    """A key is there a second time. `line` counts from 1."""

    def __init__(self, key: str, line: int) -> None:
        super().__init__(problem=f"line {line}: {key} is there twice, expected once")
        self.line = line


class _Loader(yaml.SafeLoader):
    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # a 13th month, and `!!int x`, are Python's errors in PyYAML
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise yaml.constructor.ConstructorError(
                problem=f"expected a value of the kind {kind}, or a text in quotes", problem_mark=node.start_mark
            ) from None

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise KeyTwice(key.value, key.start_mark.line + 1)
                seen.add((key.tag, key.value))
        return node


def load_yaml(text: str) -> Any:
    """As `yaml.safe_load`. Raises yaml.YAMLError and nothing else, for a key that is there twice KeyTwice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("is nested too deep") from None
