"""Regular expressions of RE2: their time is linear in the text, so a pattern from anybody may run on any text."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2


@lru_cache(maxsize=256)  # each may take some megabytes
def compile_pattern(pattern: str) -> Any:
    """Raises re2.error."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def pattern_problem(pattern: str) -> str:
    """Why it is no regular expression of RE2's, "" if it is one."""
    try:
        compile_pattern(pattern)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        return reason.decode(errors="replace") if isinstance(reason, bytes) else str(error)
    return ""
