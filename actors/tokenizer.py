"""Text to token ids and back, on the `tokenizers` library alone: no transformers, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from laban.actors.errors import InvalidInput, NotFound
from laban.actors.special_tokens import SpecialTokenGuard

REPLACEMENT = "\ufffd"  # what decoding makes of bytes that are no character, or not yet one
LONG_TEXT = 4_096  # characters; from here on other threads are let run meanwhile
MAX_OPEN_BYTES = 3  # a character of UTF-8 has at most four


class Tokenizer:
    """A folder's `tokenizer.json`. Immutable, picklable, safe to share between threads.

    With `parse_special_tokens`, as transformers' tokenizers do and vLLM's server does, special tokens that any text
    spells out become those tokens. Without, those in texts that went through `guarded` stay text, as under
    transformers' `split_special_tokens`, while what stands around them, a template's own, becomes tokens still.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, parse_special_tokens: bool = True) -> None:
        # Both would change what a text encodes to, depending on the other texts or on its length.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._guard = None if parse_special_tokens else SpecialTokenGuard(backend)

    @classmethod
    def from_folder(cls, folder: str | Path, *, parse_special_tokens: bool = True) -> Tokenizer:
        """Raises NotFound without a tokenizer.json, InvalidInput for one that cannot be read."""
        path = Path(folder).expanduser() / "tokenizer.json"
        if not path.is_file():
            raise NotFound("the model folder has no tokenizer.json", field="model", value=str(folder))
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise InvalidInput(f"{path} cannot be read ({error})", field="model") from None
        backend.add_special_tokens(_tokens_of_config(path.parent / "tokenizer_config.json", backend))
        return cls(backend, parse_special_tokens=parse_special_tokens)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def longest_token(self) -> int:
        """The most characters that one token stands for, or a few more."""
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)))

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Adds no special tokens; those spelled out in `text` are recognised, unless guarded.

        Raises InvalidInput for text that is not valid Unicode (a lone surrogate).
        """
        try:
            backend = self._backend
            if self._guard is not None:
                text, backend = self._guard.named(text), self._guard.backend
            if len(text) < LONG_TEXT:
                ids = list(backend.encode(text, add_special_tokens=False).ids)
            else:
                # For a single text the library holds Python's lock all the while, for a batch it does not.
                ids = list(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)
            return ids if self._guard is None else self._guard.real(ids)
        except (UnicodeEncodeError, TypeError):
            raise InvalidInput("is not valid Unicode text", field="text", value=text) from None

    def guarded(self, text: str) -> str:
        """`text` that anybody may have written, for `encode`, alone or within a template: without
        `parse_special_tokens` the special tokens spelled out in it stay text. Of use in this process alone."""
        return text if self._guard is None else self._guard.guarded(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens spelled out."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def token_id(self, token: str) -> int | None:
        """The id of exactly this token, None if there is none."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def is_special(self, token_id: int) -> bool:
        """Whether the token stands outside of the text: never part of a longer merge."""
        return token_id in self._backend.get_added_tokens_decoder()

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self)

    def to_json(self) -> str:
        """As in a `tokenizer.json`, with the tokens that only the folder's configuration names."""
        return str(self._backend.to_str())

    def __reduce__(self) -> tuple[object, ...]:
        return (_from_json, (self.to_json(), self._guard is None))


class Detokenizer:
    """Turns a stream of ids into text, only whole characters: their concatenation is `decode` of all ids.

    Ids are decoded together with the few before them, because what a token adds can depend on its
    neighbours; only the tail that is not yet text is kept, so a push costs the same however long the stream.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # ids all of whose text has been given out
        self._pending: list[int] = []  # ids of whose text `_given` characters have been
        self._given = 0

    def push(self, ids: Sequence[int]) -> str:
        """The text that `ids` complete; "" while they end within a character."""
        self._pending.extend(ids)
        if (text := self._text()) is None:
            return ""
        # Up to three trailing bytes may still become a character.
        kept = len(text)
        while kept > len(text) - MAX_OPEN_BYTES and text[:kept].endswith(REPLACEMENT):
            kept -= 1
        return self._give(text[:kept], settled=kept == len(text))

    def flush(self) -> str:
        """The rest, bytes that make no character as U+FFFD."""
        text = self._text()
        return self._give(self._tokenizer.decode(self._pending) if text is None else text, settled=True)

    def _text(self) -> str | None:
        """What the pending ids add; None while it cannot be told."""
        if not self._pending:
            return ""
        before = self._tokenizer.decode(self._context)
        text = self._tokenizer.decode([*self._context, *self._pending])
        if text.startswith(before):
            return text[len(before) :]
        # Where single bytes are tokens, a row of them that ends within a character is decoded to none at all.
        return None if len(self._pending) <= MAX_OPEN_BYTES else self._tokenizer.decode(self._pending)

    def _give(self, text: str, *, settled: bool) -> str:
        new = text[self._given :]
        if settled:
            if self._pending:
                self._context, self._pending = self._pending, []
            self._given = 0
        else:
            self._given = max(self._given, len(text))
        return new


def _from_json(text: str, parse_special_tokens: bool) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text), parse_special_tokens=parse_special_tokens)


def _tokens_of_config(path: Path, backend: tokenizers.Tokenizer) -> list[tokenizers.AddedToken]:
    """Added tokens that only tokenizer_config.json names: older folders keep some there."""
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_bytes()).get("added_tokens_decoder") or {}
    except (ValueError, AttributeError) as error:
        raise InvalidInput(f"{path} cannot be read ({error})", field="model") from None
    known = backend.get_vocab(with_added_tokens=True)
    return [
        tokenizers.AddedToken(**{key: value for key, value in token.items() if key != "__type"})
        for _, token in sorted(listed.items(), key=lambda item: int(item[0]))
        if token["content"] not in known
    ]
