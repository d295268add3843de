"""What is wrong with a workflow, and where: a list of diagnostics, each with its field path, line and column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from laban.actors.errors import InvalidInput, shorten

MAX_PROBLEMS = 100  # of one kind: past that, what is wrong is the file

Severity = Literal["error", "warning", "info"]
Code = Literal["invalid", "not_built"]
Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. `line` and `column` count from 1; both are None where there is no file (the dict form).

    `code` is "not_built" for what the schema reserves and this version does not serve.
    """

    severity: Severity
    path: str
    line: int | None
    column: int | None
    message: str
    value: object = None
    expected: str = ""
    code: Code = "invalid"
    source: str = ""

    def __str__(self) -> str:
        place = self.source or ""
        if self.line is not None:
            place += f":{self.line}:{self.column}"
        where = f"{self.path}: " if self.path else ""
        got = "" if self.value is None else f" (got {shorten(self.value)})"
        return f"{place}{': ' if place else ''}{self.severity}: {where}{self.message}{got}{hint(self.expected)}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding before it has a line: `loc` is the path of keys and indexes into the workflow.

    One that is not `in_file` is about what the caller of a run added; `loc` is then a path into that.
    """

    loc: Loc
    message: str
    value: object = None
    expected: str = ""
    severity: Severity = "error"
    code: Code = "invalid"
    in_file: bool = True


@dataclass(frozen=True, slots=True)
class Marks:
    """Where each value and key of a file stands: path -> (line, column), counted from 1. Empty for the dict form.

    All marks are equal: where a workflow was written is no part of what it is.
    """

    source: str = field(default="", compare=False)
    values: tuple[tuple[Loc, tuple[int, int]], ...] = field(default=(), compare=False)
    keys: tuple[tuple[Loc, tuple[int, int]], ...] = field(default=(), compare=False)

    def locate(self, problems: Iterable[Problem]) -> list[Diagnostic]:
        """Each problem at its value's place, or at its nearest enclosing value's; in the order of the file."""
        values, keys = dict(self.values), dict(self.keys)
        found = [self._locate(problem, values, keys) for problem in problems]
        return sorted(found, key=lambda d: (d.line or 0, d.column or 0))

    def _locate(
        self, problem: Problem, values: dict[Loc, tuple[int, int]], keys: dict[Loc, tuple[int, int]]
    ) -> Diagnostic:
        loc = problem.loc
        place: tuple[int, int] | None = None
        if loc and loc[-1] == "[key]":
            loc = loc[:-1]
            place = keys.get(loc)
        for size in range(len(loc), -1, -1) if problem.in_file else ():
            if place is not None:
                break
            place = values.get(loc[:size])
        line, column = place if place is not None else (None, None)
        return Diagnostic(
            problem.severity,
            path_text(loc),
            line,
            column,
            problem.message,
            problem.value,
            problem.expected,
            problem.code,
            self.source if problem.in_file else "",
        )


class WorkflowErrors(InvalidInput):
    """A workflow, its inputs or its overrides cannot be run; `diagnostics` has at least one error.

    Its status is UNIMPLEMENTED if every error is about something reserved, INVALID_ARGUMENT otherwise.
    """

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        errors = [d for d in self.diagnostics if d.severity == "error"]
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(first.message + hint(first.expected) + more, field=first.path, value=first.value)
        if all(d.code == "not_built" for d in errors):
            self.status = "UNIMPLEMENTED"

    def __str__(self) -> str:
        return "\n".join(str(d) for d in self.diagnostics)

    def __reduce__(self) -> tuple[object, ...]:
        return (WorkflowErrors, (self.diagnostics,))


def hint(expected: str) -> str:
    """What was expected, as the end of a sentence."""
    if not expected:
        return ""
    return f"; {expected}" if expected.startswith("did you mean") else f"; expected {expected}"


def path_text(loc: Loc) -> str:
    """
    >>> path_text(("steps", 0, "read", 2))
    'steps[0].read[2]'
    """
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def suggest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'answer'?` with the nearest known name, the known names if they are few, else nothing."""
    names = sorted(set(known))
    near = get_close_matches(name[:100], names[:500], n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"one of {', '.join(names)}" if 0 < len(names) <= 12 else ""
