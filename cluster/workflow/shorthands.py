"""The short forms of the language, spelled out: functions of plain values.

Both who validates (`schema.py`) and who translates to protobuf (`translate_spec.py`, which a client has without
pydantic) go through these, so that they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# What `external` may say in the place of its step.
_OF_THE_STEP = ("timeout_s", "retries", "on_error")


class ShorthandProblem(ValueError):
    """A short form that cannot be spelled out: why, and at which key of it, if at one."""

    def __init__(self, message: str, key: str = "") -> None:
        self.key = key
        super().__init__(message)


def bare(key: str) -> Callable[[Any], Any]:
    """A bare text stands for the mapping {key: text}."""
    return lambda value: {key: value} if isinstance(value, str) else value


def list_of_one(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def join(value: Any) -> Any:
    """`all` and `any`."""
    if isinstance(value, str):
        if value not in ("all", "any"):
            raise ShorthandProblem("not a join: write all, any or {at_least: n}")
        return {} if value == "all" else {"at_least": 1}
    return value


def for_each(value: Any) -> Any:
    """`agents`, a number, some agents, or the name of a list."""
    if value == "agents":
        return {}
    if isinstance(value, int) and not isinstance(value, bool):
        return {"count": value}
    if isinstance(value, list | tuple):
        return {"agents": list(value)}
    return {"input": value} if isinstance(value, str) else value


def retries(value: Any) -> Any:
    return {"max": value} if isinstance(value, int) and not isinstance(value, bool) else value


def values(value: Any) -> Any:
    """`[verdict, score]` stands for {verdict: {}, score: {}}."""
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    return value


def step(value: Any) -> Any:
    """`count: n` stands for `for_each: n`; what `external` says of attempts is said of the step."""
    if not isinstance(value, Mapping):
        return value
    data = dict(value)
    if "count" in data:
        if "for_each" in data:
            raise ShorthandProblem("both for_each and count are given: they mean the same, keep one", "count")
        data = {("for_each" if key == "count" else key): item for key, item in data.items()}
    external = data.get("external")
    if isinstance(external, Mapping):
        for key in _OF_THE_STEP:
            if key in external:
                if key in data:
                    raise ShorthandProblem(f"{key} is given twice, in the step and in `external`: keep one", key)
                data[key] = external[key]
        data["external"] = {key: item for key, item in external.items() if key not in _OF_THE_STEP}
    return data
