"""Which waiting calls begin now, and what has to go for them.

A call is admitted only when the pages for its worst case are free or can be freed: those of every encoding in its
view that the device lacks (recursively, where ancestors have to be encoded again) and of its own message at full
length. So an admitted call never waits for memory, and nothing can deadlock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from laban.actors.calls import Call
from laban.actors.engine.corrections import Corrections
from laban.actors.engine.planning import Plan, plan_call
from laban.actors.engine.prefetching import Prefetches
from laban.actors.engine.room import Room
from laban.actors.engine.running_call import RunningCall
from laban.actors.engine.starting import MakeDecode, Starting
from laban.actors.engine.tiers import Tiers
from laban.actors.engine.unfinished import Unfinished
from laban.actors.engine.waiting import Waiting, WaitingQueue
from laban.kvstore.encodings import owner_of
from laban.kvstore.store import EncodingStore, Entry


class Admission:
    """Owns the calls of a worker, waiting and running, and moves them from the one to the other and back."""

    def __init__(
        self,
        max_running: int,
        store: EncodingStore,
        tiers: Tiers,
        corrections: Corrections,
        unfinished: Unfinished,
        starting: Starting,
        prefetches: Prefetches,
    ) -> None:
        self._max_running = max_running
        self._store, self._tiers, self._corrections = store, tiers, corrections
        self._unfinished, self._starting, self._prefetches = unfinished, starting, prefetches
        self.room = Room(store)
        self.waiting = WaitingQueue()
        self.running: dict[str, RunningCall] = {}
        self.is_short = False  # a call waits for pages

    def admit(self, make_decode: MakeDecode) -> Iterator[RunningCall | tuple[Call, Exception]]:
        """Admits waiting calls in order until one does not fit yet, which later ones do not overtake.

        They overtake one whose encodings are on their way to the host, and others' calls one that its tenant's own
        share alone has no room for. Yields a call with its error, a LabanError if it cannot fit even with nothing else
        running (what it reads was evicted, and encoding that again, ancestors and all, takes more than the pool) or if
        what it reads could not be predicted. Nothing that was done for it stays.
        """
        self.is_short = False
        held: set[str] = set()  # tenants
        for waiting in self.waiting:
            if not self._has_place_for(waiting.call):
                return
            tenant = owner_of(waiting.call.namespace)
            if tenant in held:
                continue
            waiting.awaits = {i for i in waiting.awaits if self._tiers.is_coming(i)}
            if waiting.awaits:
                continue
            try:
                admitted = self._try(waiting, make_decode)
            except Exception as error:  # whatever it is, the next attempt would end the same way
                self.waiting.take(waiting.call.call_id)
                self._starting.undo(waiting.call.call_id)
                yield waiting.call, error
                continue
            if admitted is not None:
                self.waiting.take(waiting.call.call_id)
                yield admitted
            elif not waiting.awaits:
                self.is_short = self.is_short or not waiting.call.spare
                if not waiting.short_of_share:
                    return
                held.add(tenant)

    def put_back(self, running: RunningCall) -> None:
        """To where it waited. Its sequence is still to be discarded, if it is its own."""
        decode = running.sequence.decode
        if decode is None:  # of a prefill, which has pinned what answers it
            self._store.unpin(running.sequence.entry)
        else:
            decode.num_launched = decode.num_sampled  # a token under way is sampled again, and is the same
        del self.running[running.call.call_id]
        running.num_iterations += running.sequence.num_iterations
        again = Waiting(running.call, running.submitted_at, running.serial, refused=running.refused, preempted=running)
        self.waiting.put_back(again)

    def _try(self, waiting: Waiting, make_decode: MakeDecode) -> RunningCall | None:
        plan = self._plan(waiting)
        if plan.awaits:
            waiting.awaits = plan.awaits
            waiting.awaited_since = waiting.awaited_since or self._store.now_s
            return None
        with self._keeping(plan) as kept:
            if not self._make_way(waiting.call, plan):
                waiting.short_of_share = self.room.has_for_others(plan, waiting.call)
                return None
            if len(self.running) >= self._max_running:
                self._give_back(self._spare_ones()[-1])
            running = self._starting.start(waiting, plan, kept, make_decode)
        self.running[waiting.call.call_id] = running
        return running

    def _has_place_for(self, call: Call) -> bool:
        return len(self.running) < self._max_running or (not call.spare and bool(self._spare_ones()))

    def _spare_ones(self) -> list[RunningCall]:
        return [running for running in self.running.values() if running.call.spare]

    def _plan(self, waiting: Waiting) -> Plan:
        plan = plan_call(waiting, self._store, self._tiers, self._corrections)
        if plan.mixes and not self.room.fits(plan, waiting.call):
            # Their anchors take room, and exact it may do with less.
            plan = plan_call(waiting, self._store, self._tiers, None)
        return plan

    @contextmanager
    def _keeping(self, plan: Plan) -> Iterator[list[Entry]]:
        """Pins what the device has of what `plan` counts on, so that neither evictions nor preemptions take it away."""
        kept = [entry for key in plan.kept if (entry := self._store.get(key)) is not None]
        for entry in kept:
            self._store.pin(entry)
        try:
            yield kept
        finally:
            for entry in kept:
                self._store.unpin(entry)

    def _make_way(self, call: Call, plan: Plan) -> bool:
        """Whether the pages that `plan` takes can be had now. Gives up prefetches, spare calls, and calls of younger
        workflows, where that helps.

        Raises FailedPrecondition if they never can.
        """
        room = self.room
        if room.fits(plan, call):
            return True
        if not self._unfinished.sequences and not self._tiers.is_busy:
            raise room.never(plan, call)
        if call.spare:
            return False
        if self._prefetches.give_up(plan.kept):
            return room.fits(plan, call)
        owner = owner_of(call.namespace) if room.has_for_others(plan, call) else None
        spare = [r for r in self._spare_ones() if owner in (None, owner_of(r.call.namespace))]
        if spare:  # whatever they are at: they would hold their pages until there is time for them
            for running in spare:
                self._give_back(running)
            return room.fits(plan, call)
        younger = [r for r in self.running.values() if r.call.rank > call.rank and r.can_be_preempted]
        younger = sorted(younger, key=lambda running: running.call.rank)[::-1]
        if room.num_short(plan, call, [running.sequence.entry for running in younger]) > 0:
            return False
        for running in younger:
            short = room.num_short(plan, call)
            if short > 0 and room.num_short(plan, call, [running.sequence.entry]) < short:  # it has what is short
                self._preempt(running)
        return room.fits(plan, call)

    def _preempt(self, running: RunningCall) -> None:
        """Takes a running decode out. It waits in its old place, and then goes on, its text so far encoded again."""
        self._give_back(running)
        self._tiers.counters.add("preemptions", 1)

    def _give_back(self, running: RunningCall) -> None:
        """What it alone holds, and its place."""
        self.put_back(running)
        if running.sequence.decode is not None:
            self._unfinished.discard(running.sequence)
        self._unfinished.give_up_orphans()
