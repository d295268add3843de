"""Fleets and calls at random, a directory's view of plain dicts, and the search that looks at every worker."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from laban.actors.calls import WorkerInfo, WorkerLoad, WorkerRates
from laban.cluster.routing.call_view import CallView, Need, bits
from laban.cluster.routing.ledger import Account, Ledger, Sent
from laban.cluster.routing.policy import WorkerView
from laban.cluster.routing.replication import MIN_TOKENS
from laban.cluster.routing.router import Choice, Router
from laban.kvstore.placements import PlacementState, Tier

READY, LOADING = PlacementState.READY, PlacementState.LOADING
Placements = tuple[tuple[Tier, PlacementState, int], ...]


class PlainView:
    """Who holds what, as said by `put`."""

    def __init__(self) -> None:
        self.placements: dict[str, dict[str, Placements]] = {}
        self._listeners: list[Callable[[str], None]] = []

    def put(self, encoding_id: str, worker_id: str, *placements: tuple[Tier, PlacementState, int]) -> None:
        """No placements: the worker has none of it any more."""
        held = self.placements.setdefault(encoding_id, {})
        held.pop(worker_id, None)
        if placements:
            held[worker_id] = placements
        for changed in self._listeners:
            changed(encoding_id)

    def on_device(self, encoding_id: str, worker_id: str, num_tokens: int) -> None:
        self.put(encoding_id, worker_id, (Tier.DEVICE, READY, num_tokens))

    def holders(self, encoding_id: str) -> Mapping[str, Sequence[tuple[Tier, PlacementState, int]]]:
        return self.placements.get(encoding_id, {})

    def listen(self, changed: Callable[[str], None]) -> None:
        self._listeners.append(changed)


def info_of(worker_id: str, device: str = "cpu", *, fetches: bool = False, bytes_per_token: int = 1000) -> WorkerInfo:
    return WorkerInfo(
        worker_id, "e", "model", "model", 4096, 100, 16, bytes_per_token, 1000, "none", "float32", device,
        fetches=fetches,
    )  # fmt: skip


def simple_call(
    needs: Sequence[tuple[str, int]], own_tokens: int = 10, call_id: str = "wf-1/a", output_tokens: int = 20, **fields
) -> CallView:
    """A call that reads a chain of these (id, tokens)."""
    made = tuple(Need(name, tokens, (1 << at) - 1, tokens) for at, (name, tokens) in enumerate(needs))
    return CallView(
        call_id, call_id.partition("/")[0], 0, made, (1 << len(made)) - 1, own_tokens, output_tokens,
        sum(tokens for _, tokens in needs), **fields,
    )  # fmt: skip


def random_fleet(rng: random.Random, view: PlainView, num_workers: int, num_encodings: int) -> Ledger:
    """Workers of one make or two, some closed or off their make; encodings anywhere, whole, partly or on their way."""
    ledger = Ledger()
    fetches = rng.random() < 0.7
    for n in range(num_workers):
        device = "fast" if rng.random() < 0.2 else "cpu"
        account = ledger.add(info_of(f"w{n}", device, fetches=fetches))
        if rng.random() < 0.8:
            base = 4000.0 if device == "fast" else 1000.0
            off = rng.choice([0.4, 2.0]) if rng.random() < 0.1 else rng.uniform(0.98, 1.02)
            host = rng.choice([1e5, 1e6, 1e7])
            ledger.report(
                account,
                WorkerLoad(num_free_pages=rng.randrange(9)),
                WorkerRates(base * off, 0.01, host, host / 4, rng.choice([2e5, 2e6])),
            )
        if rng.random() < 0.1:
            ledger.set_open(account, False)
    for n in range(num_encodings):
        for worker_id in rng.sample(
            list(ledger.accounts), min(num_workers, rng.choice([0, 0, 1, 1, 2, num_workers // 2, num_workers]))
        ):
            place(rng, view, f"e{n}", worker_id)
    return ledger


def place(rng: random.Random, view: PlainView, encoding_id: str, worker_id: str) -> None:
    tiers = rng.sample(list(Tier), rng.choice([0, 1, 1, 1, 1, 2]))
    states = rng.choices([READY, LOADING, PlacementState.EVICTING], [8, 1, 1], k=len(tiers))
    tokens = int(tokens_of(encoding_id) * rng.choice([1.0, 1.0, 1.0, 0.5]))
    view.put(encoding_id, worker_id, *((tier, state, tokens) for tier, state in zip(tiers, states, strict=True)))


def tokens_of(encoding_id: str) -> int:
    return random.Random(encoding_id).choice([1, 20, 100, 400])


def random_call(rng: random.Random, num_encodings: int, number: int) -> CallView:
    names = [f"e{n}" for n in rng.sample(range(num_encodings), min(num_encodings, rng.randrange(1, 9)))]
    needs = []
    for at, name in enumerate(names):
        context = rng.getrandbits(at) if at and rng.random() < 0.7 else 0
        for below in range(at):  # what stands in a prefix's context stands in one's own
            if context >> below & 1:
                context |= needs[below].context
        needs.append(Need(name, tokens_of(name), context, tokens_of(name)))
    wanted = (rng.getrandbits(len(needs)) if rng.random() < 0.5 else (1 << len(needs)) - 1) or 1
    others = [f"e{n}" for n in range(num_encodings) if f"e{n}" not in names]
    later = rng.sample(others, min(len(others), rng.choice([0, 0, 3])))
    return CallView(
        f"wf-{number % 3}/s{number}", f"wf-{number % 3}", 0, tuple(needs), wanted, rng.choice([0, 5, 50]),
        rng.choice([10, 100]), 100, tuple((name, tokens_of(name)) for name in later), rng.random() < 0.5,
    )  # fmt: skip


def full_search(router: Router, call: CallView, shares: Mapping[str, float] | None = None) -> tuple[str, dict]:
    """The best worker of all, looking at each by itself, and the view of each."""
    ledger, view = router.ledger, router._comparison._holdings._view
    views = {}
    for account in ledger.accounts.values():
        if ledger.is_open(account):
            views[account.worker_id] = _look(ledger, view, call, account, shares or {})
    return min(views, key=lambda worker_id: (router.policy.key(views[worker_id], call), worker_id)), views


def shares_of(router: Router, call: CallView, now_s: float) -> dict[str, float]:
    """What part of a copy's time counts for the call, of each need."""
    replication = router._comparison._replication
    if replication is None:
        return {}
    paces = [account.pace for account in router.ledger.accounts.values()]
    token_ms = min(min(pace.encode_ns, pace.peer_ns) for pace in paces) / 1e6
    return {
        need.encoding_id: replication.share(need.encoding_id, need.num_tokens * token_ms, now_s)
        for need in call.needs
        if need.num_tokens >= MIN_TOKENS
    }


