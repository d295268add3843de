"""Which calls are admitted, and which of their tokens the next iteration computes.

A call is admitted only when the pages for its worst case are free or can be freed: those of every encoding in its
view that the device lacks (recursively, where ancestors have to be encoded again) and of its own message at full
length. So an admitted call never waits for memory, and nothing can deadlock. What it lacks becomes sequences of their
own, loaded or encoded; it runs once these are there, and others run past it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from laban.actors.calls import Call
from laban.actors.engine.checks import check_call
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.corrections import Corrections
from laban.actors.engine.decoding import Decode
from laban.actors.engine.loads import Load, Loads
from laban.actors.engine.planning import Plan, plan_call
from laban.actors.engine.prefetching import Prefetches
from laban.actors.engine.sequence import Chunk, Read, RunningCall, Sequence
from laban.actors.engine.shared_beginnings import SharedBeginnings
from laban.actors.engine.tiers import Tiers, Way, from_host
from laban.actors.engine.waiting import Waiting, WaitingQueue
from laban.actors.errors import Exhausted, FailedPrecondition, InvalidInput
from laban.kvstore.encodings import EncodingSpec, Placement, dependencies, flatten, is_common, make_spec
from laban.kvstore.store import EncodingStore, Entry

# As large as the last one that fitted, after one that did not.
CAREFUL_ITERATIONS = 32
# Room for text before a stop string inside a token, which is tokenized again.
STOP_SLACK_TOKENS = 16
# Of a message whose tail is on its way, encoded in one iteration: where the two will meet is not known before.
MIX_TOKENS = 512
# Of encodings that nobody asked for yet, while there is nothing else to do: a call that comes then waits for no more.
PREFETCH_TOKENS = 512
# Of forced calls that are scored, in one iteration: each token takes a row of the whole vocabulary, several times over.
SCORED_TOKENS = 128


class Scheduler:
    """Owns the queue of waiting calls and the sequences in the making."""

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
        self.free_tokens = free_tokens
        self.running: dict[str, RunningCall] = {}
        self.sequences: list[Sequence] = []  # in order of admission: each after those it reads
        self.waiting = WaitingQueue()
        self.prefetches = Prefetches(self)
        self.is_short = False  # a call waits for pages
        self._producers: dict[Entry, Sequence] = {}
        self._batch_tokens = config.batch_tokens  # less for a while after an iteration that did not fit
        self._num_careful = 0  # iterations until more is tried again

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    @property
    def num_blocked(self) -> int:
        """Of those waiting, those that wait for others to end, not for what is on its way, nor for spare time."""
        return sum(1 for waiting in self.waiting if not (waiting.awaits or waiting.call.spare))

    @property
    def is_decoding(self) -> bool:
        """Whether a call is past its first token."""
        return any(s.decode is not None and s.decode.num_sampled for s in self.sequences)

    @property
    def max_tokens(self) -> int:
        """Of an iteration, for now."""
        return self._batch_tokens

    def queued_tokens(self) -> int:
        """Known tokens still to encode, of running and waiting calls."""
        running = sum(sequence.num_pending for sequence in self.sequences if not sequence.prefetched)
        return running + sum(len(item.call.tokens) for item in self.waiting)

    def enqueue(self, call: Call, now: float) -> None:
        """Raises LabanError for a call that can never run, or that is one too many."""
        if call.call_id in self.running or call.call_id in self.waiting:
            raise InvalidInput("is in use by another call", field="call_id", value=call.call_id)
        if len(self.waiting) >= self.config.max_waiting:
            raise Exhausted(f"the worker's queue holds {self.config.max_waiting} calls already; try again later")
        check_call(call, self.max_context, self.vocab_size, known=self.store)
        specs = {spec.encoding_id: spec for spec in call.specs}
        view = [specs[i] for i in {p.encoding_id for p in flatten(call.view, specs)}]
        pages, common = self._pages_of(view)
        self._check_size(pages + self._own_pages(call), common, call.namespace)
        self.waiting.add(call, now)

    def _own_pages(self, call: Call) -> int:
        return self.store.pages_for(_worst_case_tokens(call))

    def _pages_of(self, specs: Iterable[EncodingSpec]) -> tuple[int, int]:
        """All of them, and those that count for no tenant."""
        pages = [(self.store.pages_for(spec.num_tokens), is_common(spec.namespace)) for spec in specs]
        return sum(count for count, _ in pages), sum(count for count, common in pages if common)

    def _check_size(self, pages: int, common: int, namespace: str) -> None:
        """Of `pages`, `common` count for no tenant."""
        most, there = self.store.most_pages(namespace), self.store.allocator.num_pages
        if pages > there:
            raise self._too_large(pages, there)
        if pages - common > most:
            raise self._too_large(pages - common, most)

    def _too_large(self, pages: int, most: int) -> FailedPrecondition:
        size = self.store.page_size
        whose = "the pool holds" if most == self.store.allocator.num_pages else "a tenant may have"
        return FailedPrecondition(
            f"the call needs {pages * size} tokens of KV memory at its worst, {whose} "
            f"{most * size}; read less, lower max_tokens or enlarge pool_tokens"
        )

    def admit(self, make_decode: Callable[[Call], Decode]) -> Iterator[RunningCall | tuple[Call, Exception]]:
        """Admits waiting calls in order until one does not fit yet, which later ones do not overtake.

        They overtake one whose encodings are on their way to the host. Yields a call with its error, a LabanError if it
        cannot fit even with nothing else running (what it reads was evicted, and encoding that again, ancestors and
        all, takes more than the pool) or if what it reads could not be predicted. Nothing that was done for it stays.
        """
        self.is_short = False
        for waiting in self.waiting:
            if len(self.running) >= self.config.max_running:
                return
            waiting.awaits = {i for i in waiting.awaits if self.tiers.is_coming(i)}
            if waiting.awaits:
                continue
            try:
                admitted = self._try_admit(waiting, make_decode)
            except Exception as error:  # whatever it is, the next attempt would end the same way
                self.waiting.take(waiting.call.call_id)
                self._undo(waiting.call.call_id)
                yield waiting.call, error
                continue
            if admitted is not None:
                self.waiting.take(waiting.call.call_id)
                yield admitted
            elif not waiting.awaits:
                self.is_short = not waiting.call.spare
                return

    def _try_admit(self, waiting: Waiting, make_decode: Callable[[Call], Decode]) -> RunningCall | None:
        call = waiting.call
        plan = plan_call(waiting, self.store, self.tiers, self.corrections)
        if plan.mixes and not self._fits(plan, call):  # their anchors take room, and exact it may do with less
            plan = plan_call(waiting, self.store, self.tiers, None)
        if plan.awaits:
            waiting.awaits = plan.awaits
            waiting.awaited_since = waiting.awaited_since or self.store.now_s
            return None
        with self._keeping(plan) as kept:
            if not self._make_way(waiting, plan):
                return None
            if plan.mixes:  # none of these reads another
                kept += self.corrections.make([(plan.specs[i], mix) for i, mix in plan.mixes.items()])
            for spec, way in plan.missing:
                if way is Way.CORRECT:
                    continue
                if way is Way.ENCODE:
                    self.corrections.encodes(spec, plan.specs)
                self.make(spec, way, plan.specs).spare = call.spare
            running = self._run(waiting, plan, make_decode)
            if not call.spare:  # last: to mix takes pins of its own
                for entry in kept:
                    self._want(entry, plan.specs)
        self.running[call.call_id] = running
        return running

    @contextmanager
    def _keeping(self, plan: Plan) -> Iterator[list[Entry]]:
        """Pins what the device has of what `plan` counts on, so that neither evictions nor preemptions take it away."""
        kept = [entry for key in plan.kept if (entry := self.store.get(key)) is not None]
        for entry in kept:
            self.store.pin(entry)
        try:
            yield kept
        finally:
            for entry in kept:
                self.store.unpin(entry)

    def _undo(self, call_id: str) -> None:
        """Takes back what was done for a call that could not be admitted after all."""
        for sequence in [s for s in self.sequences if s.decode is not None and s.decode.call.call_id == call_id]:
            self._discard(sequence)
        self._discard_orphans()

    def _run(self, waiting: Waiting, plan: Plan, make_decode: Callable[[Call], Decode]) -> RunningCall:
        """The call's own sequence: what it reads is there or in the making."""
        call, before = waiting.call, waiting.preempted
        if plan.target is None:
            decode = make_decode(call) if before is None else before.sequence.decode
            assert decode is not None
            entry = self.store.reserve(f"call/{call.call_id}", _worst_case_tokens(call), call.namespace)
            tokens = [*call.tokens, *decode.generated]
            sequence = self._add(entry, call.start, tokens, plan.view, plan.specs, None, decode)
            sequence.spare = call.spare
            if decode.scorer is not None:
                tokens = [*tokens, *call.terminator]
                sequence.close(tokens, make_spec(call.namespace, tokens, call.start, call.view, plan.specs))
        else:
            found = self.store.get(plan.target.encoding_id)
            assert found is not None
            self._pin(found)  # the call's own pin, so that another's abort does not take it away
            done = Sequence(found, plan.target.start, list(plan.target.tokens), (), (), plan.target, finished=True)
            sequence = self._producers.get(found, done)
            tokens = []
        brought, shared = {}, {}  # of what is missing, how many of its first tokens; of these, what another had
        for spec, way in plan.missing:
            held = self.tiers.held_tokens(spec.encoding_id) if way is Way.RESUME else spec.num_tokens
            if way is Way.ENCODE:
                made = self.store.get(spec.encoding_id)
                assert made is not None
                held = shared[spec.encoding_id] = made.num_tokens
            brought[spec.encoding_id] = held
        encoded = len(tokens) + sum(spec.num_tokens - brought[spec.encoding_id] for spec, _ in plan.missing)
        if before is not None:
            before.sequence = sequence
            before.tokens_encoded += encoded
            return before
        running = RunningCall(call, sequence, waiting.submitted_at, sum(p.num_tokens for p in plan.view))
        running.serial, running.refused = waiting.serial, waiting.refused
        running.admitted_at = running.load_began_at = self.store.now_s
        if waiting.awaited_since is not None:
            running.load_began_at, running.load_ended_at = waiting.awaited_since, self.store.now_s
        corrected = 0
        for placed in plan.view:
            there = brought.get(placed.encoding_id)
            loaded = 0 if there is None else max(0, min(placed.end, there) - placed.begin)
            running.tokens_reused += placed.num_tokens if there is None else loaded
            if placed.encoding_id in plan.mixes:
                corrected += loaded
            elif placed.encoding_id not in shared:
                running.tokens_loaded += loaded
        self.tiers.counters.add("tokens_hit_device", running.tokens_reused - running.tokens_loaded - corrected)
        running.tokens_encoded = encoded
        return running

    def make(
        self, spec: EncodingSpec, way: Way, specs: dict[str, EncodingSpec], *, prefetched: bool = False
    ) -> Sequence:
        """A sequence that has the encoding on the device again; its pages can be reserved."""
        entry = self.store.reserve(spec.encoding_id, spec.num_tokens, spec.namespace)
        return self.fill(entry, spec, way, specs, prefetched=prefetched)

    def fill(
        self, entry: Entry, spec: EncodingSpec, way: Way, specs: dict[str, EncodingSpec], *, prefetched: bool = False
    ) -> Sequence:
        view = [] if way is Way.LOAD else flatten(spec.view, specs)
        sequence = self._add(entry, spec.start, list(spec.tokens), view, specs, spec, None)
        sequence.prefetched = prefetched
        if way is Way.ENCODE:
            sequence.num_computed = entry.num_tokens = self.beginnings.copy(spec, entry)
            if self.tiers.was_here(spec.encoding_id) and not prefetched:
                self.tiers.counters.add("tokens_encoded_again", sequence.num_pending)
            return sequence
        assert self.loads is not None
        source = self.tiers.take_source(spec.encoding_id)
        load = Load(source, source.num_tokens, mixes=way is Way.MIX, wanted=not prefetched)
        load.wanted_at_s = self.store.now_s
        self.loads.start(sequence, load)
        self.store.tell_loading(entry)
        return sequence

    def _make_way(self, waiting: Waiting, plan: Plan) -> bool:
        """Whether the pages that `plan` takes can be had now. Gives up prefetches, and calls of younger workflows,
        where that helps.

        Raises FailedPrecondition if they never can.
        """
        call = waiting.call
        if self._fits(plan, call):
            return True
        if not self.sequences and not self.tiers.is_busy:
            most = self.store.most_pages(call.namespace)
            raise self._too_large(most + self._num_short(plan, call), most)
        if call.spare:
            return False
        if self.prefetches.give_up(plan.kept):
            return self._fits(plan, call)
        younger = [r for r in self.running.values() if r.call.rank > call.rank and r.can_be_preempted]
        younger = sorted(younger, key=lambda running: running.call.rank)[::-1]
        if self._num_short(plan, call, [running.sequence.entry for running in younger]) > 0:
            return False
        for running in younger:
            short = self._num_short(plan, call)
            if short > 0 and self._num_short(plan, call, [running.sequence.entry]) < short:  # it has what is short
                self.preempt(running)
        return self._fits(plan, call)

    def _fits(self, plan: Plan, call: Call) -> bool:
        return self._num_short(plan, call) <= 0

    def _num_short(self, plan: Plan, call: Call, freed: Iterable[Entry] = ()) -> int:
        """Pages that `plan` takes and that cannot be had now, or once those `freed` are given back; none, or less, if
        they can."""
        pages, common = self._pages_of(spec for spec, _ in plan.missing)
        if plan.target is None:
            pages += self._own_pages(call)
        return pages - self.store.num_obtainable(plan.kept, call.namespace, common, freed)

    def encoded_instead(self, chunk: Chunk) -> None:
        """These tokens of a message were not loaded after all: the first call that waits for it is told so."""
        for running in self.running.values():
            if chunk.sequence in running.sequence.producers:
                running.tokens_encoded += chunk.count
                fewer = min(chunk.count, running.tokens_loaded)  # its view may have only a part of the message
                running.tokens_loaded -= fewer
                running.tokens_reused -= fewer
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

    def preempt(self, running: RunningCall) -> None:
        """Takes a running decode out. It waits in its old place, and then goes on, its text so far encoded again."""
        self._put_back(running)
        self._discard(running.sequence)
        self._discard_orphans()
        self.tiers.counters.add("preemptions", 1)

    def _put_back(self, running: RunningCall) -> None:
        """To where it waited; its sequence is still to be discarded."""
        decode = running.sequence.decode
        if decode is None:  # of a prefill, which has pinned what answers it
            self.store.unpin(running.sequence.entry)
        else:
            decode.num_launched = decode.num_sampled  # a token under way is sampled again, and is the same
        del self.running[running.call.call_id]
        running.num_iterations += running.sequence.num_iterations
        again = Waiting(running.call, running.submitted_at, running.serial, refused=running.refused, preempted=running)
        self.waiting.put_back(again)

    def _want(self, entry: Entry, specs: dict[str, EncodingSpec]) -> None:
        """A call reads it: what was brought before anyone asked has been of use."""
        self.prefetches.read(entry)
        sequence = self._producers.get(entry)
        if sequence is None:
            return
        if sequence.prefetched or sequence.spare:
            if sequence.prefetched:
                self.tiers.counters.add("prefetches_late", 1)
            sequence.prefetched = sequence.spare = False
            for producer in sequence.producers:
                self._want(producer.entry, specs)
        load = sequence.load
        if load is not None and not load.wanted:
            load.wanted_at_s = self.store.now_s
            load.wanted = True
            if load.stop == len(sequence.tokens) and self.tiers.mixing_pays(load.there):
                self._mix(sequence, load, specs)

    def _mix(self, sequence: Sequence, load: Load, specs: dict[str, EncodingSpec]) -> None:
        """From now on its head is encoded while the tail is on its way, if the device has what it reads."""
        assert sequence.spec is not None
        if any(dependency not in specs for dependency in dependencies(sequence.spec.view)):
            return
        view = flatten(sequence.spec.view, specs)
        if all(placed.encoding_id in self.store for placed in view):
            sequence.reads, sequence.producers = self._read(view, specs)
            load.mixes = True

    def _add(
        self,
        entry: Entry,
        start: int,
        tokens: list[int],
        view: list[Placement],
        specs: dict[str, EncodingSpec],
        spec: EncodingSpec | None,
        decode: Decode | None,
    ) -> Sequence:
        try:
            reads, producers = self._read(view, specs)
        except Exception:
            self.store.discard(entry)
            raise
        sequence = Sequence(entry, start, tokens, reads, producers, spec, decode)
        self._producers[entry] = sequence
        self.sequences.append(sequence)
        return sequence

    def _read(
        self, view: list[Placement], specs: dict[str, EncodingSpec]
    ) -> tuple[tuple[Read, ...], tuple[Sequence, ...]]:
        """Pins what `view` places: the reads, and those of it that are in the making. Raises KeyError with nothing
        pinned if some of it is neither there nor in the making."""
        reads = []
        for placed in view:
            source = self.store.get(placed.encoding_id)
            if source is None or not (source.ready or source in self._producers):
                raise KeyError(f"encoding {placed.encoding_id} is to be read and is not on the device")
            home = specs[placed.encoding_id].start
            offset = placed.position - home - placed.begin
            reads.append(Read(source, offset, placed.begin, placed.end, home))
        for read in reads:
            self._pin(read.entry)
        producers = tuple({self._producers[r.entry]: None for r in reads if r.entry in self._producers})
        return tuple(reads), producers

    def _pin(self, entry: Entry) -> None:
        """For a reader: what is on its way goes on if it had been given up."""
        self.store.pin(entry)
        sequence = self._producers.get(entry)
        if sequence is not None and sequence.load is not None:
            sequence.load.cancelled = False

    def schedule(self) -> list[Chunk]:
        """The next iteration: a token of every running decode, then prefills in order of admission. Where there are
        none of these, what is done in spare time: prefetches, and the calls that are spare.

        A sequence may join the iteration in which what it reads is completed: every layer writes its
        keys before any row of that layer attends.
        """
        budget = self._batch_tokens
        self._num_careful = max(0, self._num_careful - 1)
        if not self._num_careful:
            self._batch_tokens = min(2 * budget, self.config.batch_tokens)
        chunks: list[Chunk] = []
        completed: set[Sequence] = set()
        wanted = [s for s in self.sequences if not (s.prefetched or s.spare)]
        decoding = [s for s in wanted if s.decode is not None and s.decode.num_launched]
        prefilling = [s for s in wanted if not (s.decode is not None and s.decode.num_launched)]
        for sequence in decoding + prefilling:
            budget -= self._take(sequence, budget, chunks, completed)
        if all(chunk.sequence.decode is not None and chunk.sequence.decode.num_launched for chunk in chunks):
            # A decode without a chunk waits to hear which drafted tokens were taken: not for long.
            spare = min(budget, self.free_tokens if decoding else PREFETCH_TOKENS)
            for sequence in self.sequences:
                if sequence.prefetched or sequence.spare:
                    spare -= self._take(sequence, spare, chunks, completed)
        return chunks

    def _take(self, sequence: Sequence, budget: int, chunks: list[Chunk], completed: set[Sequence]) -> int:
        """Adds what may be computed of `sequence` to `chunks`; returns how many tokens that is."""
        if budget <= 0 or sequence.num_pending <= 0:
            return 0
        if not all(p.is_computed or p in completed for p in sequence.producers):
            return 0
        taken = min(sequence.num_pending, budget if sequence.load is None else min(budget, MIX_TOKENS))
        if sequence.decode is not None and sequence.decode.scorer is not None:
            taken = min(taken, SCORED_TOKENS - sum(len(chunk.scored) for chunk in chunks))
            if taken <= 0:
                return 0
        chunks.append(Chunk(sequence, sequence.num_computed, taken))
        if taken == sequence.num_pending and sequence.decode is None and sequence.load is None:
            completed.add(sequence)
        return taken

    def shrink(self, num_tokens: int) -> None:
        """The last iteration, of `num_tokens`, was too large for the device: the next one takes half of that."""
        self._batch_tokens = max(1, num_tokens // 2)
        self._num_careful = CAREFUL_ITERATIONS

    def publish(self, sequence: Sequence) -> None:
        """The sequence is whole: its entry becomes an encoding that others may find."""
        assert sequence.spec is not None
        made = sequence.entry
        entry = self.store.publish(made, sequence.spec.encoding_id, len(sequence.tokens), sequence.spec)
        if entry is not made:  # somebody else computed the same: read theirs
            for other in self.sequences:
                other.reads = tuple(replace(r, entry=entry) if r.entry is made else r for r in other.reads)
        self._producers.pop(made, None)
        sequence.entry = entry
        sequence.finished = True
        self._leave(sequence)
        self.store.unpin(entry)
        if sequence.prefetched:
            self.prefetches.done(entry)
        self.corrections.published(entry)
        if entry is made:
            self.beginnings.published(entry)
        self.tiers.published(entry)

    def take_loaded(self) -> list[Sequence]:
        """Sequences of which all is on the device now, by loading or encoding. To be published."""
        if self.loads is None:
            return []
        whole = []
        for sequence in self.loads.arrived():
            if sequence.load is not None and sequence.load.failed:
                self._break_off(sequence)
                continue
            load = self.loads.end(sequence)
            self.tiers.put_source(load.source)
            if load.wanted:
                self.tiers.counters.add("wait_load_s", self.store.now_s - load.wanted_at_s)
                for running in self.running.values():
                    if sequence in running.sequence.producers or sequence is running.sequence:
                        running.load_ended_at = self.store.now_s
            if load.cancelled and (load.there > sequence.num_computed or load.stop < len(sequence.tokens)):
                self._discard(sequence)
                self._discard_orphans()  # what it alone was to read
                continue
            self.tiers.counters.add("tokens_loaded_host", load.stop - max(load.there, sequence.num_computed))
            if load.stop == len(sequence.tokens):
                sequence.num_computed = sequence.entry.num_tokens = load.stop
                whole.append(sequence)
            else:  # what had come of a transfer that broke off; the rest is encoded
                sequence.num_computed = sequence.entry.num_tokens = load.stop
        return whole

    def _break_off(self, failed: Sequence) -> None:
        """It could not be loaded: what reads it goes with it, once nothing is copied to any of that, and the calls that
        wait for it begin again without the host's."""
        lost = {failed}
        while more := {s for s in self.sequences if s not in lost and not lost.isdisjoint(s.producers)}:
            lost |= more
        if any(s.load is not None and s.load.in_flight for s in lost):
            return
        key, load = failed.entry.key, failed.load
        assert load is not None
        self.prefetches.failed(key, from_host(key))
        self.prefetches.may_begin = True
        for running in [r for r in self.running.values() if r.sequence in lost]:
            running.refused.add(from_host(key))
            running.tokens_encoded -= 0 if running.sequence.load is not None else running.sequence.num_pending
            fewer = min(load.stop, running.tokens_loaded)
            running.tokens_loaded -= fewer
            running.tokens_reused -= fewer
            self._put_back(running)
        for sequence in lost:
            if sequence.load is not None and self.loads is not None:
                self.tiers.put_source(self.loads.end(sequence).source)
            self._give_up(sequence)
        for sequence in lost:  # none of them reads another any more
            self.store.discard(sequence.entry)

    def abort(self, call_id: str) -> bool:
        """Takes a call out, waiting or running; the store is as if it had never come. False for an unknown call."""
        if self.waiting.take(call_id) is not None:
            return True
        running = self.running.pop(call_id, None)
        if running is None:
            return False
        sequence = running.sequence
        if running.call.sampling is None:
            self.store.unpin(sequence.entry)
        elif not sequence.finished:
            self._discard(sequence)
        self._discard_orphans()
        return True

    def finish(self, call_id: str) -> None:
        """The call was answered."""
        running = self.running.pop(call_id)
        self.prefetches.may_begin = True
        if running.call.sampling is None:
            self.store.unpin(running.sequence.entry)

    def abort_all(self) -> list[str]:
        """After an iteration that failed: aborts every running call and returns their ids. Waiting ones stay.

        What was launched may or may not have been computed, so nothing that is in the making is gone on with.
        """
        call_ids = list(self.running)
        for call_id in call_ids:
            self.abort(call_id)
        self.prefetches.drop_all()
        self._discard_orphans()
        for sequence in self.sequences:  # loads, until what is under way has landed; of use again if read before that
            sequence.num_computed = sequence.entry.num_tokens = 0
        return call_ids

    def _discard_orphans(self) -> None:
        """Drops encodings in the making that nobody reads, and then those that only they read."""

        def is_orphan(sequence: Sequence) -> bool:
            made_for_calls = sequence.decode is None and not sequence.prefetched
            return made_for_calls and sequence.entry.pins == 1 and not sequence.is_given_up

        while orphans := [s for s in self.sequences if is_orphan(s)]:
            for sequence in orphans:
                self.discard(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Gives up an encoding in the making that nobody reads; what is being copied into it ends first."""
        if sequence.load is not None:
            sequence.load.cancelled = True
        else:
            self._discard(sequence)

    def _discard(self, sequence: Sequence) -> None:
        self._give_up(sequence)
        self.store.discard(sequence.entry)

    def _give_up(self, sequence: Sequence) -> None:
        self._producers.pop(sequence.entry, None)
        self.corrections.given_up(sequence.entry.key)
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self.sequences.remove(sequence)
        for read in sequence.reads:
            self.store.unpin(read.entry)


def _worst_case_tokens(call: Call) -> int:
    """Tokens of the call's own message at full length."""
    if call.sampling is None:
        return len(call.tokens)
    slack = STOP_SLACK_TOKENS if call.sampling.stop else 0
    return len(call.tokens) + call.sampling.most_tokens + len(call.terminator) + slack
