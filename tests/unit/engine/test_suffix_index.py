"""The index of earlier places, against a search of everything."""

from __future__ import annotations

import random

import pytest

from laban.actors.engine.suffix_index import MAX_LENGTH, SuffixIndex


def alike(whole: list[int], place: int) -> int:
    """How many tokens before and at `place` are the last ones of `whole`."""
    count = 0
    while count < min(MAX_LENGTH, place + 1) and whole[place - count] == whole[len(whole) - 1 - count]:
        count += 1
    return count


@pytest.mark.parametrize("vocab_size", [2, 5, 40])
def test_place_is_the_longest_of_all(vocab_size: int) -> None:
    draw = random.Random(vocab_size)
    num_found = 0
    for _ in range(12):
        texts = [[draw.randrange(vocab_size) for _ in range(draw.randrange(40))] for _ in range(draw.randrange(4))]
        index = SuffixIndex(texts, 60)
        whole: list[int] = []
        for number, text in enumerate(text for text in texts if text):
            whole += [*text, -1 - number]
        followed: int | None = None
        for step in range(60):
            # Now and then a stretch of what stood there, so that long matches come about.
            token = index.next_token() if step % 20 < 12 else None
            token = draw.randrange(vocab_size) if token is None else token
            own = step > 0
            whole.append(token)
            index.append(token)
            lengths = {place: alike(whole, place) for place in range(len(whole) - 1)} if own else {}
            longest = max(lengths.values(), default=0)
            if longest < 2:
                assert index.length == 0
                assert index.following(5) == []
                followed = None
                continue
            num_found += 1
            assert index.length == longest
            best = [place for place, length in lengths.items() if length == longest]
            expected = followed + 1 if followed is not None and followed + 1 in best else best[-1]
            followed = expected
            after = whole[expected + 1 :]
            period = len(after)
            while len(after) < 9:
                after.append(after[-period])
            border = next((at for at, token in enumerate(after) if token < 0), 9)
            assert index.following(9) == after[: min(border, 9)]
            assert index.next_token() == (after[0] if border else None)
    assert num_found > 100


def test_matches_end_at_borders() -> None:
    index = SuffixIndex([[1, 2, 3], [4, 5]], 10)
    for token in (2, 3):
        index.append(token)
    assert index.length == 2
    assert index.following(5) == []
    assert index.next_token() is None
    index.append(4)  # 3, 4 stand in a row, but in two texts
    assert index.length == 0
    index.append(5)
    assert (index.length, index.following(5)) == (2, [])


def test_text_that_repeats_itself_goes_on_so() -> None:
    index = SuffixIndex([], 10)
    for token in (7, 8, 9, 7, 8):
        index.append(token)
    assert index.following(7) == [9, 7, 8, 9, 7, 8, 9]


def test_no_room() -> None:
    index = SuffixIndex([[1]], 1)
    index.append(3)
    with pytest.raises(IndexError):
        index.append(3)
