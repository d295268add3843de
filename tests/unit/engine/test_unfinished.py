"""Who reads what is in the making, and who goes with whom: over a store alone."""

from __future__ import annotations

import pytest

from laban.actors.engine.loads import Load
from laban.actors.engine.sequence import Sequence
from laban.actors.engine.unfinished import Unfinished
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, Placement, make_spec
from laban.kvstore.store import EncodingStore


class Workshop:
    def __init__(self) -> None:
        self.store = EncodingStore(64, 16)
        self.removed: list[str] = []
        self.unfinished = Unfinished(self.store, self.removed.append)
        self.specs: dict[str, EncodingSpec] = {}

    def begin(self, token: int, *reads: Sequence, key: str | None = None) -> Sequence:
        spec = make_spec("test", [token] * 20, 0, EMPTY_VIEW, {})
        self.specs[spec.encoding_id] = spec
        entry = self.store.reserve(key or spec.encoding_id, 20)
        view = [Placement(read.spec.encoding_id, 20 * at, 0, 20) for at, read in enumerate(reads) if read.spec]
        return self.unfinished.add(entry, 0, list(spec.tokens), view, self.specs, spec, None)

    def publish(self, sequence: Sequence) -> None:
        sequence.num_computed = sequence.entry.num_tokens = len(sequence.tokens)
        self.unfinished.publish(sequence)


@pytest.fixture
def shop() -> Workshop:
    return Workshop()


def test_readers_pin_what_they_read_until_they_are_whole(shop: Workshop) -> None:
    read = shop.begin(1)
    reader = shop.begin(2, read, read)
    assert reader.producers == (read,)
    assert [r.offset for r in reader.reads] == [0, 20]
    assert read.entry.pins == 3
    shop.publish(read)
    assert (read.entry.pins, read.finished, shop.unfinished.producer(read.entry)) == (2, True, None)
    shop.publish(reader)
    assert read.entry.pins == reader.entry.pins == 0
    assert not shop.unfinished.sequences
    assert not shop.removed


def test_what_nobody_reads_any_more_goes_with_what_only_it_read(shop: Workshop) -> None:
    shared, only = shop.begin(1), shop.begin(2)
    first, second = shop.begin(3, shared, only), shop.begin(4, shared)
    first.prefetched = second.prefetched = True  # theirs to give up who ordered them
    shop.unfinished.give_up_orphans()
    assert not shop.removed
    shop.unfinished.give_up(first)
    shop.unfinished.give_up_orphans()
    assert shop.unfinished.sequences == [shared, second]
    assert shop.removed == [s.spec.encoding_id for s in (first, only) if s.spec]
    shop.store.check_integrity()


def test_what_is_being_copied_stays_until_that_is_over_and_is_of_use_to_who_reads_it_meanwhile(shop: Workshop) -> None:
    loading = shop.begin(1)
    loading.load = Load(loading.entry, 20)
    shop.unfinished.give_up_orphans()
    assert loading.is_given_up
    reader = shop.begin(2, loading)
    assert not loading.is_given_up
    assert reader.producers == (loading,)


def test_readers_are_found_through_those_between_whatever_their_order(shop: Workshop) -> None:
    lost, other = shop.begin(1), shop.begin(2)
    between = shop.begin(3, lost)
    last, unconcerned = shop.begin(4, other, between), shop.begin(5, other)
    shop.unfinished.sequences.sort(key=lambda s: -s.entry.serial)
    found = shop.unfinished.readers(lost)
    assert found == [last, between, lost]
    shop.unfinished.discard(*found)
    assert set(shop.unfinished.sequences) == {other, unconcerned}
    assert other.entry.pins == 2
    shop.store.check_integrity()


def test_of_two_that_made_the_same_one_is_read(shop: Workshop) -> None:
    first, again = shop.begin(1), shop.begin(1, key="call/7")
    reader = shop.begin(2, first)
    shop.publish(again)
    shop.publish(first)
    assert first.entry is again.entry is reader.reads[0].entry
    assert first.entry.pins == 1
    shop.store.check_integrity()


def test_what_is_neither_there_nor_in_the_making_cannot_be_read_and_leaves_nothing(shop: Workshop) -> None:
    there, gone = shop.begin(1), shop.begin(2)
    shop.unfinished.discard(gone)
    num_free = shop.store.allocator.num_free
    with pytest.raises(KeyError, match="is not on the device"):
        shop.begin(3, there, gone)
    assert there.entry.pins == 1
    assert shop.store.allocator.num_free == num_free
