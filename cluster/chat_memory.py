"""What is remembered of a tenant's, or a session's, chats: tokens of texts, where templates cut, and replies.

No result depends on it, but for replies: a reply that comes back, word for word, is the tokens that were generated,
which tokenizing the text again need not give.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from laban.cluster.recent import Recent
from laban.cluster.views import Message
from laban.kvstore.encodings import EncodingId, EncodingSpec

MAX_CHARS = 4 << 20  # of texts whose tokens are kept
MAX_CUTS = 16_384
MAX_REPLY_TOKENS = 1 << 20  # with all that they attended to
MAX_REPLY_PARTS = 1 << 20  # messages that each attended to, of all


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a beginning of a conversation ends in its prompt, in characters, and a digest of the text up to there."""

    stop: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """A generated message, and all specs that its encoding depends on, itself among them."""

    message: Message
    specs: tuple[EncodingSpec, ...]


class Replies:
    """By their texts. Forgets what was used longest ago once they are of more than `most` tokens, with all that they
    attended to; what several attended to, as the replies of one chat do, counts once, but each names it: all together
    name `most_parts`."""

    def __init__(self, most: int, most_parts: int = MAX_REPLY_PARTS) -> None:
        self._most, self._most_parts = most, most_parts
        self._num_parts = 0
        self._found: OrderedDict[str, Reply] = OrderedDict()
        self._uses: Counter[EncodingId] = Counter()
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._found)

    def get(self, text: str) -> Reply | None:
        if text in self._found:
            self._found.move_to_end(text)
        return self._found.get(text)

    def put(self, text: str, reply: Reply) -> None:
        """One with more than all that fits is not kept."""
        self.drop(text)
        if sum(spec.num_tokens for spec in reply.specs) > self._most:
            return
        self._found[text] = reply
        self._num_parts += len(reply.specs)
        for spec in reply.specs:
            self.num_tokens += 0 if self._uses[spec.encoding_id] else spec.num_tokens
            self._uses[spec.encoding_id] += 1
        while self.num_tokens > self._most or self._num_parts > self._most_parts:
            self.drop(next(iter(self._found)))

    def drop(self, text: str) -> None:
        reply = self._found.pop(text, None)
        if reply is None:
            return
        self._num_parts -= len(reply.specs)
        for spec in reply.specs:
            self._uses[spec.encoding_id] -= 1
            if not self._uses[spec.encoding_id]:
                del self._uses[spec.encoding_id]
                self.num_tokens -= spec.num_tokens

    def drop_all_of(self, encodings: Collection[EncodingId]) -> None:
        for text, reply in list(self._found.items()):
            if reply.message.home.encoding_id in encodings:
                self.drop(text)


class ChatMemory:
    """Lives in one event loop."""

    def __init__(self, encode: Callable[[str], Sequence[int]], behind: ChatMemory | None = None) -> None:
        """What is not known here may be known `behind`."""
        self._encode, self._behind = encode, behind
        self._tokens: Recent[str, tuple[int, ...]] = Recent(MAX_CHARS)
        self._cuts: Recent[bytes, tuple[Cut | None]] = Recent(MAX_CUTS)
        self._replies = Replies(MAX_REPLY_TOKENS)

    def encode(self, text: str) -> tuple[int, ...]:
        """Raises what the tokenizer raises."""
        found = self._tokens.get(text)
        if found is None and self._behind is not None:
            found = self._behind._tokens.peek(text)
        if found is None:
            found = tuple(self._encode(text))
            self._tokens.put(text, found, len(text) + 1)
        return found

    def cut(self, said: bytes, find: Callable[[], Cut | None]) -> Cut | None:
        """That of the beginning with the digest `said`; found if it is not known."""
        kept = self._cuts.get(said)
        if kept is None and self._behind is not None:
            kept = self._behind._cuts.peek(said)
        if kept is None:
            kept = (find(),)
            self._cuts.put(said, kept, 1)
        return kept[0]

    def beside(self) -> ChatMemory:
        """One for another thread, which knows what this one does."""
        return ChatMemory(self._encode, self)

    def adopt(self, other: ChatMemory) -> None:
        """The tokens and cuts that the other one found."""
        self._tokens.adopt(other._tokens)
        self._cuts.adopt(other._cuts)

    def reply(self, text: str) -> Reply | None:
        """The reply whose tokens spell this text, frame included; the newest of several."""
        return self._replies.get(text)

    def keep_reply(self, text: str, reply: Reply) -> None:
        self._replies.put(text, reply)

    def forget(self, encodings: Collection[EncodingId]) -> None:
        """Replies with these encodings."""
        self._replies.drop_all_of(encodings)
