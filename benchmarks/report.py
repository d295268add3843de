"""The one document that every benchmark makes: rows of numbers, some with a target, and where they were measured."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "build" / "benchmarks"  # of quick and partial runs

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Row:
    """One number. `met` is None without a target."""

    name: str
    value: float
    unit: str
    target: float | None = None
    better: Better = "higher"

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


@dataclass(slots=True)
class Report:
    """What one benchmark measured so far. `save_partial` after each measurement keeps it through an interruption."""

    benchmark: str
    folder: Path = RESULTS
    rows: list[Row] = field(default_factory=list)
    commit: str = field(default_factory=lambda: git_commit())
    machine: str = field(default_factory=lambda: machine())
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))

    def document(self) -> dict[str, object]:
        rows = [{**asdict(row), "value": round(row.value, 6), "met": row.met} for row in self.rows]
        return {
            "benchmark": self.benchmark,
            "commit": self.commit,
            "machine": self.machine,
            "date": self.date,
            "rows": rows,
        }

    @property
    def path(self) -> Path:
        return self.folder / f"{self.date[:10]}-{self.benchmark}.json"

    @property
    def partial_path(self) -> Path:
        return self.path.with_suffix(".partial.json")

    def save_partial(self) -> None:
        self._write(self.partial_path)

    def save(self) -> Path:
        self._write(self.path)
        self.partial_path.unlink(missing_ok=True)
        return self.path

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.document(), indent=1) + "\n")
        scratch.replace(path)

    def value(self, name: str) -> float | None:
        return next((row.value for row in self.rows if row.name == name), None)

    def table(self) -> str:
        """Plain text: every row, those with a target last."""
        rows = sorted(self.rows, key=lambda row: row.target is not None)
        lines = [f"{self.benchmark}, commit {self.commit}, {self.date}", self.machine, ""]
        width = max((len(row.name) for row in rows), default=0)
        for row in rows:
            line = f"{row.name:<{width}}  {_shown(row.value):>10} {row.unit:<9}"
            if row.target is not None:
                sign = ">=" if row.better == "higher" else "<="
                line += f"  target {sign} {_shown(row.target):<6} {'met' if row.met else 'MISSED'}"
            lines.append(line.rstrip())
        return "\n".join(lines)


class Clock:
    """Progress on stderr, each line with the time since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        elapsed = int(time.monotonic() - self._began)
        print(f"[{elapsed // 60:2d}:{elapsed % 60:02d}] {text}", file=sys.stderr, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every benchmark understands."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; no numbers to trust")
    parser.add_argument("--out", type=Path, help="folder for the result (default: benchmarks/results)")
    parser.add_argument("--seed", type=int, default=1, help="of the texts")


def new_report(benchmark: str, args: argparse.Namespace, *, part: bool = False) -> Report:
    """Quick runs, and those of a part of the benchmark, do not go among the results."""
    return Report(benchmark, args.out or (SCRATCH if args.quick or part else RESULTS))


def finish(report: Report, args: argparse.Namespace, clock: Clock) -> None:
    """Store the report and print it."""
    clock.say(f"stored in {report.save()}")
    print(json.dumps(report.document()) if args.json else report.table())


def git_commit() -> str:
    """The short hash, with + if there are changes; "unknown" outside of a checkout."""
    try:
        run = [
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run[0] + ("+" if run[1] else "")


def cores() -> list[int]:
    """The numbers of those that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def num_cores() -> int:
    return len(cores())


def machine() -> str:
    """Processor, cores and memory."""
    name = _first_field("/proc/cpuinfo", "model name") or "unknown processor"
    memory = (_first_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]
    return f"{num_cores()} cores of {name}, {int(memory) / 2**20:.0f} GiB"


def _first_field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
