"""Shell commands as tools: what a command is given, and what is made of how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from dataclasses import dataclass

from laban.actors.errors import InvalidInput
from laban.cluster.records import Lease
from laban.cluster.tool_calls import ToolError

SHOWN_CHARS = 2000  # of what a command that failed wrote
MAX_VARIABLE = 32_768  # bytes; longer args are on stdin alone
LOOK_EVERY_S = 0.1
TERM_S = 2.0


@dataclass(frozen=True, slots=True)
class ShellTool:
    """Runs `command` by /bin/sh, the step's args as JSON on stdin and as variables LABAN_ARG_*.

    What it writes to stdout is the text. It is ended, with all that it started, once the lease is lost.
    """

    command: str

    def __call__(self, *, lease: Lease, lost: threading.Event, **args: object) -> str:
        given = json.dumps(dict(lease.args), ensure_ascii=False, separators=(",", ":"))
        process = subprocess.Popen(
            ["/bin/sh", "-c", self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **variables(lease)},
            start_new_session=True,  # a process group of its own, to be ended together
        )
        ended = False
        unsent: bytes | None = given.encode("utf-8", "replace")
        try:
            while not lost.is_set():
                try:
                    out, error = process.communicate(unsent, LOOK_EVERY_S)
                except subprocess.TimeoutExpired:
                    unsent = None  # the next call goes on with what is left of it
                    continue
                ended = True
                return text_of(process.returncode, out, error)
            raise ToolError("the lease was lost")
        finally:
            if not ended:
                _end(process)


def parse_tools(given: list[str]) -> dict[str, ShellTool]:
    """`NAME=COMMAND`, each name once."""
    tools: dict[str, ShellTool] = {}
    for item in given:
        name, found, command = item.partition("=")
        if not found or not name or not command.strip():
            raise InvalidInput("expected NAME=COMMAND, such as tests='pytest -q'", field="--tool", value=item)
        if name in tools:
            raise InvalidInput("is given twice", field=f"--tool {name}", value=command)
        tools[name] = ShellTool(command)
    return tools


def variables(lease: Lease) -> dict[str, str]:
    """The environment beside our own: LABAN_WORKFLOW_ID, LABAN_STEP (its address), LABAN_ATTEMPT, and the args that are
    no lists or mappings. LABAN_ADDRESS stays what it is: the server that `laban` asks, also in a command."""
    found = {
        "LABAN_WORKFLOW_ID": lease.workflow_id,
        "LABAN_STEP": lease.address,
        "LABAN_ATTEMPT": str(lease.attempt),
    }
    for name, value in lease.args.items():
        if isinstance(value, dict | list):
            continue
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
        key = "".join(char if char.isascii() and char.isalnum() else "_" for char in name).upper()
        if "\0" not in text and len(text.encode("utf-8", "replace")) <= MAX_VARIABLE:
            found[f"LABAN_ARG_{key}"] = text.encode("utf-8", "replace").decode()
    return found


def text_of(code: int, out: bytes, error: bytes) -> str:
    """Raises ToolError for a command that failed."""
    if code != 0:
        how = f"exit status {code}" if code > 0 else f"ended by signal {-code}"
        said = (error.strip() or out.strip()).decode("utf-8", "replace")[-SHOWN_CHARS:]
        raise ToolError(f"{how}: {said}" if said else how)
    try:
        return out.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as problem:
        raise ToolError(f"its output is not UTF-8 ({problem.reason} at byte {problem.start})") from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """The command and whatever it started: asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERM_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
