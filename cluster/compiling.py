"""Loops over arrays, compiled where numba is there; else as right, a hundred times slower.

What is compiled is kept beside the file or where NUMBA_CACHE_DIR says, until the file changes: so all that a compiled
function knows stands in its file. Importing this takes numba half a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

numba: Any
try:
    import numba
except ImportError:  # not installed, or not for this machine
    numba = None

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """The function, compiled when it is first called with arguments of some types."""
    return _compiled(function)


def inlined(function: Function) -> Function:
    """The same, put in wherever a compiled function calls it: for what is called often and handed much."""
    return _compiled(function, inline="always")


def _compiled(function: Function, **options: str) -> Function:
    if numba is None:
        return function
    compiled: Function
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is nowhere to keep it
        compiled = numba.njit(**options)(function)
    return compiled
