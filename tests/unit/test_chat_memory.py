"""Replies that are remembered: what one chat's have in common counts once, and the oldest are forgotten first."""

from __future__ import annotations

import random

from laban.cluster.chat_memory import Replies, Reply
from laban.cluster.views import Message
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, make_spec


def spec(number: int) -> EncodingSpec:
    return make_spec("chats", (number,) * 10, 0, EMPTY_VIEW, {})


def reply(*numbers: int) -> Reply:
    """To messages of ten tokens each, the last of which is the reply."""
    specs = tuple(spec(number) for number in numbers)
    return Reply(Message("assistant", specs[-1]), specs)


def test_a_chat_of_many_turns_takes_what_it_says_and_no_more() -> None:
    replies = Replies(1000)
    for turn in range(90):
        replies.put(f"turn {turn}", reply(*range(turn + 1)))
    assert len(replies) == 90
    assert replies.num_tokens == 900


def test_the_oldest_makes_room() -> None:
    replies = Replies(50)
    replies.put("a", reply(1, 2))
    replies.put("b", reply(3, 4))
    assert replies.get("a") is not None
    replies.put("c", reply(1, 2, 5, 6))
    assert (replies.get("a"), replies.get("b"), replies.num_tokens) == (reply(1, 2), None, 40)
    replies.put("too large", reply(*range(10, 16)))
    assert replies.get("too large") is None
    replies.drop_all_of({spec(2).encoding_id})
    assert (replies.get("a"), len(replies), replies.num_tokens) == (None, 1, 40)


def test_a_very_long_chat_is_remembered_by_its_newest_turns() -> None:
    replies = Replies(10_000, most_parts=100)
    for turn in range(50):
        replies.put(f"turn {turn}", reply(*range(turn + 1)))
    assert len(replies) == 2
    assert replies.get("turn 49") is not None
    assert replies.get("turn 40") is None
    for turn in (48, 49):
        replies.drop(f"turn {turn}")
    assert (len(replies), replies.num_tokens) == (0, 0)


def test_what_is_counted_is_what_is_there() -> None:
    rng, replies = random.Random(3), Replies(200)
    for _ in range(2000):
        numbers = rng.sample(range(30), rng.randint(1, 8))
        replies.put(f"{rng.randrange(40)}", reply(*numbers))
        if rng.random() < 0.1:
            replies.drop_all_of({spec(rng.randrange(30)).encoding_id})
        kept = [found for text in map(str, range(40)) if (found := replies.get(text)) is not None]
        ids = {each.encoding_id for found in kept for each in found.specs}
        assert replies.num_tokens == 10 * len(ids) <= 200
