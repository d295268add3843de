"""What is wrong with a workflow, each mistake with the line that it stands in and a mark under it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from laban.cluster.workflow.diagnostics import Diagnostic

WIDTH = 110  # characters shown of a line


def quoted(diagnostic: Diagnostic, beside: str = "") -> Iterator[str]:
    """The diagnostic; then, if its file is here or in the folder of the file `beside`, its line with a caret."""
    yield str(diagnostic)
    text = None if diagnostic.line is None else _line(diagnostic, Path(beside).parent)
    if text is None or diagnostic.line is None or diagnostic.column is None:
        return
    start = max(0, diagnostic.column - 1 - WIDTH * 2 // 3)
    shown = text[start : start + WIDTH].rstrip()
    before = text[start : diagnostic.column - 1]
    # Tabs stay tabs, so that the caret stands below its character.
    indent = "".join("\t" if char == "\t" else " " for char in before)
    yield f"{diagnostic.line:>6} | {shown}"
    yield f"       | {indent}^"


def _line(diagnostic: Diagnostic, folder: Path) -> str | None:
    """The line in the file; None if there is no such file, or it has changed meanwhile."""
    for path in (Path(diagnostic.source), folder / diagnostic.source):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
        number = diagnostic.line or 0
        return lines[number - 1] if 0 < number <= len(lines) else None
    return None
