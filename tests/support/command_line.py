"""Run `laban` in processes of its own, and find what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

STARTING_S = 300
ENDING_S = 60
MARK = "E2E_RUN"  # an environment variable that every process a command starts inherits


@dataclass
class Cli:
    """Runs `laban` in a process of its own. `mark` finds what it left behind."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def start(self, *arguments: str, output: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("LABAN_")}
        return subprocess.Popen(
            [sys.executable, "-m", "laban.cluster.cli", *arguments],
            stdout=output,
            stderr=output,
            text=True,
            cwd=self.folder,
            env={**plain, MARK: self.mark},
            # A shell's background jobs ignore interrupts, and so would what the tests start there.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def __call__(self, *arguments: str, timeout_s: float = STARTING_S) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        try:
            out, error = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
            pytest.fail(f"laban {' '.join(arguments)} took more than {timeout_s} s\n{out}\n{error}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def leftovers(self, within_s: float = 20.0) -> list[str]:
        """Command lines of processes that still run `within_s` after their command has ended."""
        deadline = time.monotonic() + within_s
        while (found := _marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return list(found.values())

    def running(self) -> dict[int, str]:
        """The processes of its commands: command line by id."""
        return _marked(self.mark)

    def processes(self, title: str) -> list[int]:
        """Ids of the processes of its commands whose command line begins with `title`."""
        return [number for number, line in self.running().items() if line.startswith(title)]


def _marked(mark: str) -> dict[int, str]:
    """Process id to command line."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if line:  # a zombie has none
                    found[int(process.name)] = line
        except OSError:
            continue  # it has ended meanwhile, or is another user's
    return found


QUESTION = """\
version: 1
name: question
inputs:
  question: {default: Name three colours of the rainbow.}
messages:
  question: "{{ question }}"
steps:
  - step: answer
    read: [question]
    sampling: {max_tokens: 16}
"""
LONG = QUESTION.replace("max_tokens: 16", "max_tokens: 2000, forced_text: '" + "word " * 1500 + "'")
KEYS = {
    "workflow_id", "name", "state", "held", "error", "outputs", "wall_ms", "ttft_ms_sum", "steps", "notes",
}  # fmt: skip
STEP_KEYS = {
    "address", "agent", "state", "attempt", "finish_reason", "fidelity", "text", "values", "token_ids", "tokens_read",
    "tokens_reused", "tokens_loaded", "tokens_encoded", "tokens_generated", "ttft_ms", "wall_ms", "worker", "model",
    "adapter", "tokens_drafted", "tokens_accepted", "tool", "args", "error", "logprobs", "earlier_attempts",
}  # fmt: skip


def document(out: str) -> dict[str, Any]:
    """The one JSON document on stdout, which has exactly the keys promised."""
    parsed: dict[str, Any] = json.loads(out)
    assert set(parsed) == KEYS
    assert all(set(step) == STEP_KEYS for step in parsed["steps"])
    return parsed


def write(cli: Cli, text: str, name: str = "flow.yaml") -> str:
    (cli.folder / name).write_text(text)
    return name
