"""Orders that wait for a worker with room: by rank, then as they came."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from laban.cluster.slots import Ticket


class WaitingOrders:
    """By key, each once."""

    def __init__(self) -> None:
        self._tickets: dict[str, Ticket] = {}
        self._heap: list[tuple[int, int, str]] = []  # rank, number and key of those, and of some that left

    def __len__(self) -> int:
        return len(self._tickets)

    def oldest_at(self) -> float | None:
        """When the oldest was ordered, in monotonic seconds. Looks at all of them."""
        return min((ticket.ordered_at for ticket in self._tickets.values()), default=None)

    def add(self, ticket: Ticket) -> None:
        self._tickets[ticket.order.key] = ticket
        heappush(self._heap, _place(ticket))
        if len(self._heap) > 2 * len(self._tickets) + 64:  # most of it has left
            self._heap = [_place(each) for each in self._tickets.values()]
            heapify(self._heap)

    def discard(self, key: str) -> None:
        self._tickets.pop(key, None)

    def first(self) -> Ticket | None:
        """The one whose turn it is; it stays."""
        while self._heap:
            ticket = self._tickets.get(self._heap[0][2])
            if ticket is not None and _place(ticket) == self._heap[0]:
                return ticket
            heappop(self._heap)
        return None

    def take_all(self) -> list[Ticket]:
        """In order."""
        taken = sorted(self._tickets.values(), key=_place)
        self._tickets, self._heap = {}, []
        return taken


def _place(ticket: Ticket) -> tuple[int, int, str]:
    return ticket.order.rank, ticket.number, ticket.order.key
