"""Connections that bring no request: uvicorn would keep each one that never sends a whole head, for ever."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 30.0
"""For the head of a request, from when the connection is made or its first bytes have come. Between requests a
connection is kept as long as uvicorn is told; a body has its own time (`exchange.BODY_TIMEOUT_S`)."""


class Connection(H11Protocol):
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._due = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)

    def handle_events(self) -> None:
        super().handle_events()
        is_half_there = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not is_half_there:
            self._forget()
        elif self._due is None:
            self._due = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
