"""What an iteration samples, and how its tokens get into messages: without a model."""

from __future__ import annotations

from engine_harness import byte_tokenizer

from laban.actors.calls import Call, Sampling
from laban.actors.engine.decoding import Decode
from laban.actors.engine.iteration import Sampled, samples_of
from laban.actors.engine.sequence import UNKNOWN, Chunk, Sequence
from laban.kvstore.encodings import EMPTY_VIEW, make_spec
from laban.kvstore.store import Entry

HEADER = (1, 2, 3)


def decoding(max_tokens: int = 5, stop_token_ids: tuple[int, ...] = ()) -> Sequence:
    """A call whose header is computed."""
    sampling = Sampling(max_tokens=max_tokens, stop_token_ids=stop_token_ids)
    call = Call("call", "test", EMPTY_VIEW, 0, HEADER, (), sampling, terminator=(99,))
    tokenizer = byte_tokenizer()
    decode = Decode(call, sampling, tokenizer, tokenizer.detokenizer())
    return Sequence(Entry("e", [0], 16), 0, list(HEADER), (), (), None, decode, num_computed=3)


def sample(sequence: Sequence, *drafted: int) -> Sampled:
    assert sequence.decode is not None
    return Sampled(sequence, sequence.decode, 0, drafted)


def plain(*tokens: int) -> list[tuple[int, None]]:
    return [(token, None) for token in tokens]


def test_rows_are_counted_over_calls_that_sample_and_their_drafts() -> None:
    first, second, third = decoding(), decoding(), decoding()
    spec = make_spec("test", [7] * 9, 0, EMPTY_VIEW, {})
    prefill = Sequence(Entry("p", [1], 16), 0, list(spec.tokens), (), (), spec)
    chunks = [Chunk(first, 2, 3, (8, 9)), Chunk(prefill, 0, 9), Chunk(third, 0, 2), Chunk(second, 2, 1)]
    found = samples_of(chunks)  # the third's chunk ends before its last token
    assert [(each.sequence, list(each.rows)) for each in found] == [(first, [0, 1, 2]), (second, [3])]


def test_a_token_that_is_under_way_has_its_place_until_it_is_told() -> None:
    sequence = decoding(max_tokens=2)
    sampled = sample(sequence)
    sampled.launched()
    assert sequence.tokens == [*HEADER, UNKNOWN]
    assert sampled.take(plain(10)) == 1
    assert sequence.tokens == [*HEADER, 10]
    sequence.num_computed = 4
    sampled.launched()  # its last one: nothing is computed after it
    assert sequence.tokens == [*HEADER, 10]
    assert sampled.take(plain(11)) == 1
    assert sequence.tokens == [*HEADER, 10, 11, 99]
    assert (sequence.num_computed, sequence.num_pending) == (4, 2)
    assert sequence.spec is not None
    assert sequence.spec.tokens == (*HEADER, 10, 11, 99)


def test_of_drafted_tokens_those_taken_are_kept_with_their_keys() -> None:
    sequence = decoding(max_tokens=10)
    sampled = sample(sequence, 20, 21, 22)
    sampled.launched()
    assert sequence.tokens == list(HEADER)
    assert sampled.take(plain(20, 21, 30)) == 3
    assert sequence.tokens == [*HEADER, 20, 21, 30]
    assert sequence.num_computed == 5  # the last one was sampled, not computed
    assert sequence.decode is not None
    assert sequence.decode.num_launched == sequence.decode.num_sampled == 3


def test_what_comes_after_the_end_is_left() -> None:
    sequence = decoding(max_tokens=10, stop_token_ids=(21,))
    sampled = sample(sequence, 20, 21, 22)
    sampled.launched()
    assert sampled.take(plain(20, 21, 22, 23)) == 2
    assert sequence.tokens == [*HEADER, 20, 99]
    assert sequence.num_computed == 4
