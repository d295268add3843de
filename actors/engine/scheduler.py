"""The calls of a worker from when they are queued until they have ended.

What a call lacks becomes sequences of their own, loaded or encoded; it runs once these are there, and others run past
it meanwhile. `Admission` says who begins, `Making` has what is missing made, `Unfinished` knows what is in the making,
and `Chunking` which tokens of that the next iteration computes.
"""

from __future__ import annotations

from collections.abc import Iterator

from laban.actors.calls import Call
from laban.actors.engine.admission import Admission
from laban.actors.engine.checks import check_call
from laban.actors.engine.chunking import Chunking, most_ahead
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.corrections import Corrections
from laban.actors.engine.decoding import Decode
from laban.actors.engine.loads import Load, Loads
from laban.actors.engine.making import Making
from laban.actors.engine.prefetching import Prefetches
from laban.actors.engine.running_call import RunningCall
from laban.actors.engine.sequence import Chunk, Sequence
from laban.actors.engine.shared_beginnings import SharedBeginnings
from laban.actors.engine.starting import MakeDecode, Starting
from laban.actors.engine.tiers import Tiers, Way, from_host
from laban.actors.engine.unfinished import Unfinished
from laban.actors.errors import Exhausted, InvalidInput
from laban.kvstore.encodings import EncodingSpec, Specs
from laban.kvstore.store import EncodingStore, Entry


