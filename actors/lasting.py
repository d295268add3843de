"""What goes on in the background goes on: a mistake in it is logged, traceback and all, and ends nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

PAUSE_S = 1.0


@contextmanager
def going_on(what: str) -> Iterator[None]:
    """Whatever is raised inside, but to cancel, is logged as `what` having failed; what is behind it goes on.

    >>> with going_on("counting"):
    ...     raise ValueError("none are there")
    >>> "here all the same"
    'here all the same'
    """
    try:
        yield
    except Exception:
        logger.exception("%s failed", what)


async def lasting(what: str, work: Callable[[], Awaitable[None]], pause_s: float = PAUSE_S) -> None:
    """A loop as a task of its own: begun again after a pause whenever it raises, until it ends by itself or is
    cancelled."""
    while True:
        with going_on(what):
            await work()
            return
        await asyncio.sleep(pause_s)
