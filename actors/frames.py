"""How a message becomes tokens: each role's header and terminator, and what comes before everything.

A frame is fixed: a message is tokenized once, wherever it will be read. `framing.derive_framing` finds the frames by
rendering probe conversations with the model's chat template, so that root, messages and header in a row are
the prompt that the template makes. Where a template depends on context, `notes` say how the frames differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from laban.actors.errors import InvalidInput
from laban.actors.tokenizer import Tokenizer

ROLES: Final = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Frame:
    """The text around a message of one role. `opening` comes before a generated one: a template may differ there."""

    before: str
    after: str
    opening: str
    strip_left: bool = False
    strip_right: bool = False

    def strip(self, text: str) -> str:
        text = text.lstrip() if self.strip_left else text
        return text.rstrip() if self.strip_right else text


@dataclass(frozen=True)
class Framing:
    """Frames by role, roots by the role of the first message. Immutable and picklable.

    `first_frames` holds the roles that a template frames otherwise at the start of a conversation.
    """

    tokenizer: Tokenizer
    frames: Mapping[str, Frame]
    first_frames: Mapping[str, Frame]
    roots: Mapping[str, str]
    stop_token_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def root(self, first_role: str) -> tuple[int, ...]:
        """What stands before a conversation that begins with this role: BOS, a default system prompt. May be ()."""
        return _encoded(self.tokenizer, self.root_text(first_role))

    def root_text(self, first_role: str) -> str:
        self._frame(first_role, first=True)
        return self.roots[first_role]

    def message(self, role: str, text: str, name: str | None = None, *, first: bool = False) -> tuple[int, ...]:
        """The whole message, tokenized as one string, so that merges across its seams are the template's.

        A name becomes a first line of the text, "bob:", for every model alike.
        """
        return tuple(self.tokenizer.encode(self.message_text(role, text, name, first=first)))

    def message_text(self, role: str, text: str, name: str | None = None, *, first: bool = False) -> str:
        """As `message` encodes it: what is given is guarded, and nothing else."""
        frame = self._frame(role, first)
        return frame.before + frame.strip(self.tokenizer.guarded(name_line(name) + text)) + frame.after

    def header(self, role: str, name: str | None = None, *, first: bool = False, prefill: str = "") -> tuple[int, ...]:
        """What opens a generated message; `prefill` is text that it shall begin with. May be ()."""
        if not (name or prefill):
            return _encoded(self.tokenizer, self.header_text(role, first=first))
        return tuple(self.tokenizer.encode(self.header_text(role, name, first=first) + self.tokenizer.guarded(prefill)))

    def header_text(self, role: str, name: str | None = None, *, first: bool = False) -> str:
        return self._frame(role, first).opening + self.tokenizer.guarded(name_line(name))

    def terminator(self, role: str, *, after_stop_token: bool) -> tuple[int, ...]:
        """What closes a generated message, less the stop token if the model has produced it itself."""
        ids = _encoded(self.tokenizer, self._frame(role, first=False).after)
        return ids[1:] if after_stop_token and ids and ids[0] in self.stop_token_ids else ids

    def starts_otherwise(self, role: str) -> bool:
        """Whether a message of this role has other tokens at the start of a conversation."""
        return role in self.first_frames and self.first_frames[role] != self.frames[role]

    def _frame(self, role: str, first: bool) -> Frame:
        if role not in self.frames:
            raise InvalidInput(f"must be one of {', '.join(ROLES)}", field="role", value=role)
        return self.first_frames.get(role, self.frames[role]) if first else self.frames[role]


@lru_cache(maxsize=256)
def _encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """For texts of the template's own, the same for every call."""
    return tuple(tokenizer.encode(text))


def name_line(name: str | None) -> str:
    """The line that says who speaks.

    >>> name_line("bob")
    'bob:\\n'
    """
    return f"{name}:\n" if name else ""
