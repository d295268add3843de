"""The files that a workflow names, collected on the side of whoever submits it. Needs no YAML parser."""

from __future__ import annotations

import re
from pathlib import Path

from laban.cluster.workflow.includes import ENDINGS, path_from

# Names more than is meant (in a text, say): what is not there is left out, and the server says what it misses.
_NAMED = re.compile(rb"""\bworkflow["']?\s*:\s*["']?([^\s"',}\]#]+(?:\.yaml|\.yml))""")
MAX_FILES = 100


def files_named_in(text: bytes, path: Path) -> dict[str, bytes]:
    """The files that a workflow's text names, and those that these name, by their paths as seen from `path`."""
    found: dict[str, bytes] = {}
    waiting = [("", text)]
    while waiting and len(found) < MAX_FILES:
        including, document = waiting.pop()
        for match in _NAMED.finditer(document):
            name = path_from(including, match.group(1).decode("utf-8", "replace"))
            file = path.parent / name
            if name not in found and name.endswith(ENDINGS) and file.is_file():
                found[name] = file.read_bytes()
                waiting.append((name, found[name]))
    return found
