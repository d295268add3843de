"""Runs within a run: those that steps with `workflow` start, seen from the run around them.

An instance or message of the run behind step `research[2]` is called `research[2]/draft` outside. What that run was
given to read it calls `../KEY`, KEY being the name outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from laban.cluster.workflow.sampling import SamplingSpec, instance_seed
from laban.cluster.workflow.states import InstanceState, InstanceStatus, MessageText, ReadyStep

if TYPE_CHECKING:
    from laban.cluster.workflow.run import Run

OUTSIDE = "../"


@dataclass(frozen=True, slots=True)
class Given:
    """A message that a run is given in the place of one of its own: its name outside, and its text."""

    key: str
    text: str


@dataclass(slots=True)
class Room:
    """How many more instances a run and those within it may have."""

    num_left: int

    def take(self, number: int) -> bool:
        self.num_left -= number
        return self.num_left >= 0


@dataclass(frozen=True, slots=True)
class Began:
    """The step `address` has started its run: these instances and fixed messages are new."""

    address: str
    instances: tuple[InstanceStatus, ...]
    messages: tuple[MessageText, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The run of the step `address` has ended. `message`: what it made, unless that is a message already there."""

    address: str
    state: InstanceState
    text: str
    reason: str
    message: MessageText | None = None


News = Began | Ended


def outer_key(address: str, key: str) -> str:
    """
    >>> outer_key("research[2]", "draft"), outer_key("research[2]", "../doc[2]")
    ('research[2]/draft', 'doc[2]')
    """
    return key.removeprefix(OUTSIDE) if key.startswith(OUTSIDE) else f"{address}/{key}"


def outermost_key(path: str, key: str) -> str:
    """The same through several runs, `path` being the outermost one's way to where `key` is a name.

    >>> outermost_key("research[2]/sub/", "draft"), outermost_key("research[2]/sub/", "../../doc")
    ('research[2]/sub/draft', 'doc')
    """
    for address in reversed(path.split("/")[:-1]):
        key = outer_key(address, key)
    return key


class Children:
    """The runs that steps have started, by the steps' addresses, and what there is to say of them outside."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._active: dict[str, Run] = {}
        self._touched: dict[str, None] = {}  # those that may have steps ready
        self._aliases: dict[str, str] = {}  # a step -> the message that its run ended with
        self._news: list[News] = []
        self._given_up: list[str] = []

    def start(self, address: str, run: Run) -> None:
        self._runs[address] = self._active[address] = run
        self._touched[address] = None
        self._news.append(Began(address, tuple(_statuses(address, run)), tuple(_messages(address, run))))

    def run(self, address: str) -> Run | None:
        """The run of a step, over or not."""
        return self._runs.get(address)

    def active(self) -> list[tuple[str, Run]]:
        return list(self._active.items())

    def touch(self, address: str) -> None:
        """Something happened to the run of a step."""
        self._touched[address] = None
        self._forward(address)

    def ready(self) -> Iterator[ReadyStep]:
        """The steps that became ready in any of the runs since the last call."""
        touched, self._touched = self._touched, {}
        for address in touched:
            run = self._active.get(address)
            for step in run.ready() if run is not None else ():
                reads = tuple(replace(read, key=outer_key(address, read.key)) for read in step.reads)
                sampling = _sampling_outside(address, step, run)
                yield replace(step, address=f"{address}/{step.address}", reads=reads, sampling=sampling)
            self._forward(address)

    def named(self, key: str) -> str:
        """What a message is read as: its own name, or that of the message that it is the same as."""
        return self._aliases.get(key, key)

    def finish(self, address: str, text: str, keys: Sequence[str], role: str) -> None:
        """The run of a step has ended well, with `text`, which is that of its messages `keys`."""
        message = None
        if len(keys) == 1:
            self._aliases[address] = outer_key(address, keys[0])
        else:
            message = MessageText(address, role, None, text, private=False)
        self._leave(address, Ended(address, "succeeded", text, "", message))

    def fail(self, address: str, reason: str, message: MessageText | None) -> None:
        """The run of a step has failed, or could not begin; `message` says so to readers."""
        text = "" if message is None else message.text
        self._leave(address, Ended(address, "failed", text, reason, message))

    def stop_all_but(self, is_wanted: Callable[[str], bool]) -> None:
        """Cancel the runs of steps that are not wanted any more."""
        for address in [address for address in self._active if not is_wanted(address)]:
            run = self._active.pop(address)
            run.cancel()
            self._collect(address, run)

    def take_news(self) -> list[News]:
        news, self._news = self._news, []
        return news

    def statuses(self) -> Iterator[InstanceStatus]:
        for address, run in self._runs.items():
            yield from _statuses(address, run)

    def skipped(self) -> Iterator[str]:
        for address, run in self._runs.items():
            yield from (f"{address}/{inner}" for inner in run.skipped())

    def _leave(self, address: str, ended: Ended) -> None:
        self._forward(address)
        run = self._active.pop(address, None)
        if run is not None:
            run.cancel()
            self._collect(address, run)
        self._news.append(ended)

    def take_given_up(self) -> list[str]:
        given_up, self._given_up = self._given_up, []
        return given_up

    def _collect(self, address: str, run: Run) -> None:
        self._given_up += [f"{address}/{inner}" for inner in run.take_given_up()]

    def _forward(self, address: str) -> None:
        """What began and ended further inside, in this run's names."""
        run = self._active.get(address)
        if run is None:
            return
        self._collect(address, run)
        for news in run.take_news():
            inner = f"{address}/{news.address}"
            if isinstance(news, Began):
                statuses = tuple(replace(status, address=f"{address}/{status.address}") for status in news.instances)
                messages = tuple(replace(m, key=outer_key(address, m.key)) for m in news.messages)
                self._news.append(Began(inner, statuses, messages))
            else:
                message = news.message
                message = None if message is None else replace(message, key=outer_key(address, message.key))
                self._news.append(replace(news, address=inner, message=message))


def _statuses(address: str, run: Run) -> Iterator[InstanceStatus]:
    return (replace(status, address=f"{address}/{status.address}") for status in run.instances)


def _sampling_outside(address: str, step: ReadyStep, run: Run | None) -> SamplingSpec:
    """A seed that the workflow within states holds, but members of a fan-out draw different noise from it."""
    seed = step.sampling.seed
    if seed is not None:
        return replace(step.sampling, seed=instance_seed(seed, address))
    if run is not None and run.seed is not None:
        return replace(step.sampling, seed=instance_seed(run.seed, f"{address}/{step.address}"))
    return step.sampling


def _messages(address: str, run: Run) -> Iterator[MessageText]:
    return (replace(message, key=f"{address}/{key}") for key, message in run.messages.items())