def sources_of(router: Router, call: CallView, choice: Choice) -> list[tuple[str, str, float]]:
    """From where the chosen worker is to fetch what, and how long each takes: from memory sooner than from disk, then
    from whoever sends the fewest."""
    found, ledger, view = [], router.ledger, router._comparison._holdings._view
    sends = {account.worker_id: account.num_fetching for account in ledger.accounts.values()}
    for at in bits(choice.estimate.fetched):
        encoding_id, tokens, _, _ = call.needs[at]
        tiers = {each: _ready_tier(view, encoding_id, tokens, each) for each in sends if each != choice.worker_id}
        tier, busy, source = min((tiers[each] == Tier.DISK, sends[each], each) for each in tiers if tiers[each] < 3)
        sends[source] += 1
        pace = choice.account.pace
        found.append((encoding_id, source, tokens * (pace.peer_disk_ns if tier else pace.peer_ns) * (1 + busy) / 1e9))
    return found


def _tier(ledger: Ledger, view: PlainView, encoding_id: str, tokens: int, account: Account) -> int:
    """3: nowhere."""
    coming = ledger.coming.get(encoding_id)
    if coming is not None and account.number in coming.counts:
        return Tier.DEVICE
    best = 3
    for tier, state, held in view.holders(encoding_id).get(account.worker_id, ()):
        if held >= tokens and state is READY:
            best = min(best, tier)
        elif held >= tokens and state is LOADING and tier is Tier.DEVICE:
            best = min(best, Tier.HOST)
    return best


def _ready_tier(view: PlainView, encoding_id: str, tokens: int, worker_id: str) -> int:
    found = [
        tier for tier, state, held in view.holders(encoding_id).get(worker_id, ()) if held >= tokens and state is READY
    ]
    loading = any(
        tier is Tier.DEVICE and state is LOADING and held >= tokens
        for tier, state, held in view.holders(encoding_id).get(worker_id, ())
    )
    return 3 if not found else min(*found, Tier.HOST if loading else 3)


