"""Regular expressions of RE2: their time is linear in the text, so a pattern from anybody may run on any text."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> Any:
    """Raises re2.error."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)
