"""What runs in the simulator: flows of steps, each a call that reads messages and writes one. All drawn beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Join = Literal["all", "any", "settled"]
"""When a step may begin: when all before it have finished; when one has; when each has finished or will not run."""


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """`needs` is what its own view places: to be on the device when it is encoded again. Fixed: written before runs;
    `given`: fixed, and one run's alone."""

    name: str
    num_tokens: int
    fixed: bool = False
    given: bool = False
    needs: tuple[Message, ...] = ()

    @property
    def is_own(self) -> bool:
        """No other run is expected to read it."""
        return self.given or not self.fixed


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """`kind` is what its duration is learned under. `likelihood` is declared, `runs` is what comes true."""

    kind: str
    reads: tuple[Message, ...]
    new_tokens: int  # its header, encoded by the call itself
    output_tokens: int
    output: Message
    after: tuple[int, ...] = ()  # earlier steps of the flow
    join: Join = "all"
    wait_s: float = 0.0  # for a tool, or a person, before it
    likelihood: float = 1.0
    runs: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """`declared`: its steps are known beforehand to whoever serves it."""

    name: str
    steps: tuple[Step, ...]
    arrive_s: float = 0.0
    declared: bool = True


@dataclass(frozen=True, slots=True)
class Workload:
    """`live` flows at once, the next one when one ends; None: each at its time."""

    name: str
    flows: Sequence[Flow]
    live: int | None = None
    ramp_s: float = 0.0  # until so many live
