"""Which calls are admitted, and which of their tokens the next iteration computes.

A call is admitted only when the pages for its worst case are free or can be freed: those of every
encoding in its view that has to be computed (recursively, where ancestors were evicted) and of its own
message at full length. So an admitted call never waits for memory, and nothing can deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from laban.actors.calls import Call
from laban.actors.engine.checks import check_call
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.decoding import Decode
from laban.actors.engine.sequence import Chunk, Read, RunningCall, Sequence
from laban.actors.errors import Exhausted, InvalidInput, LabanError
from laban.kvstore.encodings import EncodingSpec, Placement, flatten, make_spec
from laban.kvstore.store import EncodingStore, Entry

# As large as the last one that fitted, after one that did not.
CAREFUL_ITERATIONS = 32
# Room for text before a stop string inside a token, which is tokenized again.
STOP_SLACK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Waiting:
    call: Call
    submitted_at: float


class Scheduler:
    """Owns the store, the queue of waiting calls and the sequences in the making."""

    def __init__(self, config: EngineConfig, store: EncodingStore, max_context: int, vocab_size: int) -> None:
        self.config = config
        self.store = store
        self.max_context = max_context
        self.vocab_size = vocab_size
        self.running: dict[str, RunningCall] = {}
        self.sequences: list[Sequence] = []  # in order of admission: each after those it reads
        self._producers: dict[Entry, Sequence] = {}
        self._waiting: dict[str, Waiting] = {}  # by call id, in the order they came
        self._batch_tokens = config.batch_tokens  # less for a while after an iteration that did not fit
        self._num_careful = 0  # iterations until more is tried again

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def queued_tokens(self) -> int:
        """Known tokens still to encode, of running and waiting calls."""
        running = sum(sequence.num_pending for sequence in self.sequences)
        return running + sum(len(item.call.tokens) for item in self._waiting.values())

    def enqueue(self, call: Call, now: float) -> None:
        """Raises LabanError for a call that can never run, or that is one too many."""
        if call.call_id in self.running or call.call_id in self._waiting:
            raise InvalidInput("is in use by another call", field="call_id", value=call.call_id)
        if len(self._waiting) >= self.config.max_waiting:
            raise Exhausted(f"the worker's queue holds {self.config.max_waiting} calls already; try again later")
        check_call(call, self.max_context, self.vocab_size, known=self.store)
        specs = {spec.encoding_id: spec for spec in call.specs}
        view = {p.encoding_id for p in flatten(call.view, specs)}
        self._check_size(sum(self.store.pages_for(specs[i].num_tokens) for i in view) + self._own_pages(call))
        self._waiting[call.call_id] = Waiting(call, now)

    def _own_pages(self, call: Call) -> int:
        return self.store.pages_for(_worst_case_tokens(call))

    def _check_size(self, pages: int) -> None:
        num_pages, size = self.store.allocator.num_pages, self.store.page_size
        if pages > num_pages:
            raise Exhausted(
                f"the call needs {pages * size} tokens of KV memory at its worst, the pool holds "
                f"{num_pages * size}; read less, lower max_tokens or enlarge pool_tokens"
            )

    def admit(self, make_decode: Callable[[Call], Decode]) -> Iterator[RunningCall | tuple[Call, LabanError]]:
        """Admits waiting calls in order until one does not fit yet. Later ones do not overtake it.

        Yields a call with its error if it cannot fit even with nothing else running: what it reads was
        evicted, and encoding that again, ancestors and all, takes more than the pool.
        """
        while self._waiting and len(self.running) < self.config.max_running:
            waiting = next(iter(self._waiting.values()))
            try:
                admitted = self._try_admit(waiting, make_decode)
            except Exhausted as error:
                del self._waiting[waiting.call.call_id]
                yield waiting.call, error
                continue
            if admitted is None:
                return
            del self._waiting[waiting.call.call_id]
            yield admitted

    def _missing(
        self, view: list[Placement], ordered: tuple[EncodingSpec, ...], specs: dict[str, EncodingSpec]
    ) -> list[EncodingSpec]:
        """What has to be computed for `view`, each after those it reads; nothing behind what the store has."""
        needed = {p.encoding_id for p in view}
        for spec in reversed(ordered):
            if spec.encoding_id in needed and spec.encoding_id not in self.store:
                needed.update(p.encoding_id for p in flatten(spec.view, specs))
        return [spec for spec in ordered if spec.encoding_id in needed and spec.encoding_id not in self.store]

    def _try_admit(self, waiting: Waiting, make_decode: Callable[[Call], Decode]) -> RunningCall | None:
        call = waiting.call
        specs = {spec.encoding_id: spec for spec in call.specs}
        target = None
        if call.sampling is None:
            target = make_spec(call.namespace, call.tokens, call.start, call.view, specs)
            specs[target.encoding_id] = target
        view = flatten(call.view, specs)
        if target is None:
            missing = self._missing(view, call.specs, specs)
        elif target.encoding_id not in self.store:
            missing = [*self._missing(view, call.specs, specs), target]
        else:
            missing = []  # the answer is there: its view is not needed
        # In an order of their own: pins date last uses, which all shards of a worker must have alike.
        kept = dict.fromkeys(p.encoding_id for spec in missing for p in flatten(spec.view, specs))
        kept |= dict.fromkeys([target.encoding_id] if target else [p.encoding_id for p in view])
        pages = sum(self.store.pages_for(spec.num_tokens) for spec in missing)
        if target is None:
            pages += self._own_pages(call)
        if pages > self.store.num_obtainable(keep=kept):
            if not self.sequences:
                self._check_size(pages + self.store.allocator.num_pages - self.store.num_obtainable(keep=kept))
            return None

        present = [entry for key in kept if (entry := self.store.get(key)) is not None]
        for entry in present:  # against eviction while the rest is reserved
            self.store.pin(entry)
        for spec in missing:
            entry = self.store.reserve(spec.encoding_id, spec.num_tokens)
            self._add(entry, spec.start, list(spec.tokens), flatten(spec.view, specs), specs, spec, None)
        computed = {spec.encoding_id for spec in missing}
        reused = sum(p.num_tokens for p in view if p.encoding_id not in computed)
        if target is None:
            entry = self.store.reserve(f"call/{call.call_id}", _worst_case_tokens(call))
            sequence = self._add(entry, call.start, list(call.tokens), view, specs, None, make_decode(call))
        else:
            found = self.store.get(target.encoding_id)
            assert found is not None
            self.store.pin(found)  # the call's own pin, so that another's abort does not take it away
            done = Sequence(found, target.start, list(target.tokens), (), (), target, finished=True)
            sequence = self._producers.get(found, done)
        for entry in present:
            self.store.unpin(entry)
        encoded = sum(spec.num_tokens for spec in missing) + (len(call.tokens) if target is None else 0)
        running = RunningCall(call, sequence, waiting.submitted_at, sum(p.num_tokens for p in view), reused, encoded)
        self.running[call.call_id] = running
        return running

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
        reads = []
        for placed in view:
            source = self.store.get(placed.encoding_id)
            assert source is not None
            self.store.pin(source)
            home = specs[placed.encoding_id].start
            offset = placed.position - home - placed.begin
            reads.append(Read(source, offset, placed.begin, placed.end, home))
        producers = tuple({self._producers[r.entry]: None for r in reads if r.entry in self._producers})
        sequence = Sequence(entry, start, tokens, tuple(reads), producers, spec, decode)
        self._producers[entry] = sequence
        self.sequences.append(sequence)
        return sequence

    def schedule(self) -> list[Chunk]:
        """The next iteration: a token of every running decode, then prefills in order of admission.

        A sequence may join the iteration in which what it reads is completed: every layer writes its
        keys before any row of that layer attends.
        """
        budget = self._batch_tokens
        self._num_careful = max(0, self._num_careful - 1)
        if not self._num_careful:
            self._batch_tokens = min(2 * budget, self.config.batch_tokens)
        chunks: list[Chunk] = []
        completed: set[Sequence] = set()
        decoding = [s for s in self.sequences if s.decode is not None and s.decode.num_launched]
        prefilling = [s for s in self.sequences if not (s.decode is not None and s.decode.num_launched)]
        for sequence in decoding + prefilling:
            if budget <= 0:
                break
            ready = all(p.is_computed or p in completed for p in sequence.producers)
            if not ready or sequence.num_pending == 0:
                continue
            taken = min(sequence.num_pending, budget)
            chunks.append(Chunk(sequence, sequence.num_computed, taken))
            budget -= taken
            if taken == sequence.num_pending and sequence.decode is None:
                completed.add(sequence)
        return chunks

    def shrink(self, num_tokens: int) -> None:
        """The last iteration, of `num_tokens`, was too large for the device: the next one takes half of that."""
        self._batch_tokens = max(1, num_tokens // 2)
        self._num_careful = CAREFUL_ITERATIONS

    def publish(self, sequence: Sequence) -> None:
        """The sequence is whole: its entry becomes an encoding that others may find."""
        assert sequence.spec is not None
        made = sequence.entry
        entry = self.store.publish(made, sequence.spec.encoding_id, len(sequence.tokens))
        if entry is not made:  # somebody else computed the same: read theirs
            for other in self.sequences:
                other.reads = tuple(replace(r, entry=entry) if r.entry is made else r for r in other.reads)
        self._producers.pop(made, None)
        sequence.entry = entry
        sequence.finished = True
        self._leave(sequence)
        self.store.unpin(entry)

    def abort(self, call_id: str) -> bool:
        """Takes a call out, waiting or running; the store is as if it had never come. False for an unknown call."""
        if self._waiting.pop(call_id, None) is not None:
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
        if running.call.sampling is None:
            self.store.unpin(running.sequence.entry)

    def abort_all(self) -> list[str]:
        """Aborts every running call and returns their ids. Waiting ones stay."""
        call_ids = list(self.running)
        for call_id in call_ids:
            self.abort(call_id)
        return call_ids

    def _discard_orphans(self) -> None:
        """Drops encodings in the making that nobody reads; readers come later, so backwards takes whole chains."""
        for sequence in reversed(list(self.sequences)):
            if sequence.decode is None and sequence.entry.pins == 1:
                self._discard(sequence)

    def _discard(self, sequence: Sequence) -> None:
        self._producers.pop(sequence.entry, None)
        self._leave(sequence)
        self.store.discard(sequence.entry)

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
