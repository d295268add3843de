"""The sequences in the making on a worker: who fills which entry, who reads what, and who goes when nobody reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from laban.actors.engine.decoding import Decode
from laban.actors.engine.sequence import Read, Sequence
from laban.kvstore.encodings import EncodingSpec, Placement, Specs
from laban.kvstore.store import EncodingStore, Entry


class Unfinished:
    """Each has its own entry, which it writes and holds one pin of, and one pin for each read.

    Those that are `prefetched` are given up by who ordered them; others once no call reads them.
    """

    def __init__(self, store: EncodingStore, on_removed: Callable[[str], None] = lambda key: None) -> None:
        """`on_removed` is told the key of what leaves without having been published."""
        self._store, self._on_removed = store, on_removed
        self.sequences: list[Sequence] = []  # in order of admission
        self._producers: dict[Entry, Sequence] = {}

    def producer(self, entry: Entry) -> Sequence | None:
        """Of what is not whole yet."""
        return self._producers.get(entry)

    def add(
        self,
        entry: Entry,
        start: int,
        tokens: list[int],
        view: list[Placement],
        specs: Specs,
        spec: EncodingSpec | None,
        decode: Decode | None,
    ) -> Sequence:
        """A sequence that fills `entry`, reserved by the caller and discarded if this raises, as `read` does."""
        try:
            reads, producers = self.read(view, specs)
        except Exception:
            self._store.discard(entry)
            raise
        sequence = Sequence(entry, start, tokens, reads, producers, spec, decode)
        self._producers[entry] = sequence
        self.sequences.append(sequence)
        return sequence

    def read(self, view: list[Placement], specs: Specs) -> tuple[tuple[Read, ...], tuple[Sequence, ...]]:
        """Pins what `view` places: the reads, and those of it that are in the making. Raises KeyError with nothing
        pinned if some of it is neither there nor in the making."""
        reads = []
        for placed in view:
            source = self._store.get(placed.encoding_id)
            if source is None or not (source.ready or source in self._producers):
                raise KeyError(f"encoding {placed.encoding_id} is to be read and is not on the device")
            home = specs[placed.encoding_id].start
            offset = placed.position - home - placed.begin
            reads.append(Read(source, offset, placed.begin, placed.end, home))
        for read in reads:
            self.pin(read.entry)
        producers = tuple({self._producers[r.entry]: None for r in reads if r.entry in self._producers})
        return tuple(reads), producers

    def pin(self, entry: Entry) -> None:
        """For a reader: what is on its way goes on if it had been given up."""
        self._store.pin(entry)
        sequence = self._producers.get(entry)
        if sequence is not None and sequence.load is not None:
            sequence.load.cancelled = False

    def publish(self, sequence: Sequence) -> Entry:
        """It is whole: its entry becomes an encoding that others may find. Another one, if the store has it already."""
        assert sequence.spec is not None
        made = sequence.entry
        entry = self._store.publish(made, sequence.spec.encoding_id, len(sequence.tokens), sequence.spec)
        if entry is not made:  # somebody else computed the same: read theirs
            for other in self.sequences:
                other.reads = tuple(replace(r, entry=entry) if r.entry is made else r for r in other.reads)
        self._producers.pop(made, None)
        sequence.entry = entry
        sequence.finished = True
        self._leave(sequence)
        self._store.unpin(entry)
        return entry

    def readers(self, sequence: Sequence) -> list[Sequence]:
        """Those that cannot be finished without it, and itself."""
        found = {sequence}
        while more := {s for s in self.sequences if s not in found and not found.isdisjoint(s.producers)}:
            found |= more
        return [other for other in self.sequences if other in found]

    def give_up(self, sequence: Sequence) -> None:
        """Nobody reads it; what is being copied into it ends first."""
        if sequence.load is not None:
            sequence.load.cancelled = True
        else:
            self.discard(sequence)

    def give_up_orphans(self) -> None:
        """Encodings that were made for calls and that none reads any more, and then those that only they read."""

        def is_orphan(sequence: Sequence) -> bool:
            made_for_calls = sequence.decode is None and not sequence.prefetched
            return made_for_calls and sequence.entry.pins == 1 and not sequence.is_given_up

        while orphans := [s for s in self.sequences if is_orphan(s)]:
            for sequence in orphans:
                self.give_up(sequence)

    def discard(self, *sequences: Sequence) -> None:
        """At once, with their entries. Nothing is copied into them, and only they read each other."""
        for sequence in sequences:
            self._producers.pop(sequence.entry, None)
            self._on_removed(sequence.entry.key)
            self._leave(sequence)
        for sequence in sequences:
            self._store.discard(sequence.entry)

    def _leave(self, sequence: Sequence) -> None:
        self.sequences.remove(sequence)
        for read in sequence.reads:
            self._store.unpin(read.entry)