def _look(ledger: Ledger, view: PlainView, call: CallView, account: Account, shares: Mapping[str, float]) -> WorkerView:
    pace = account.pace
    tiers = [_tier(ledger, view, need.encoding_id, need.num_tokens, account) for need in call.needs]
    # Every open worker holds it on the device: then nobody asks for peers.
    sums = dict.fromkeys(("load", "fetch", "encode", "saved_bring", "saved_encode"), 0)
    tokens = dict.fromkeys(("host", "disk", "peer", "encode"), 0)
    needed = {at for at in range(len(call.needs)) if call.wanted >> at & 1}
    for at in reversed(range(len(call.needs))):
        if at not in needed or tiers[at] == Tier.DEVICE:
            continue
        need = call.needs[at]
        peers = [
            (0 if best < Tier.DISK else 1, other.num_fetching)
            for other in ledger.accounts.values()
            if (best := _ready_tier(view, need.encoding_id, need.num_tokens, other.worker_id)) < 3
        ]
        ways = {}
        if tiers[at] == Tier.HOST:
            ways["host"] = pace.host_ns
        elif tiers[at] == Tier.DISK:
            ways["disk"] = pace.disk_ns
        if peers and tiers[at] != Tier.HOST:
            from_disk, busy = min(peers)
            ways.setdefault("peer", (pace.peer_disk_ns if from_disk else pace.peer_ns) * (1 + busy))
        behind = {
            below
            for below in range(at)
            if need.context >> below & 1 and below not in needed and tiers[below] != Tier.DEVICE
        }
        again = (need.num_tokens + sum(call.needs[below].num_tokens for below in behind)) * pace.encode_ns
        way = min(ways, key=ways.__getitem__, default="encode")
        if way == "encode" or ways[way] * need.num_tokens > again:
            way, spent = "encode", need.num_tokens * pace.encode_ns
            needed |= behind
        else:
            spent = ways[way] * need.num_tokens
        tokens[way] += need.num_tokens
        part = {"host": "load", "disk": "load", "peer": "fetch", "encode": "encode"}[way]
        sums[part] += spent
        if part != "load":
            saved = int(spent * (1.0 - shares.get(need.encoding_id, 1.0)))
            sums["saved_encode" if part == "encode" else "saved_bring"] += saved
    own = call.own_tokens * pace.encode_ns
    bring = sums["load"] + sums["fetch"]
    brought = bring + account.link_ns if bring else 0
    elsewhere = sum(size for name, size in call.successors if _tier(ledger, view, name, size, account) == 3) + sum(
        made for number, made in ledger.being_made(call.family).items() if number != account.number
    )
    ttft = account.queue_ms + (max(brought, sums["encode"]) + own + 500_000) // 1_000_000
    again = sums["encode"] - sums["saved_encode"]
    cheaper = max(brought - sums["saved_bring"], again)
    num_open = sum(ledger.is_open(each) for each in ledger.accounts.values())
    others = again * min(num_open, sum(each.num_calls for each in ledger.accounts.values())) // num_open
    later = elsewhere * min(pace.encode_ns, pace.peer_ns) if call.foreseen else 0
    ids = sorted(ledger.accounts)
    return WorkerView(
        account.worker_id,
        ttft,
        account.queue_ms + (cheaper + others + own + later + 500_000) // 1_000_000,
        elsewhere,
        account.num_calls,
        account.queue_ms,
        (ids.index(account.worker_id) - ledger.turns()) % len(ids),
        account.load.num_free_pages,
        sums["load"],
        sums["fetch"],
        sums["encode"] + own,
        tokens["host"],
        tokens["disk"],
        tokens["peer"],
        tokens["encode"] + call.own_tokens,
    )


def run_calls(rng: random.Random, router: Router, calls: Sequence[CallView]) -> list[Sent]:
    """Send these where the router says; some get their first token, some end."""
    sent: list[Sent] = []
    for call in calls:
        choice = router.choose(call)
        if choice is None:
            continue
        sent.append(router.send(call, choice))
        if rng.random() < 0.5:
            router.ledger.started(rng.choice(sent))
        if rng.random() < 0.4:
            router.ledger.ended(sent.pop(rng.randrange(len(sent))))
    return sent
