"""Bodies of any kind are answered: with what is wrong, never with a bug, and never not at all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from chat_rig import ChatRig, chat_rig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laban.cluster.http.requests import ALLOWED, HARMLESS, SERVED

PATH = "POST /v1/chat/completions HTTP/1.1"
NAMES = [*SERVED, *HARMLESS, *ALLOWED, "best_of"]
WORDS = [
    "user",
    "assistant",
    "tool",
    "text",
    "function",
    "auto",
    "required",
    "json_schema",
    "scripted",
    "add",
    "",
    "\ud800",
]
scalars = (
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=8)
)
names = st.sampled_from(
    ["role", "content", "name", "type", "text", "function", "parameters", "schema", "json_schema", "fidelity", "id",
     "tool_calls", "arguments", "include_usage", "$ref", "properties", "tool_call_id", "enum", "items"]
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": scalars})
    | st.dictionaries(names, values, max_size=4),
    max_size=4,
)
near = st.fixed_dictionaries({"model": st.just("scripted"), "messages": messages, "max_tokens": st.integers(1, 4)})
bodies = st.builds(lambda base, more: base | more, near, st.dictionaries(st.sampled_from(NAMES), values, max_size=3))


async def answered(rig: ChatRig, body: bytes) -> int:
    status, found = await rig.ask(PATH, body)
    assert status < 500, (body, found)
    if status != 200:
        error = json.loads(found)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    return status


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(bodies, min_size=6, max_size=12), st.lists(st.binary(max_size=20), max_size=2))
def test_no_body_is_a_bug(given_bodies: list[dict[str, Any]], others: list[bytes]) -> None:
    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            raw = [json.dumps(body).encode() for body in given_bodies] + others
            await asyncio.gather(*(answered(rig, body) for body in raw))
            whole = {"model": rig.model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
            assert await answered(rig, json.dumps(whole).encode()) == 200  # it still serves

    asyncio.run(main())


def test_bodies_that_are_nested_or_long() -> None:
    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
            inner: Any = {"type": "object"}
            for _ in range(400):
                inner = {"type": "array", "items": inner}
            tool = {"type": "function", "function": {"name": "add", "parameters": inner}}
            one = {"model": rig.model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
            for body in (deep, b"[" * 100_000, b"{}" * 2, b"\xff", b"", b"3", b'{"max_tokens": NaN}'):
                assert await answered(rig, body) == 400
            await answered(rig, json.dumps(one | {"tools": [tool]}).encode())
            schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": inner}}
            await answered(rig, json.dumps(one | {"response_format": schema}).encode())
            long = [{"role": "user", "content": "word " * 40_000}]
            assert await answered(rig, json.dumps(one | {"messages": long}).encode()) == 400
            many = [{"role": "user", "content": ""}] * 5000
            assert await answered(rig, json.dumps(one | {"messages": many}).encode()) == 400

    asyncio.run(main())
