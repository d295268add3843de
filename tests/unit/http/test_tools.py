"""Tools: how models write that they call them, and requests that have them."""

from __future__ import annotations

import asyncio
import json
import string
from typing import Any

import openai
import pytest
from chat_rig import ChatRig, chat_rig
from hypothesis import given
from hypothesis import strategies as st

from laban.cluster.chats import ChatBegun
from laban.cluster.http.tool_formats import Called, Hermes, Llama, Parsed, ToolFormat, format_of
from laban.cluster.records import MessageRecord, TokenChunk

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/n"}},
            "required": ["a"],
            "$defs": {"n": {"type": "integer"}},
        },
    },
}
ASKED = [{"role": "user", "content": "add 1"}]
CALL = '{"name": "add", "arguments": {"a": 1}}'
WORDS = ["<tool_call>", "</tool_call>", "<|python_tag|>", CALL, '{"a":', "<", "x ", "\n", ";", "}"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=4), values, max_size=3)


@pytest.mark.parametrize(
    ("text", "left", "calls"),
    [
        ("plain", "plain", ()),
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "", (Called("add", '{"a": 1}'),)),
        ('I add.\n<tool_call>{"name": "add", "arguments": {}}', "I add.", (Called("add", "{}"),)),  # not closed
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 2}"}</tool_call>', "", (Called("add", '{"a": 2}'),)),
        ('<tool_call>{"name": "sub", "arguments": {}}</tool_call>',) * 2 + ((),),  # there is no such tool
        ("<tool_call>{broken</tool_call> end",) * 2 + ((),),
        (
            '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>\n'
            '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>',
            "",
            (Called("add", '{"a": 1}'), Called("add", '{"a": 2}')),
        ),
    ],
)
def test_hermes(text: str, left: str, calls: tuple[Called, ...]) -> None:
    assert Hermes().parse(text, ["add"]) == Parsed(left, calls)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "add", "parameters": {"a": 1}}', (Called("add", '{"a": 1}'),)),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1}}', (Called("add", '{"a": 1}'),)),
        ('{"name": "add", "parameters": {}}; {"name": "add", "arguments": {}}', (Called("add", "{}"),) * 2),
        ('{"name": "sub", "parameters": {}}', ()),
        ('{"answer": 4}', ()),
        ('so: {"name": "add", "parameters": {}}', ()),
    ],
)
def test_llama(text: str, calls: tuple[Called, ...]) -> None:
    assert Llama().parse(text, ["add"]) == Parsed("" if calls else text, calls)


@given(st.sampled_from([Hermes(), Llama()]), st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=8))
def test_what_is_certain_stays_text(form: ToolFormat, words: list[str]) -> None:
    text = "".join(words)
    parsed = form.parse(text, ["add"])
    sent = ""
    for end in range(len(text) + 1):
        sure = text[: form.certain(text[:end])]
        assert sure.startswith(sent)  # nothing is taken back
        sent = sure
    assert parsed.text.strip() == text.strip() if not parsed.calls else True
    if parsed.calls:
        assert sent.strip(" \t\r\n") in ("", parsed.text[: len(sent)].strip(" \t\r\n"))


@given(st.sampled_from([Hermes(), Llama()]), objects)
def test_calls_that_are_written_are_read(form: ToolFormat, arguments: dict[str, Any]) -> None:
    written = json.dumps({"name": "add", form.arguments_key: arguments})
    [call] = form.parse(form.opening + written, ["add"]).calls
    assert (call.name, json.loads(call.arguments)) == ("add", arguments)


def test_the_template_says_which() -> None:
    assert isinstance(format_of("... <tool_call> ..."), Hermes)
    assert isinstance(format_of("{{ '<|python_tag|>' }}"), Llama)
    assert format_of("[TOOL_CALLS]") is None


def saying(rig: ChatRig, *texts: str) -> list[Any]:
    """From now on the model says this, and what it was asked is kept."""
    asked = []

    async def reply(ask: Any, *, tenant: str = "") -> Any:
        asked.append(ask)
        yield ChatBegun(7)
        for index, text in enumerate(texts):
            yield TokenChunk("", "reply", 1, index, (index,), text)
        yield MessageRecord("", "reply", "assistant", None, 0, 9, "exact", tokens_generated=3, text="".join(texts))

    rig.chats.reply = reply  # type: ignore[method-assign]
    return asked


