"""Simulations one after the other, and the rows that each gives."""

from __future__ import annotations

from dataclasses import replace

from report import Report, Row
from sim_costs import GB, Costs
from sim_flows import Workload
from sim_foresight import Future, Reads
from sim_progress import Progress
from sim_world import Outcome, Setup, Simulation

FARTHEST = "belady"


class Bench:
    """What has been simulated is in `report`."""

    def __init__(self, report: Report, progress: Progress) -> None:
        self.report = report
        self._progress = progress
        self._reads: tuple[tuple[Workload, Costs, Setup], Reads] | None = None  # of the last one by `lru`

    def simulate(self, workload: Workload, costs: Costs, setup: Setup) -> Outcome:
        """`belady` knows when everything was read under `lru`: the truth where `setup.fixed`, near it elsewhere.

        Raises MemoryError as `Simulation.run` does, ValueError for policies that do not exist.
        """
        future = None
        if setup.eviction == FARTHEST:
            future = Future(self._reads_of(workload, costs, replace(setup, eviction="lru", wrong=0.0)))
        return self._run(workload, costs, setup, future)

    def _reads_of(self, workload: Workload, costs: Costs, setup: Setup) -> Reads:
        key = (workload, costs, setup)
        if self._reads is None or self._reads[0] != key:
            self._run(workload, costs, setup, None)
        assert self._reads is not None
        return self._reads[1]

    def _run(self, workload: Workload, costs: Costs, setup: Setup, future: Future | None) -> Outcome:
        self._progress.begin(f"{workload.name}: {_called(setup)}")
        outcome = Simulation(workload, costs, setup, future=future).run(self._progress.show)
        if setup.eviction == "lru" and not setup.wrong:
            self._reads = (workload, costs, setup), outcome.reads
        return outcome

    def add(self, name: str, outcome: Outcome) -> None:
        """What there is to say of any simulation."""
        counts = outcome.counts
        moved = counts["bytes_loaded"] + counts["bytes_fetched"] + counts["bytes_saved"]
        again = counts["tokens_encoded_again"] + counts["tokens_encoded_first"]
        self.report.rows += [
            Row(f"{name}.stall", outcome.stall_s, "s", better="lower"),
            Row(f"{name}.hit_rate", 100 * outcome.hit_rate, "%"),
            Row(f"{name}.ttft_p50", 1000 * outcome.ttft_s(0.5), "ms", better="lower"),
            Row(f"{name}.ttft_p99", 1000 * outcome.ttft_s(0.99), "ms", better="lower"),
            Row(f"{name}.moved", moved / GB, "GB", better="lower"),
            Row(f"{name}.encoded", again, "tokens", better="lower"),
        ]


def _called(setup: Setup) -> str:
    parts = [setup.eviction] if setup.routing is None else [setup.eviction, setup.routing]
    if setup.num_workers > 1:
        parts.append(f"{setup.num_workers} workers")
    if setup.wrong:
        parts.append(f"{setup.wrong:.0%} wrong")
    return ", ".join(parts)
