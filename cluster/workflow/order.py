"""Order and cycles of a graph of waits: unit -> the units it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def topological(waits: Mapping[str, Sequence[str]]) -> list[str]:
    """Units, each after all it waits for, otherwise as given. Units on or behind a cycle are left out."""
    pending = {unit: len(needs) for unit, needs in waits.items()}
    users: dict[str, list[str]] = {unit: [] for unit in waits}
    for unit, needs in waits.items():
        for need in needs:
            users[need].append(unit)
    order = [unit for unit, count in pending.items() if count == 0]
    for unit in order:  # grows as it goes
        for user in users[unit]:
            pending[user] -= 1
            if pending[user] == 0:
                order.append(user)
    return order


def find_cycle(waits: Mapping[str, Sequence[str]], order: Sequence[str]) -> list[str]:
    """One cycle among the units that `order` leaves out: each waits for the next, the last for the first."""
    left = set(waits) - set(order)
    unit = next(u for u in waits if u in left)
    path: dict[str, int] = {}
    while unit not in path:
        path[unit] = len(path)
        unit = next(need for need in waits[unit] if need in left)
    return list(path)[path[unit] :]
