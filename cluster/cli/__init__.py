"""The command line `laban`. Exit codes: 0 well, 1 a workflow or the system failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from types import FrameType

from laban.actors.errors import LabanError, shorten
from laban.cluster.cli.arguments import parse
from laban.cluster.cli.flags import as_flag, flag_of

BAD_INPUT = ("INVALID_ARGUMENT", "OUT_OF_RANGE", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNIMPLEMENTED")
INTERRUPTED = 130
MAX_VALUE = 120  # characters of one that an error names


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Says what went wrong in a line, never with a traceback."""
    try:
        arguments = parse(argv)
    except KeyboardInterrupt:
        return _interrupted()
    # Ending by a signal cleans up as Ctrl-C does: a cluster of our own must not outlive us.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except LabanError as error:
        for line in _lines_of(error, arguments):
            print(line, file=sys.stderr)
        if getattr(arguments, "json", False):
            print(json.dumps({"error": _object_of(error, arguments)}, ensure_ascii=False, default=str))
        return 2 if error.status in BAD_INPUT else 1
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "laban"):
            return _unexpected(error)
        print(f"laban: this command needs {missing}: pip install 'laban[server]'", file=sys.stderr)
        return 1
    except Exception as error:
        return _unexpected(error)


def _lines_of(error: LabanError, arguments: Namespace) -> Iterator[str]:
    """A bad workflow may have several mistakes: each is quoted."""
    from laban.cluster.cli.quote import quoted
    from laban.cluster.workflow.diagnostics import WorkflowErrors

    if isinstance(error, WorkflowErrors):
        for diagnostic in error.diagnostics:
            first, *rest = quoted(as_flag(diagnostic), getattr(arguments, "file", None) or "")
            yield from (f"laban: {first}", *rest)
    else:
        shown = LabanError(error.message, field=_flag(error.field, arguments), value=error.value)
        yield from (f"laban: {line}" for line in str(shown).splitlines())


def _object_of(error: LabanError, arguments: Namespace) -> dict[str, object]:
    """What `--json` prints in the place of a result."""
    from laban.cluster.workflow.diagnostics import WorkflowErrors

    diagnostics = error.diagnostics if isinstance(error, WorkflowErrors) else ()
    return {
        "status": error.status, "field": _flag(error.field, arguments), "message": error.message,
        "value": _plain(error.value),
        "diagnostics": [asdict(as_flag(diagnostic)) for diagnostic in diagnostics],
    }  # fmt: skip


def _plain(value: object) -> object:
    """A short text, number or truth value as it is, all else as it is shown."""
    short = isinstance(value, str) and len(value) <= MAX_VALUE
    return value if short or value is None or isinstance(value, bool | int | float) else shorten(value)


def _flag(path: str, arguments: Namespace) -> str:
    return flag_of(path) if hasattr(arguments, "inputs") else path


def _unexpected(error: Exception) -> int:
    if os.environ.get("LABAN_DEBUG"):
        traceback.print_exception(error)
    else:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"laban: a bug in Laban: {what} (LABAN_DEBUG=1 shows where)", file=sys.stderr)
    return 1


def _interrupted() -> int:
    print("laban: interrupted", file=sys.stderr)
    return INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
