"""Which tokens an iteration takes, of sequences without an engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from laban.actors.calls import Call, Sampling, Scoring
from laban.actors.engine.chunking import CAREFUL_ITERATIONS, MIX_TOKENS, PREFETCH_TOKENS, SCORED_TOKENS, Chunking
from laban.actors.engine.decoding import Decode
from laban.actors.engine.loads import Load
from laban.actors.engine.scoring import KeptScores
from laban.actors.engine.sequence import Chunk, Sequence
from laban.kvstore.encodings import EMPTY_VIEW, make_spec
from laban.kvstore.store import Entry

CALL = Call("call", "test", EMPTY_VIEW, 0, (1, 2), (), Sampling(max_tokens=100))


def entry(num_tokens: int) -> Entry:
    return Entry("e", list(range(-(-num_tokens // 16))), 16)


def prefill(num_tokens: int, *producers: Sequence, num_computed: int = 0) -> Sequence:
    spec = make_spec("test", [1] * num_tokens, 0, EMPTY_VIEW, {})
    return Sequence(entry(num_tokens), 0, [1] * num_tokens, (), producers, spec, num_computed=num_computed)


def decode(num_tokens: int = 10, *producers: Sequence, num_launched: int = 1) -> Sequence:
    """All but its last token computed, unless nothing was launched."""
    own = Decode(CALL, CALL.sampling, None, None, num_launched=num_launched)  # type: ignore[arg-type]
    sequence = Sequence(entry(200), 0, [1] * num_tokens, (), producers, None, own)
    sequence.num_computed = num_tokens - 1 if num_launched else 0
    return sequence


def taken(chunks: list[Chunk]) -> list[tuple[Sequence, int, int]]:
    return [(chunk.sequence, chunk.begin, chunk.count) for chunk in chunks]


def test_decodes_come_first_and_prefills_share_the_rest_in_order() -> None:
    long, short, running = prefill(50, num_computed=8), prefill(9), decode()
    assert taken(Chunking(32).choose([long, short, running])) == [(running, 9, 1), (long, 8, 31)]
    assert taken(Chunking(64).choose([long, short, running])) == [(running, 9, 1), (long, 8, 42), (short, 0, 9)]


def test_a_reader_joins_the_iteration_that_completes_what_it_reads_and_waits_for_one_cut_short() -> None:
    read = prefill(40)
    reader = prefill(5, read)
    call = decode(2, reader, num_launched=0)
    assert taken(Chunking(64).choose([read, reader, call])) == [(read, 0, 40), (reader, 0, 5), (call, 0, 2)]
    assert taken(Chunking(32).choose([read, reader, call])) == [(read, 0, 32)]


def test_a_reader_waits_for_what_is_being_loaded() -> None:
    read = prefill(40)
    read.load = Load(entry(40), 40)
    assert not Chunking(64).choose([read, prefill(5, read)])


def test_what_nobody_asked_for_is_encoded_beside_decodes_only_as_far_as_that_is_free() -> None:
    idle, spare, running, asked = prefill(2000), prefill(100), decode(), prefill(3)
    idle.prefetched = spare.spare = True
    assert taken(Chunking(4096).choose([idle, spare])) == [(idle, 0, PREFETCH_TOKENS)]
    assert taken(Chunking(4096).choose([idle, running])) == [(running, 9, 1)]
    assert taken(Chunking(4096, free_tokens=64).choose([spare, running])) == [(running, 9, 1), (spare, 0, 64)]
    assert taken(Chunking(4096, free_tokens=64).choose([spare, running, asked])) == [(running, 9, 1), (asked, 0, 3)]


def test_a_message_whose_tail_is_on_its_way_is_encoded_in_parts() -> None:
    mixed = prefill(2000)
    mixed.load = Load(entry(2000), 2000, mixes=True)
    assert taken(Chunking(4096).choose([mixed])) == [(mixed, 0, MIX_TOKENS)]


def test_scored_tokens_are_shared_by_all_forced_calls() -> None:
    scores, forced = KeptScores(8), []
    for number in range(2):
        sequence = decode(2, num_launched=0)
        forcing = Sampling(max_tokens=100, forced=(3,) * 100)
        call = replace(CALL, call_id=f"{number}", sampling=forcing, scoring=Scoring(keep=f"{number}"))
        sequence.decode = Decode(call, forcing, None, None, num_sampled=100)  # type: ignore[arg-type]
        sequence.decode.scorer = scores.begin(call, 0.0)
        sequence.tokens = [1] * 102
        forced.append(sequence)
    chunks = Chunking(4096).choose(forced)
    assert [chunk.count for chunk in chunks] == [102, SCORED_TOKENS - 100]
    # A chunk takes no more tokens than may be scored, whether or not it scores as many.
    assert [len(chunk.scored) for chunk in chunks] == [100, SCORED_TOKENS - 100 - 1]


@pytest.mark.parametrize("num_tokens", [100, 1])
def test_after_an_iteration_that_did_not_fit_smaller_ones_follow_for_a_while(num_tokens: int) -> None:
    chunking, left = Chunking(100), prefill(100_000)
    assert chunking.choose([left])[0].count == 100
    chunking.shrink(num_tokens)
    half = max(1, num_tokens // 2)
    for _ in range(CAREFUL_ITERATIONS):
        assert chunking.choose([left])[0].count == half
    assert chunking.choose([left])[0].count == min(100, 2 * half)
