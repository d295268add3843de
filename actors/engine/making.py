"""How encodings that the device lacks come to be there: encoded, loaded from the host, or both at once."""

from __future__ import annotations

from collections.abc import Callable

from laban.actors.engine.loads import Load, Loads
from laban.actors.engine.sequence import Sequence
from laban.actors.engine.shared_beginnings import SharedBeginnings
from laban.actors.engine.tiers import Tiers, Way
from laban.actors.engine.unfinished import Unfinished
from laban.kvstore.encodings import EncodingSpec, Specs, dependencies, flatten
from laban.kvstore.store import EncodingStore, Entry


class Making:
    """Makes a sequence of each. It is computed as any other is, or filled by a load, or by both from its two ends."""

    def __init__(
        self,
        store: EncodingStore,
        tiers: Tiers,
        loads: Loads | None,
        beginnings: SharedBeginnings,
        unfinished: Unfinished,
        *,
        on_wanted: Callable[[Entry], None],
    ) -> None:
        """`on_wanted` is told of each entry that a call wants, there or in the making."""
        self._store, self._tiers, self._loads, self._beginnings = store, tiers, loads, beginnings
        self._unfinished, self._on_wanted = unfinished, on_wanted

    def make(self, spec: EncodingSpec, way: Way, specs: Specs) -> Sequence:
        """A sequence that has the encoding on the device again; its pages can be reserved."""
        entry = self._store.reserve(spec.encoding_id, spec.num_tokens, spec.namespace)
        return self.fill(entry, spec, way, specs)

    def fill(self, entry: Entry, spec: EncodingSpec, way: Way, specs: Specs, *, prefetched: bool = False) -> Sequence:
        """The same with pages that were reserved for it. They are given back if this raises KeyError: what the way
        needs of its view is not there."""
        view = [] if way is Way.LOAD else flatten(spec.view, specs)
        sequence = self._unfinished.add(entry, spec.start, list(spec.tokens), view, specs, spec, None)
        sequence.prefetched = prefetched
        if way is Way.ENCODE:
            sequence.num_computed = entry.num_tokens = self._beginnings.copy(spec, entry)
            if self._tiers.was_here(spec.encoding_id) and not prefetched:
                self._tiers.counters.add("tokens_encoded_again", sequence.num_pending)
            return sequence
        assert self._loads is not None
        source = self._tiers.take_source(spec.encoding_id)
        load = Load(source, source.num_tokens, mixes=way is Way.MIX, wanted=not prefetched)
        load.wanted_at_s = self._store.now_s
        self._loads.start(sequence, load)
        self._store.tell_loading(entry)
        return sequence

    def want(self, entry: Entry, specs: Specs) -> None:
        """A call reads it. If it is in the making it is from now on made for calls, with all that it reads."""
        self._on_wanted(entry)
        sequence = self._unfinished.producer(entry)
        if sequence is None:
            return
        if sequence.prefetched or sequence.spare:
            if sequence.prefetched:
                self._tiers.counters.add("prefetches_late", 1)
            sequence.prefetched = sequence.spare = False
            for producer in sequence.producers:
                self.want(producer.entry, specs)
        load = sequence.load
        if load is not None and not load.wanted:
            load.wanted_at_s = self._store.now_s
            load.wanted = True
            if load.stop == len(sequence.tokens) and self._tiers.mixing_pays(load.there):
                self._mix(sequence, load, specs)

    def end_load(self, sequence: Sequence) -> bool:
        """Nothing more of it is under way from the host. Whether all of it is there; else the rest is encoded, or it is
        gone if nobody wants it any more."""
        assert self._loads is not None
        load = self._loads.end(sequence)
        self._tiers.put_source(load.source)
        if load.wanted:
            self._tiers.counters.add("wait_load_s", self._store.now_s - load.wanted_at_s)
        if load.cancelled and (load.there > sequence.num_computed or load.stop < len(sequence.tokens)):
            self._unfinished.discard(sequence)
            self._unfinished.give_up_orphans()  # what it alone was to read
            return False
        self._tiers.counters.add("tokens_loaded_host", load.stop - max(load.there, sequence.num_computed))
        sequence.num_computed = sequence.entry.num_tokens = load.stop
        return load.stop == len(sequence.tokens)

    def abandon(self, sequences: list[Sequence]) -> None:
        """Discards what cannot be made any more. Nothing is copied into them, and only they read each other."""
        for sequence in sequences:
            if sequence.load is not None and self._loads is not None:
                self._tiers.put_source(self._loads.end(sequence).source)
        self._unfinished.discard(*sequences)

    def _mix(self, sequence: Sequence, load: Load, specs: Specs) -> None:
        """From now on its head is encoded while the tail is on its way, if the device has what it reads."""
        assert sequence.spec is not None
        if any(dependency not in specs for dependency in dependencies(sequence.spec.view)):
            return
        view = flatten(sequence.spec.view, specs)
        if all(placed.encoding_id in self._store for placed in view):
            sequence.reads, sequence.producers = self._unfinished.read(view, specs)
            load.mixes = True
