"""Special tokens that stay text where others may have written it: what a tool returns cannot end its message.

The library encodes all special tokens of a text as text, or none. So those of a template are given other names, which
nobody can guess, before all that are left are encoded as text; a whole message is still encoded as one string, so its
merges at the seams, its prefix spaces and its white space are as ever.
"""

from __future__ import annotations

import re
import secrets

import tokenizers

# Of this process, told to nobody. Plain characters: templates may write texts as JSON.
GUARD = f"[{secrets.token_hex(16)}]"
ALIAS = f"[{secrets.token_hex(16)}"


class SpecialTokenGuard:
    """Of one tokenizer; special are the added tokens that it says are. `backend` encodes them as text. Immutable."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        special = {token.content: (token_id, token) for token_id, token in added.items() if token.special}
        self._aliases = {content: f"{ALIAS}:{token_id}]" for content, (token_id, _) in special.items()}
        longest_first = sorted(filter(None, special), key=len, reverse=True)
        spelled = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._special = re.compile(spelled)
        self._marked = re.compile(f"({re.escape(GUARD)})?({spelled})")
        self.backend = tokenizers.Tokenizer.from_str(backend.to_str())
        self.backend.add_tokens(
            [
                # Not special itself, or it would be encoded as text, too.
                tokenizers.AddedToken(
                    self._aliases[content],
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=False,
                )
                for content, (_, token) in special.items()
            ]
        )
        self.backend.encode_special_tokens = True
        self._ids = {self.backend.token_to_id(self._aliases[content]): special[content][0] for content in special}

    def guarded(self, text: str) -> str:
        """`text` with a mark before each special token that it spells out."""
        return self._special.sub(lambda found: GUARD + found[0], text)

    def named(self, text: str) -> str:
        """`text` for `backend`: special tokens have their other names, but for those behind a mark."""
        named = self._marked.sub(lambda found: found[2] if found[1] else self._aliases[found[2]], text)
        return named.replace(GUARD, "")  # a template may have taken apart what was marked

    def real(self, ids: list[int]) -> list[int]:
        """Those of `backend`, with the special tokens' own ids."""
        return [self._ids.get(token_id, token_id) for token_id in ids]
