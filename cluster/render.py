"""What the command line shows: a live step graph in a terminal, plain lines elsewhere, tables at the end.

Progress goes to stderr, results to stdout. Texts come from models: they are never read as markup.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from laban.cluster.cli.follow import Followed, FollowedStep, chosen_lines, in_their_places, shown_fidelity, sums
from laban.cluster.usage import Usage

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.status import Status

    from laban.cluster.records import Event, StepResult, TokenChunk, WorkflowRecord

COLUMNS = ("step", "state", "fidelity", "attempts", "read", "reused", "encoded", "generated", "TTFT", "time")
MARKS = {
    "waiting": "·",
    "ready": "○",
    "running": "▶",
    "succeeded": "✓",
    "failed": "✗",
    "cancelled": "–",
    "skipped": "–",
}
STYLES = {"waiting": "dim", "ready": "yellow", "running": "cyan", "succeeded": "green", "failed": "bold red",
          "cancelled": "dim", "skipped": "dim"}  # fmt: skip
SHOWN_CUT = 12  # texts that ended at max_tokens
PLAIN_WIDTH = 170  # of tables that no terminal limits


class Screen(Protocol):
    """Where a run is shown while it goes on."""

    def phase(self, doing: str, share: float | None) -> None: ...
    def update(self, followed: Followed, item: Event | TokenChunk) -> None: ...
    def note(self, line: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PlainScreen:
    """One line for each phase and each step that starts or ends. `write` takes a line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last = ""

    def phase(self, doing: str, share: float | None) -> None:
        if doing != self._last:
            self._last = doing
            self._write(f"{doing} ...")

    def update(self, followed: Followed, item: Event | TokenChunk) -> None:
        address, state = getattr(item, "address", ""), getattr(item, "step_state", None)
        result: StepResult | None = getattr(item, "result", None)
        if result is not None and _was_begun(result):
            self._write(f"{result.address}: {ended_line(result)}")
        elif state == "running":
            again = f", attempt {item.attempt}" if getattr(item, "attempt", 1) > 1 else ""
            doing, worker = getattr(item, "tool", "") or "running", getattr(item, "worker", "")
            self._write(f"{address}: {doing}{f' on {worker}' if worker else ''}{again}")

    def note(self, line: str) -> None:
        self._write(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LiveScreen:
    """A table of the steps that redraws itself: states, tokens as they come, what was reused."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._live: Live | None = None
        self._followed = Followed()
        self._began = time.monotonic()

    def phase(self, doing: str, share: float | None) -> None:
        from rich.markup import escape

        passed = time.monotonic() - self._began
        done = f" {share:.0%}" if share is not None and share < 1 else ""
        text = f"{escape(doing)}{done} [dim]{passed:.0f} s[/dim]"
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def update(self, followed: Followed, item: Event | TokenChunk) -> None:
        from rich.live import Live

        self._followed = followed
        if self._live is None:
            self._end_status()
            self._began = time.monotonic()
            # Redrawn four times a second by rich's own thread: tokens may come faster.
            self._live = Live(get_renderable=self._picture, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def note(self, line: str) -> None:
        """Stays above what is redrawn."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_status()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _end_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        steps = list(self._followed.steps.values())
        room = max(3, self._console.height - 3)
        for step in visible(steps, room):
            style = STYLES.get(step.state, "")
            table.add_row(Text(MARKS.get(step.state, "?"), style), Text(step.address, style), Text(live_line(step)))
        counts = ", ".join(f"{number} {state}" for state, number in sorted(self._followed.counts().items()))
        foot = Text(f"{time.monotonic() - self._began:.0f} s · {_steps(len(steps))}: {counts}", "dim")
        return Group(table, foot)


def screen_for() -> Screen:
    """The screen that fits stderr."""
    if sys.stderr.isatty():
        from rich.console import Console

        return LiveScreen(Console(stderr=True))
    return PlainScreen(lambda line: print(line, file=sys.stderr, flush=True))


def visible(steps: Sequence[FollowedStep], room: int) -> list[FollowedStep]:
    """At most `room` steps, in their order: those running first of all, then those that ended last."""
    if len(steps) <= room:
        return list(steps)
    rank = {"running": 0, "failed": 1, "ready": 2, "succeeded": 3}
    order = sorted(range(len(steps)), key=lambda n: (rank.get(steps[n].state, 4), -n if steps[n].result else n))
    return [steps[n] for n in sorted(order[:room])]


def live_line(step: FollowedStep) -> str:
    """What stands beside a step while the workflow runs."""
    if step.result is not None:
        return ended_line(step.result)
    if step.tool and step.state in ("ready", "running"):
        return f"waits for {step.tool}" if step.state == "ready" else f"{step.tool} on {step.worker}"
    if step.state == "running":
        tail = " ".join(step.text[-160:].split())
        at = f"encoding on {step.worker}" if step.worker else "runs its workflow"
        return f"{step.num_tokens} tokens  {tail}" if step.num_tokens else at
    return step.state


def _steps(number: int) -> str:
    return f"{number} step{'' if number == 1 else 's'}"


def _was_begun(result: StepResult) -> bool:
    """Whether an instance ever ran: the rounds that a loop did not need, and what a failed run left, did not."""
    return result.attempt > 0 or result.state not in ("skipped", "cancelled")


def _calls_nothing(result: StepResult) -> bool:
    """Whether its text comes from outside, or from a workflow: nothing is read or generated for it."""
    return bool(result.tool) or result.finish_reason in ("external", "workflow")


def ended_line(result: StepResult) -> str:
    if result.state != "succeeded":
        return f"{result.state}: {result.error.message}" if result.error else result.state
    if result.finish_reason == "external":
        return f"answered by {result.worker}" if result.worker else "answered from outside"
    if result.finish_reason == "workflow":
        return f"its workflow ended after {shown_ms(result.wall_ms)}"
    share = f" ({result.tokens_reused / result.tokens_read:.0%})" if result.tokens_read else ""
    again = f", attempt {result.attempt}" if result.attempt > 1 else ""
    loaded = f", {result.tokens_loaded} of them loaded" if result.tokens_loaded else ""
    return (
        f"{result.tokens_generated} tokens in {shown_ms(result.wall_ms)}, "
        f"reused {result.tokens_reused} of {result.tokens_read} read{share}{loaded}{again}"
    )


def print_results(record: WorkflowRecord) -> None:
    """The table of the steps with its sums, then the outputs, on stdout. Tokens are those of all attempts; how many
    there were, and what those before the last came to, is shown where there were several."""
    from rich.table import Table
    from rich.text import Text

    console = _stdout()
    table = Table(title=Text(f"{record.name}: {record.state}"), title_justify="left")
    begun = [step for step in in_their_places(record.steps) if _was_begun(step)]
    again = [step for step in begun if step.attempt > 1]
    columns = [column for column in COLUMNS if again or column != "attempts"]
    for column in columns:
        table.add_column(column, justify="left" if column in COLUMNS[:3] else "right", no_wrap=column == "step")

    def add(*cells: object, style: str | None = None) -> None:
        shown = (str(cell) for column, cell in zip(COLUMNS, cells, strict=True) if column in columns)
        table.add_row(*map(Text, shown), style=style)

    for step in begun:
        total = step.total
        loaded = f" ({total.tokens_loaded} loaded)" if total.tokens_loaded else ""
        reused = f"{total.tokens_reused}{loaded}"
        numbers: tuple[object, ...] = (total.tokens_read, reused, total.tokens_encoded, total.tokens_generated)
        fidelity = shown_fidelity(step.fidelity, step.address, record.notes)
        ttft = shown_ms(step.ttft_ms) if step.ttft_ms else ""  # it is known of what succeeded
        wall = shown_ms(step.wall_ms) if step.attempt else ""
        if _calls_nothing(step):
            fidelity, numbers, ttft = "", ("",) * len(numbers), ""
        style = STYLES.get(step.state) if step.state != "succeeded" else None
        add(step.address, step.state, fidelity, step.attempt, *numbers, ttft, wall, style=style)
    *tokens, ttft_ms, wall_ms = sums(record.steps)
    table.add_section()
    attempts = sum(step.attempt for step in begun)
    add("sum", _steps(len(begun)), "", attempts, *tokens, shown_ms(ttft_ms), shown_ms(wall_ms), style="bold")
    if again:
        lost, attempts = Usage.sum(*(step.earlier_attempts for step in again)), sum(step.attempt - 1 for step in again)
        counts = (lost.tokens_read, lost.tokens_reused, lost.tokens_encoded, lost.tokens_generated)
        add("earlier attempts", _steps(len(again)), "", attempts, *counts, "", shown_ms(lost.wall_ms))
    # Steps run side by side: what the whole took is no sum.
    add("start to end", *[""] * (len(COLUMNS) - 2), shown_ms(record.wall_ms), style="bold")
    console.print(table)
    cut = [step.address for step in begun if step.finish_reason == "length"]
    if cut:
        rest = f" and {len(cut) - SHOWN_CUT} more" if len(cut) > SHOWN_CUT else ""
        console.print(Text(f"cut at max_tokens: {', '.join(cut[:SHOWN_CUT])}{rest}", "dim"))
    for line in chosen_lines(record.notes):
        console.print(Text(f"fidelity of {line}", "dim"))
    num_left = len(record.steps) - len(begun)
    if num_left:
        console.print(Text(f"{num_left} more {'was' if num_left == 1 else 'were'} not run", "dim"))
    for name, text in record.outputs:
        console.print(Text(f"\n{name}", "bold"))
        console.print(Text(text.strip("\n")), soft_wrap=True)


def print_workflows(records: Iterable[WorkflowRecord]) -> None:
    rows = [
        (
            record.workflow_id,
            record.name,
            f"{record.state}, held" if record.held else record.state,
            shown_clock(record.created_at),
            "" if record.finished_at is None else shown_ms(record.wall_ms),
        )
        for record in records
    ]
    print_table(("workflow", "name", "state", "submitted", "time"), rows)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """A table; on a terminal too narrow for its words, such as ids, the rows one below the other: nothing is cut."""
    from rich.table import Table
    from rich.text import Text

    rows, console = list(rows), _stdout()
    if _narrowest(columns, rows) > console.width:
        print(f"{title}\n" * bool(title) + "\n".join(_below_each_other(columns, rows)))
        return
    table = Table(*columns, title=Text(title) if title else None, title_justify="left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _narrowest(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Of tables that break no word: each column has three characters of frame, the table one more."""
    longest = (max(map(len, " ".join(cells).split()), default=0) for cells in zip(columns, *rows, strict=True))
    return sum(width + 3 for width in longest) + 1


def _below_each_other(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    width = max(map(len, columns))
    for row in rows:
        named = zip(columns, row, strict=True)
        yield from (f"{column:{width}}  {cell}" for column, cell in named if cell)
        yield ""


def _stdout() -> Console:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


def shown_ms(milliseconds: float) -> str:
    """
    >>> shown_ms(85.4), shown_ms(12345)
    ('85 ms', '12.3 s')
    """
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def shown_clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
