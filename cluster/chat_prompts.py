"""From chat messages to a prompt: exactly what the model's own chat template makes of them, cut into its messages.

The template is rendered once for the whole, with the header of the answer. Where the conversation is as the model's
frames say, as nearly all are, these say where to cut. Else, with tools above all, the template is rendered for each
beginning of the conversation, too: where the whole begins with that, a message ends. A cut stays only where a special
token follows: there, and in general nowhere else, the parts' tokens in a row are those of the whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

from laban.actors.chat_messages import ChatMessage, for_template
from laban.actors.chat_template import ChatTemplate, Refused
from laban.actors.errors import InvalidInput
from laban.cluster.chat_memory import ChatMemory, Cut
from laban.cluster.messages import FramingPort, TokenizerPort

PROBE = ({"role": "user", "content": "zqUser"},)
PROBE_TOOL = ({"type": "function", "function": {"name": "zqTool", "description": "zq", "parameters": {}}},)
Tools = Sequence[Mapping[str, Any]]


class TextFraming(FramingPort, Protocol):
    """What is needed of `laban.actors.framing.Framing`."""

    def root_text(self, first_role: str) -> str: ...
    def message_text(self, role: str, text: str, name: str | None = None, *, first: bool = False) -> str: ...
    def header_text(self, role: str, name: str | None = None, *, first: bool = False) -> str: ...


class ChatTokenizer(TokenizerPort, Protocol):
    """What is needed of `laban.actors.tokenizer.Tokenizer`."""

    def decode(self, ids: Sequence[int]) -> str: ...
    def is_special(self, token_id: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class ChatPart:
    """A message with its frame, or several that cannot be told apart. `role` is the first one's."""

    role: str
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """`root`, parts and `header` in a row are the whole prompt's tokens."""

    root: tuple[int, ...]
    parts: tuple[ChatPart, ...]
    header: tuple[int, ...]


_Piece = tuple[str, str]  # role, text


class ChatPrompts:
    """Of one model."""

    def __init__(self, framing: TextFraming, tokenizer: ChatTokenizer, template: ChatTemplate) -> None:
        self.framing, self.tokenizer, self._template = framing, tokenizer, template
        self.takes_tools = self._takes_tools()

    @property
    def template_text(self) -> str:
        return self._template.text

    def prompt(self, messages: Sequence[ChatMessage], tools: Tools, memory: ChatMemory) -> ChatPrompt:
        """Raises InvalidInput for a conversation, or tools, that the template does not accept."""
        if not messages:
            raise InvalidInput("expected at least one message", field="messages")
        if tools and not self.takes_tools:
            raise InvalidInput("the model's chat template has no place for tools, expected none", field="tools")
        turns = [_guarded(turn, self.tokenizer) for turn in for_template(messages)]
        tools = [_guarded(tool, self.tokenizer) for tool in tools]
        whole = self._render(turns, tools)
        pieces = self._framed(messages, tools, whole) or self._cut(turns, tools, whole, memory)
        root: tuple[int, ...] = ()
        first = messages[0].role if messages[0].is_plain else "user"
        root_text = self.framing.root_text(first)
        role, text = pieces[0]
        if root_text and text.startswith(root_text) and self._begins_special(text[len(root_text) :], memory):
            root, pieces[0] = self.framing.root(first), (role, text[len(root_text) :])
        pieces = self._whole_tokens(pieces, memory)
        *parts, (_, header) = pieces
        return ChatPrompt(
            root, tuple(ChatPart(role, text, memory.encode(text)) for role, text in parts), memory.encode(header)
        )

    def _framed(self, messages: Sequence[ChatMessage], tools: Tools, whole: str) -> list[_Piece] | None:
        """Cut by the model's frames; None unless they say what the template says."""
        if tools or not all(message.is_plain for message in messages):
            return None
        framing = self.framing
        pieces = [
            (message.role, framing.message_text(message.role, message.text, message.name, first=number == 0))
            for number, message in enumerate(messages)
        ]
        pieces[0] = (messages[0].role, framing.root_text(messages[0].role) + pieces[0][1])
        pieces.append(("assistant", framing.header_text("assistant")))
        return pieces if "".join(text for _, text in pieces) == whole else None

    def _cut(self, turns: Sequence[Mapping[str, Any]], tools: Tools, whole: str, memory: ChatMemory) -> list[_Piece]:
        """Cut where the template's texts of beginnings end."""
        said = blake2b(_dumped(tools), digest_size=16)
        read, at = blake2b(digest_size=16), 0
        pieces: list[_Piece] = []
        role = str(turns[0]["role"])
        for number, turn in enumerate(turns, 1):
            said.update(_dumped(turn))
            cut = memory.cut(said.digest(), lambda end=number: self._beginning(turns[:end], tools))  # type: ignore[misc]
            if cut is None or not at < cut.stop < len(whole):
                continue
            ahead = read.copy()
            ahead.update(_bytes(whole[at : cut.stop]))
            if ahead.digest() == cut.digest:
                pieces.append((role, whole[at : cut.stop]))
                read, at = ahead, cut.stop
                role = str(turns[number]["role"]) if number < len(turns) else "assistant"
        return [*pieces, (role, whole[at:])]

    def _beginning(self, turns: Sequence[Mapping[str, Any]], tools: Tools) -> Cut | None:
        try:
            text = self._template.render_messages(turns, tools or None)
        except Refused:
            return None
        return Cut(len(text), blake2b(_bytes(text), digest_size=16).digest())

    def _whole_tokens(self, pieces: Sequence[_Piece], memory: ChatMemory) -> list[_Piece]:
        """Without the cuts that might change a token."""
        kept: list[_Piece] = []
        for role, text in pieces:
            if kept and not self._begins_special(text, memory):
                kept[-1] = (kept[-1][0], kept[-1][1] + text)
            else:
                kept.append((role, text))
        return kept

    def _begins_special(self, text: str, memory: ChatMemory) -> bool:
        ids = memory.encode(text)
        return bool(ids) and self.tokenizer.is_special(ids[0])

    def _render(self, turns: Sequence[Mapping[str, Any]], tools: Tools) -> str:
        try:
            return self._template.render_messages(turns, tools or None, add_generation_prompt=True)
        except Refused as refused:
            why = f"the model's chat template does not accept this conversation: {refused}"
            raise InvalidInput(why, field="messages") from None

    def _takes_tools(self) -> bool:
        try:
            return self._template.render_messages(PROBE, PROBE_TOOL) != self._template.render_messages(PROBE)
        except Refused:
            return False


def _guarded(value: Any, tokenizer: TokenizerPort) -> Any:
    """With all texts in it guarded."""
    if isinstance(value, str):
        return tokenizer.guarded(value)
    if isinstance(value, Mapping):
        return {_guarded(key, tokenizer): _guarded(item, tokenizer) for key, item in value.items()}
    return [_guarded(item, tokenizer) for item in value] if isinstance(value, list | tuple) else value


def _dumped(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass") + b"\n"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
