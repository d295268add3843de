from __future__ import annotations

import pickle
import threading
import time
from pathlib import Path

import pytest
from constrained_cases import sentencepiece_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from laban.actors.errors import InvalidInput, NotFound
from laban.actors.tokenizer import LONG_TEXT, Tokenizer

TEXTS = [
    "",
    "Hello, world",
    "  two  spaces \n\n and\ttabs\r\n",
    "price 12345.67 at 08:15, don't",
    "naïve Ω ≈ 3 → 日本語 🧑‍🚀 e\u0301",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<|im_start|",
    "def f(x):\n    return x ** 2\n",
]


@pytest.fixture(scope="module")
def reference(default_folder: Path):  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(default_folder)


def test_equals_transformers(tokenizer: Tokenizer, reference) -> None:  # type: ignore[no-untyped-def]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == reference.decode(ids) == text
    assert tokenizer.vocab_size == len(reference)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_stream_is_decode_and_never_half_a_character(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.text(max_size=40))
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)  # not always `text`: this vocabulary lacks a few bytes
    detokenizer = tokenizer.detokenizer()
    given_out = ""
    position = 0
    while position < len(ids):
        step = data.draw(st.integers(1, 4))
        given_out += detokenizer.push(ids[position : position + step])
        position += step
        assert whole.startswith(given_out)
    assert given_out + detokenizer.flush() == whole


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=24))
def test_stream_of_any_ids_is_their_decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids)


def test_bytes_that_never_become_a_character_are_not_held_back_forever(tokenizer: Tokenizer) -> None:
    # Any token whose text alone is half a character will do.
    half = next(i for i in range(3, 400) if tokenizer.decode([i]) == "\ufffd")
    detokenizer = tokenizer.detokenizer()
    out = "".join(detokenizer.push([half]) for _ in range(50))
    assert len(out) >= 40
    assert out + detokenizer.flush() == tokenizer.decode([half] * 50)


def test_pickles(tokenizer: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_specials_are_known(tokenizer: Tokenizer) -> None:
    end = tokenizer.token_id("<|im_end|>")
    assert end == 2
    assert tokenizer.is_special(end)
    assert not tokenizer.is_special(tokenizer.encode("a")[0])
    assert tokenizer.token_id("no such token") is None


def test_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        tokenizer.encode("a\ud800b")


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InvalidInput, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)


@given(text=st.text("a é日\U0001f600\U000fdc58", max_size=12))
def test_characters_of_bytes_that_are_tokens_are_streamed_whole(text: str) -> None:
    """A row of such tokens that ends within a character is decoded to none at all, not even those before it."""
    tokenizer = sentencepiece_tokenizer()
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.push([token_id]) for token_id in tokenizer.encode(text)]
    assert "".join(pieces) + detokenizer.flush() == text


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([*TEXTS[1:], " ", "\u00e9"]), min_size=400, max_size=600))
def test_long_texts_are_the_same_tokens(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    while len(text) < LONG_TEXT:
        text += text + "x"
    plain = tokenizer._backend.encode(text, add_special_tokens=False)
    ids = tokenizer.encode(text)
    assert ids == plain.ids
    assert len(text) <= len(ids) * tokenizer.longest_token


def test_a_long_text_lets_other_threads_run(tokenizer: Tokenizer) -> None:
    text = "hello " * 300_000
    done, ticks = threading.Event(), 0
    thread = threading.Thread(target=lambda: (tokenizer.encode(text), done.set()))
    thread.start()
    while not done.is_set():
        time.sleep(0.001)
        ticks += 1
    thread.join()
    assert ticks > 20  # one or two if the library held Python's lock


def test_a_long_text_that_is_not_unicode_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="valid Unicode"):
        tokenizer.encode("a" * LONG_TEXT + "\ud800")