class Scheduler:
    """Brings its parts together: what happens to a call happens to the sequences that are made for it."""

    def __init__(
        self,
        config: EngineConfig,
        store: EncodingStore,
        tiers: Tiers,
        loads: Loads | None,
        corrections: Corrections,
        beginnings: SharedBeginnings,
        max_context: int,
        vocab_size: int,
        *,
        free_tokens: int = 0,
    ) -> None:
        """`free_tokens` cost an iteration next to nothing: so many of prefetches go along with decodes."""
        self.config = config
        self.store = store
        self.tiers = tiers
        self.loads = loads
        self.corrections = corrections
        self.beginnings = beginnings
        self.max_context = max_context
        self.vocab_size = vocab_size
        self.prefetches = Prefetches(self)
        self.chunking = Chunking(config.batch_tokens, free_tokens=free_tokens)
        self.unfinished = Unfinished(store, corrections.given_up)
        self.sequences = self.unfinished.sequences
        self.making = Making(store, tiers, loads, beginnings, self.unfinished, on_wanted=self.prefetches.read)
        starting = Starting(store, tiers, corrections, self.making, self.unfinished)
        self.admission = Admission(
            config.max_running, store, tiers, corrections, self.unfinished, starting, self.prefetches
        )
        self.waiting, self.running = self.admission.waiting, self.admission.running

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    @property
    def num_blocked(self) -> int:
        """Of those waiting, those that wait for others to end, not for what is on its way, nor for spare time."""
        return sum(1 for waiting in self.waiting if not (waiting.awaits or waiting.call.spare))

    @property
    def is_short(self) -> bool:
        """Whether a call waits for pages."""
        return self.admission.is_short

    @property
    def is_decoding(self) -> bool:
        """Whether a call is past its first token."""
        return any(s.decode is not None and s.decode.num_sampled for s in self.sequences)

    def awaits(self, sequence: Sequence, decode: Decode) -> bool:
        """Whether the call still runs and wants more tokens: one launched after its end is nobody's."""
        running = self.running.get(decode.call.call_id)
        return running is not None and running.sequence is sequence and decode.finish_reason is None

    def queued_tokens(self) -> int:
        """Known tokens still to encode, of running and waiting calls."""
        running = sum(sequence.num_pending for sequence in self.sequences if not sequence.prefetched)
        return running + sum(len(item.call.tokens) for item in self.waiting)

    # Calls come, begin and end

    def enqueue(self, call: Call, now: float) -> None:
        """Raises LabanError for a call that can never run, or that is one too many."""
        if call.call_id in self.running or call.call_id in self.waiting:
            raise InvalidInput("is in use by another call", field="call_id", value=call.call_id)
        if len(self.waiting) >= self.config.max_waiting:
            raise Exhausted(f"the worker's queue holds {self.config.max_waiting} calls already; try again later")
        check_call(call, self.max_context, self.vocab_size, known=self.store)
        self.admission.room.check(call)
        self.waiting.add(call, now)

    def admit(self, make_decode: MakeDecode) -> Iterator[RunningCall | tuple[Call, Exception]]:
        """The calls that begin now, and those that turn out never to."""
        return self.admission.admit(make_decode)

    def finish(self, call_id: str) -> None:
        """The call was answered."""
        running = self.running.pop(call_id)
        self.prefetches.may_begin = True
        if running.call.sampling is None:
            self.store.unpin(running.sequence.entry)

    def abort(self, call_id: str) -> bool:
        """Takes a call out, waiting or running; the store is as if it had never come. False for an unknown call."""
        self.prefetches.may_begin = True
        if self.waiting.take(call_id) is not None:
            return True
        running = self.running.pop(call_id, None)
        if running is None:
            return False
        sequence = running.sequence
        if running.call.sampling is None:
            self.store.unpin(sequence.entry)
        elif not sequence.finished:
            self.unfinished.discard(sequence)
        self.unfinished.give_up_orphans()
        return True

    def abort_all(self) -> list[str]:
        """After an iteration that failed: aborts every running call and returns their ids. Waiting ones stay.

        What was launched may or may not have been computed, so nothing that is in the making is gone on with.
        """
        call_ids = list(self.running)
        for call_id in call_ids:
            self.abort(call_id)
        self.prefetches.drop_all()
        self.unfinished.give_up_orphans()
        for sequence in self.sequences:  # loads, until what is under way has landed; of use again if read before that
            sequence.num_computed = sequence.entry.num_tokens = 0
        return call_ids

    # What is made for them

    def schedule(self) -> list[Chunk]:
        """The next iteration."""
        return self.chunking.choose(self.sequences, most_ahead(self.tiers.rates.expected.encode_tokens_per_s))

    def publish(self, sequence: Sequence) -> None:
        """The sequence is whole: its entry becomes an encoding that others may find."""
        made = sequence.entry
        entry = self.unfinished.publish(sequence)
        if sequence.prefetched:
            self.prefetches.done(entry)
        self.corrections.published(entry)
        if entry is made:
            self.beginnings.published(entry)
        self.tiers.published(entry)

    def fill(self, entry: Entry, spec: EncodingSpec, way: Way, specs: Specs, *, prefetched: bool = False) -> Sequence:
        """As `Making.fill`, for prefetches."""
        return self.making.fill(entry, spec, way, specs, prefetched=prefetched)

    def discard(self, sequence: Sequence) -> None:
        """As `Unfinished.give_up`, for prefetches."""
        self.unfinished.give_up(sequence)

    def encoded_instead(self, chunk: Chunk) -> None:
        """These tokens of a message were not loaded after all: the first call that waits for it is told so."""
        for running in self.running.values():
            if chunk.sequence in running.sequence.producers:
                running.encoded_instead(chunk.count)
                return

    def arrived(self, encoding_id: str, source: object, *, failed: bool) -> None:
        """What `source` was to bring has come, or has `failed` to. Those who waited for it do not ask it again: where
        the host has no room for all that calls wait for, they would evict it for each other for ever."""
        for waiting in self.waiting:
            if encoding_id in waiting.awaits:
                waiting.refused.add(source)
        self.prefetches.may_begin = True
        if failed:
            self.prefetches.failed(encoding_id, source)

    def take_loaded(self) -> list[Sequence]:
        """Sequences of which all is on the device now, by loading or encoding. To be published."""
        if self.loads is None:
            return []
        whole = []
        for sequence in self.loads.arrived():
            load = sequence.load
            assert load is not None
            if load.failed:
                self._break_off(sequence, load)
                continue
            if load.wanted:
                for running in self.running.values():
                    if sequence in running.sequence.producers or sequence is running.sequence:
                        running.load_ended_at = self.store.now_s
            if self.making.end_load(sequence):
                whole.append(sequence)
        return whole

    def _break_off(self, failed: Sequence, load: Load) -> None:
        """It could not be loaded: what reads it goes with it, once nothing is copied to any of that, and the calls that
        wait for it begin again without the host's."""
        lost = self.unfinished.readers(failed)
        if any(s.load is not None and s.load.in_flight for s in lost):
            return
        key = failed.entry.key
        self.prefetches.failed(key, from_host(key))
        self.prefetches.may_begin = True
        for running in [r for r in self.running.values() if r.sequence in lost]:
            running.refused.add(from_host(key))
            running.tokens_encoded -= 0 if running.sequence.load is not None else running.sequence.num_pending
            running.not_loaded(load.stop)
            self.admission.put_back(running)
        self.making.abandon(lost)
