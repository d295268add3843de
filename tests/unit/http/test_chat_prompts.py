"""Prompts of chats: always the template's own tokens, and cut where messages end, whatever the template does."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest
from chat_rig import ChatFraming, ChatTokenizer, make_prompts, rendered
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import encode

from laban.actors.chat_messages import ChatMessage, ToolCall, for_template
from laban.actors.chat_template import ChatTemplate
from laban.actors.errors import InvalidInput
from laban.cluster.chat_memory import ChatMemory, Cut
from laban.cluster.chat_prompts import ChatPrompt, ChatPrompts
from laban.cluster.recent import Recent

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
# Drops what was thought in all but the last turn, and puts all answers of tools into one turn.
CONTEXTUAL = """^{% for m in messages %}{% if m.role == 'tool' %}\
{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}\
[user:]{% endif %}<r>{{ m.content }}</r>{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}|{% endif %}\
{% else %}[{{ m.role }}:]{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('~')[-1] }}\
{% else %}{{ m.content }}{% endif %}|{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant:]{% endif %}"""
# No special token anywhere but at the start.
PLAIN = """^{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""

texts = st.text(string.ascii_letters + " ~|<>.\n", max_size=12)
plain = st.builds(ChatMessage, st.sampled_from(["system", "user", "assistant"]), texts, st.sampled_from([None, "bob"]))
called = st.builds(
    lambda text, number: ChatMessage("assistant", text, tool_calls=(ToolCall("c1", "add", f'{{"a": {number}}}'),)),
    texts,
    st.integers(0, 9),
)
answered = st.builds(lambda text: ChatMessage("tool", text, tool_call_id="c1"), texts)
conversations = st.lists(st.one_of(plain, called, answered), min_size=1, max_size=7)


def whole(prompt: ChatPrompt) -> list[int]:
    return [*prompt.root, *(token for part in prompt.parts for token in part.tokens), *prompt.header]


def new_memory() -> ChatMemory:
    return ChatMemory(ChatTokenizer().encode)


@given(conversations, st.booleans(), st.sampled_from([None, CONTEXTUAL, PLAIN]))
def test_the_tokens_are_the_templates(messages: list[ChatMessage], with_tools: bool, template: str | None) -> None:
    prompts = make_prompts(template) if template else make_prompts()
    tools = TOOLS if with_tools and prompts.takes_tools else []
    expected = (
        rendered(for_template(messages), tools, template) if template else rendered(for_template(messages), tools)
    )
    memory = new_memory()
    prompt = prompts.prompt(messages, tools, memory)
    assert whole(prompt) == list(encode(expected))
    assert prompts.prompt(messages, tools, memory) == prompt  # from memory
    beside = memory.beside()
    assert prompts.prompt(messages, tools, beside) == prompt
    assert prompts.prompt(messages, tools, new_memory()) == prompt
    if template is None:
        assert len(prompt.parts) == len(messages)


@given(conversations, plain)
def test_a_longer_conversation_begins_with_the_parts_of_the_shorter(
    messages: list[ChatMessage], last: ChatMessage
) -> None:
    """Else nothing would be found again."""
    prompts, memory = make_prompts(), new_memory()
    shorter = prompts.prompt(messages, TOOLS, memory)
    longer = prompts.prompt([*messages, last], TOOLS, memory)
    assert longer.parts[: len(shorter.parts)] == shorter.parts
    assert longer.header == shorter.header


def test_cuts_are_left_out_where_tokens_might_merge() -> None:
    prompt = make_prompts(PLAIN).prompt([ChatMessage("user", "a"), ChatMessage("user", "b")], [], new_memory())
    assert (prompt.root, prompt.parts) == ((), ())
    assert whole(prompt) == list(encode("^user: a\nuser: b\nassistant:"))


def test_what_a_template_does_not_take_is_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        make_prompts(PLAIN).prompt([ChatMessage("user", "a")], TOOLS, new_memory())
    assert refused.value.field == "tools"
    strict = "{{ raise_exception('turns') if messages | length > 1 }}^{{ messages[0].content }}"
    with pytest.raises(InvalidInput, match="turns"):
        make_prompts(strict).prompt([ChatMessage("user", "a")] * 2, [], new_memory())
    with pytest.raises(InvalidInput, match="at least one"):
        make_prompts().prompt([], [], new_memory())


def test_arguments_are_objects_to_templates_and_answers_have_their_tools_name() -> None:
    calls = (ToolCall("c1", "add", '{"a": 1}'), ToolCall("c2", "say", "not json"))
    turns: list[dict[str, Any]] = for_template(
        [ChatMessage("assistant", "", tool_calls=calls), ChatMessage("tool", "2", tool_call_id="c1")]
    )
    assert [call["function"]["arguments"] for call in turns[0]["tool_calls"]] == [{"a": 1}, "not json"]
    assert turns[1] == {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"}


def test_beginnings_are_rendered_once() -> None:
    class Counting(ChatTemplate):
        count = 0

        def render_messages(self, *arguments: Any, **options: Any) -> str:
            self.count += 1
            return super().render_messages(*arguments, **options)

    template = Counting(make_prompts().template_text, {})
    prompts, memory = ChatPrompts(ChatFraming(), ChatTokenizer(), template), new_memory()
    messages = [ChatMessage("user", str(number)) for number in range(20)]
    prompts.prompt(messages, TOOLS, memory)
    before = template.count
    prompts.prompt([*messages, ChatMessage("user", "more")], TOOLS, memory)
    assert template.count == before + 2  # the whole, and the one beginning that is new


def test_what_was_used_longest_ago_is_forgotten() -> None:
    seeded = random.Random(4)
    recent: Recent[int, int] = Recent(100)
    kept: dict[int, int] = {}
    for _ in range(2000):
        key, size = seeded.randrange(12), seeded.randint(1, 40)
        if seeded.random() < 0.5:
            assert recent.get(key) == (key if key in kept else None)
            if key in kept:
                kept[key] = kept.pop(key)
            continue
        recent.put(key, key, size)
        kept.pop(key, None)
        kept[key] = size
        while sum(kept.values()) > 100:
            kept.pop(next(iter(kept)))
        assert list(recent._found) == list(kept)
    recent.put(99, 99, 101)
    assert recent.get(99) is None
    memory = new_memory()
    assert memory.cut(b"x", lambda: Cut(3, b"d")) == memory.cut(b"x", lambda: None) == Cut(3, b"d")