def test_a_tool_loop() -> None:
    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            client = rig.openai()
            given: dict[str, Any] = {"model": rig.model, "tools": [ADD], "messages": ASKED}
            seen = saying(rig, "Wait", ".<tool", '_call>{"name": "add", "argu', 'ments": {"a": 1}}</tool_call>')
            made = await client.chat.completions.create(**given)
            message = made.choices[0].message
            assert (made.choices[0].finish_reason, message.content) == ("tool_calls", "Wait.")
            [call] = message.tool_calls
            assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1})
            [definition] = seen[0].tools
            assert definition["function"]["description"] == "Adds."
            async with client.chat.completions.stream(**given) as stream:
                events = [event async for event in stream]
                final = (await stream.get_final_completion()).choices[0]
            assert "".join(event.delta for event in events if event.type == "content.delta") == "Wait."
            assert (final.finish_reason, final.message.content) == ("tool_calls", "Wait.")
            assert json.loads(final.message.tool_calls[0].function.arguments) == {"a": 1}
            answer = {"role": "tool", "tool_call_id": call.id, "content": "2"}
            seen = saying(rig, "It is 2.")
            back = await client.chat.completions.create(
                **{**given, "messages": [*ASKED, message.model_dump(exclude_none=True), answer]}
            )
            assert back.choices[0].message.content == "It is 2."
            assert seen[0].messages[1].tool_calls[0].call_id == seen[0].messages[2].tool_call_id == call.id

    asyncio.run(main())


def test_choices_of_tools() -> None:
    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            client = rig.openai()
            given: dict[str, Any] = {"model": rig.model, "tools": [ADD], "messages": ASKED}
            two = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>' * 2
            saying(rig, two)
            made = await client.chat.completions.create(**given, parallel_tool_calls=False)
            assert len(made.choices[0].message.tool_calls) == 1
            seen = saying(rig, two)
            made = await client.chat.completions.create(**given, tool_choice="none")
            assert (made.choices[0].message.tool_calls, seen[0].tools) == (None, ())
            for choice in ("required", {"type": "function", "function": {"name": "add"}}):
                seen = saying(rig, '{"name": "add", "arguments"', ': {"a": 4}}')
                made = await client.chat.completions.create(**given, tool_choice=choice)
                assert made.choices[0].message.tool_calls[0].function.arguments == '{"a": 4}'
                assert seen[0].opening == "<tool_call>\n"
                schema = json.loads(seen[0].sampling.constraint.schema)
                assert schema["properties"]["name"] == {"const": "add"}
                assert schema["$defs"] == {"n": {"type": "integer"}}
                stream = await client.chat.completions.create(**given, tool_choice=choice, stream=True)
                parts = [chunk.choices[0].delta async for chunk in stream]
                assert "".join(part.content or "" for part in parts) == ""
                assert [part.tool_calls[0].function.arguments for part in parts if part.tool_calls] == ['{"a": 4}']
            for changes, param in (
                ({"tools": [ADD, ADD]}, "tools"),
                ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice.function.name"),
                ({"tool_choice": "perhaps"}, "tool_choice"),
                ({"response_format": {"type": "json_object"}}, "response_format"),
                ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
                (
                    {"tools": [{"type": "function", "function": {"name": "a", "strict": True}}]},
                    "tools[0].function.strict",
                ),
            ):
                with pytest.raises(openai.BadRequestError) as raised:
                    await client.chat.completions.create(**{**given, **changes})
                assert raised.value.param == param
        async with chat_rig(scripted=True, template="^{% for m in messages %}[{{ m.content }}]{% endfor %}[") as rig:
            with pytest.raises(openai.BadRequestError, match="not read here") as raised:
                await rig.openai().chat.completions.create(**given)
            assert raised.value.param == "tools"

    asyncio.run(main())
