"""The pages that a call takes at its worst, and whether they can be had: now, once others give theirs, or never."""

from __future__ import annotations

from collections.abc import Iterable

from laban.actors.calls import Call
from laban.actors.engine.planning import Plan
from laban.actors.errors import FailedPrecondition
from laban.kvstore.encodings import EncodingSpec, flatten, is_common
from laban.kvstore.store import EncodingStore, Entry

STOP_SLACK_TOKENS = 16
"""Room for text before a stop string inside a token, which is tokenized again."""


class Room:
    """Reads a store of the device and changes nothing in it."""

    def __init__(self, store: EncodingStore) -> None:
        self._store = store

    def check(self, call: Call) -> None:
        """Raises FailedPrecondition for a call that does not fit even if nothing else is there."""
        specs = {spec.encoding_id: spec for spec in call.specs}
        view = [specs[i] for i in {p.encoding_id for p in flatten(call.view, specs)}]
        pages, common = self._pages_of(view)
        pages += self._store.pages_for(worst_case_tokens(call))
        most, there = self._store.most_pages(call.namespace), self._store.allocator.num_pages
        if pages > there:
            raise self._too_large(pages, there)
        if pages - common > most:
            raise self._too_large(pages - common, most)

    def num_short(self, plan: Plan, call: Call, freed: Iterable[Entry] = ()) -> int:
        """Pages that `plan` takes and that cannot be had now, or once those `freed` are given back; none, or less, if
        they can."""
        pages, common = self._pages_for(plan, call)
        return pages - self._store.num_obtainable(plan.kept, call.namespace, common, freed)

    def has_for_others(self, plan: Plan, call: Call) -> bool:
        """Whether what `plan` takes could be had now, were it another's: only the share of its tenant is short."""
        everyone, _ = self._store.obtainable(plan.kept, call.namespace)
        return self._pages_for(plan, call)[0] <= everyone

    def fits(self, plan: Plan, call: Call) -> bool:
        return self.num_short(plan, call) <= 0

    def never(self, plan: Plan, call: Call) -> FailedPrecondition:
        """What to tell a call whose plan does not fit though nothing else runs."""
        most = self._store.most_pages(call.namespace)
        return self._too_large(most + self.num_short(plan, call), most)

    def _pages_for(self, plan: Plan, call: Call) -> tuple[int, int]:
        """As `_pages_of`, of all that `plan` takes."""
        pages, common = self._pages_of(spec for spec, _ in plan.missing)
        if plan.target is None:
            pages += self._store.pages_for(worst_case_tokens(call))
        return pages, common

    def _pages_of(self, specs: Iterable[EncodingSpec]) -> tuple[int, int]:
        """All of them, and those that count for no tenant."""
        pages = [(self._store.pages_for(spec.num_tokens), is_common(spec.namespace)) for spec in specs]
        return sum(count for count, _ in pages), sum(count for count, common in pages if common)

    def _too_large(self, pages: int, most: int) -> FailedPrecondition:
        size = self._store.page_size
        whose = "the pool holds" if most == self._store.allocator.num_pages else "a tenant may have"
        return FailedPrecondition(
            f"the call needs {pages * size} tokens of KV memory at its worst, {whose} "
            f"{most * size}; read less, lower max_tokens or enlarge pool_tokens"
        )


def worst_case_tokens(call: Call) -> int:
    """Tokens of the call's own message at full length."""
    if call.sampling is None:
        return len(call.tokens)
    slack = STOP_SLACK_TOKENS if call.sampling.stop else 0
    return len(call.tokens) + call.sampling.most_tokens + len(call.terminator) + slack
