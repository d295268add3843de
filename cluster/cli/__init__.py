"""The command line `laban`. Exit codes: 0 well, 1 a workflow or the system failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

from laban.actors.errors import LabanError
from laban.cluster.cli.arguments import parse

BAD_INPUT = ("INVALID_ARGUMENT", "OUT_OF_RANGE", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNIMPLEMENTED")
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Says what went wrong in a line, never with a traceback."""
    arguments = parse(argv)
    # Ending by a signal cleans up as Ctrl-C does: a cluster of our own must not outlive us.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("laban: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except LabanError as error:
        for line in _lines_of(error, getattr(arguments, "file", None) or ""):
            print(line, file=sys.stderr)
        return 2 if error.status in BAD_INPUT else 1
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "laban"):
            return _unexpected(error)
        print(f"laban: this command needs {missing}: pip install 'laban[server]'", file=sys.stderr)
        return 1
    except Exception as error:
        return _unexpected(error)


def _lines_of(error: LabanError, file: str) -> Iterator[str]:
    """A bad workflow may have several mistakes: each is quoted."""
    from laban.cluster.cli.quote import quoted
    from laban.cluster.workflow.diagnostics import WorkflowErrors

    if isinstance(error, WorkflowErrors):
        for diagnostic in error.diagnostics:
            first, *rest = quoted(diagnostic, file)
            yield from (f"laban: {first}", *rest)
    else:
        yield from (f"laban: {line}" for line in str(error).splitlines())


def _unexpected(error: Exception) -> int:
    if os.environ.get("LABAN_DEBUG"):
        traceback.print_exception(error)
    else:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"laban: a bug in Laban: {what} (LABAN_DEBUG=1 shows where)", file=sys.stderr)
    return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
