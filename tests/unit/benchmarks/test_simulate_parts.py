"""What the simulator keeps to: budgets, every flow's end, the same again by the same seed, what serving stores do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from benchmark_modules import benchmark_modules

from laban.kvstore.encodings import EMPTY_VIEW, make_spec
from laban.kvstore.eviction import load_policy
from laban.kvstore.needs import Needs
from laban.kvstore.store import EncodingStore
from laban.kvstore.uses import Use

PAGE = 16
GB = 1e9


class Parts:
    """The modules, by their names."""

    costs: Any
    directory: Any
    flows: Any
    foresight: Any
    sections: Any
    store: Any
    workloads: Any
    world: Any


@pytest.fixture(scope="module")
def sim() -> Iterator[type[Parts]]:
    names = list(Parts.__annotations__)
    with benchmark_modules(*(f"sim_{name}" for name in names)) as modules:
        for name, module in zip(names, modules, strict=True):
            setattr(Parts, name, module)
        yield Parts


def checking(sim: type[Parts]) -> type:
    """A simulation that looks after every call that all that its workers hold is in order."""

    class Checking(sim.world.Simulation):  # type: ignore[misc]
        def finished(self, call: Any, now_s: float) -> None:
            super().finished(call, now_s)
            for worker in self._workers.values():
                running = [each for each in worker.outstanding.values() if each.pinned]
                made = sum(self._costs.num_bytes(each.step.output.num_tokens) for each in running)
                worker.store.check_integrity(made)

    return Checking


def faulty(sim: type[Parts], eviction: str = "cost", seed: int = 1) -> Any:
    deaths, joins = sim.sections.disturbances(3, every_s=4.0, until_s=40.0, num_joining=2, seed=seed)
    post = sim.directory.Post(lost=0.2, late=0.2, repeated=0.2)
    return sim.world.Setup(
        eviction,
        "cost",
        num_workers=3,
        num_shards=2,
        post=post,
        deaths=deaths,
        joins=joins,
        wrong=0.3,
        sample=8,
        seed=seed,
    )


@pytest.mark.parametrize("eviction", ["lru", "steps", "cost"])
def test_budgets_hold_and_every_flow_ends_whatever_fails(sim: type[Parts], eviction: str) -> None:
    workload = sim.workloads.fleet(random.Random(2), 40, 20, num_prompts=40)
    costs = sim.costs.Costs(device_bytes=4 * GB, host_bytes=3 * GB, disk_bytes=4 * GB)
    outcome = checking(sim)(workload, costs, faulty(sim, eviction)).run()
    assert outcome.flows == 40
    assert outcome.calls == sum(len(flow.steps) for flow in (workload.flows[n] for n in range(40)))
    assert outcome.counts["calls_lost"] > 0
    assert outcome.counts["num_evicted"] > 0
    assert all(stall_s >= 0 for stall_s in outcome.stalls_s)


def test_graphs_run_to_their_end_within_budgets(sim: type[Parts]) -> None:
    """Branches, loops and races: the steps that do not come true do not run."""
    workload = sim.workloads.graphs(random.Random(3), 0.2)
    costs = sim.costs.Costs(device_bytes=15 * GB, host_bytes=5 * GB)
    outcome = checking(sim)(workload, costs, sim.world.Setup("cost")).run()
    assert outcome.flows == len(workload.flows)
    assert 0 < outcome.calls <= sum(step.runs for flow in workload.flows for step in flow.steps)


def test_the_same_seed_gives_the_same_and_another_something_else(sim: type[Parts]) -> None:
    costs = sim.costs.Costs(device_bytes=3 * GB, host_bytes=2 * GB)

    def numbers(seed: int) -> tuple[Any, ...]:
        workload = sim.workloads.fleet(random.Random(1), 20, 10, num_prompts=30)
        outcome = sim.world.Simulation(workload, costs, faulty(sim, seed=seed)).run()
        counts = {name: value for name, value in outcome.counts.items() if not name.endswith("_cpu_s")}
        return outcome.stalls_s, outcome.ttfts_s, outcome.makespan_s, counts

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


def equal_sizes(sim: type[Parts], seed: int) -> Any:
    """Single calls that each read one of thirty messages, some of which are read more often."""
    rng, flows = random.Random(seed), []
    messages = [sim.flows.Message(f"m{number}", 1000, fixed=True) for number in range(30)]
    for number in range(400):
        read = messages[min(int(rng.expovariate(0.1)), 29)]
        step = sim.flows.Step("x", (read,), 1, 1, sim.flows.Message(f"o{number}", 1, needs=(read,)))
        flows.append(sim.flows.Flow(f"f{number}", (step,), arrive_s=float(number)))
    return sim.flows.Workload("equal", tuple(flows))


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_better_than_knowing_the_future(sim: type[Parts], seed: int) -> None:
    workload = equal_sizes(sim, seed)
    costs = replace(sim.costs.Costs(), device_bytes=10.1 * sim.costs.Costs().num_bytes(1000))
    setup = sim.world.Setup("lru", fixed=True)
    first = sim.world.Simulation(workload, costs, setup).run()
    stalls_s = {"lru": first.stall_s}
    for name in ("steps", "cost", "belady"):
        future = sim.foresight.Future(first.reads) if name == "belady" else None
        stalls_s[name] = (
            sim.world.Simulation(workload, costs, replace(setup, eviction=name), future=future).run().stall_s
        )
    assert stalls_s["belady"] == min(stalls_s.values())
    assert stalls_s["belady"] < stalls_s["lru"]


class Told:
    """An oracle that has been told things."""

    def __init__(self, foresight: ModuleType, names: list[str]) -> None:
        self.all = {name: foresight.Told() for name in names}

    def exists(self, message: Any) -> bool:
        return True

    def told_of(self, name: str) -> Any:
        return self.all[name]

    def true_use_of(self, name: str) -> float | None:
        return None

    def placed(self, *what: object) -> None:
        pass


@pytest.mark.parametrize("policy", ["lru", "steps", "cost"])
@pytest.mark.parametrize("seed", range(3))
def test_a_simulated_store_evicts_what_one_that_serves_does(sim: type[Parts], policy: str, seed: int) -> None:
    rng = random.Random(seed)
    made = [make_spec("n", (number,) * PAGE * rng.choice((1, 2, 5, 9)), 0, EMPTY_VIEW, {}) for number in range(25)]
    specs = {spec.encoding_id: spec for spec in made}
    costs = replace(sim.costs.Costs(), device_bytes=40 * PAGE * sim.costs.Costs().bytes_per_token)
    needs = Needs(load_policy(policy), costs.bytes_per_token)
    serving = EncodingStore(40, PAGE, order=needs.order(lambda entry: costs.encode_s(entry.num_tokens)))
    told = Told(sim.foresight, list(specs))
    simulated = sim.store.Store("w", told, costs, load_policy(policy), rng)
    messages = {name: sim.flows.Message(name, spec.num_tokens, fixed=True) for name, spec in specs.items()}
    num_evicted = 0
    for number in range(400):
        now_s = needs.now_s = serving.now_s = 1.0 + number
        name = rng.choice(list(specs))
        if number > 100 and rng.random() < 0.4:
            use: Use | None = Use(rng.randrange(5), rng.uniform(0, 60), rng.random(), rng.random() < 0.7)
            if told.all[name].use is not None and rng.random() < 0.5:
                use = None
            needs.take_uses([(name, use)])
            told.all[name].hear(None if use is None else replace(use, in_s=now_s + use.in_s), now_s)
            continue
        held = serving.get_ready(name)
        if held is not None:
            serving.pin(held)
        else:
            held = serving.publish(serving.reserve(name, specs[name].num_tokens), name, specs[name].num_tokens)
        serving.unpin(held)
        entry = simulated.entry(messages[name])
        simulated.pin(entry)
        if entry.device == sim.store.ABSENT:
            assert simulated.make_room(entry.num_bytes, now_s)
            simulated.take_room(entry.num_bytes)
            simulated.arrived(entry, now_s)
        simulated.unpin(entry, now_s)
        there = {each.message.name for each in simulated.entries.values() if each.device == sim.store.READY}
        assert there == {held_id for held_id, _ in serving.ready_ids()}, number
        simulated.check_integrity()
        num_evicted = simulated.counters.num_evicted
    assert num_evicted > 50
