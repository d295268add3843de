"""What a copy between two pools consists of: pieces that lie in one run on both sides, as rows of an array."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laban.actors.engine.runs import Runs, length_of

Pieces = NDArray[np.int64]  # [num_pieces, 3]: first slot on the device, first slot on the host, number of tokens


@dataclass(frozen=True, slots=True)
class Part:
    """Some tokens of some layers, copied at once. `gate` is the layer group that is complete with it, if one is."""

    pieces: Pieces
    layers: range
    num_bytes: int
    gate: int | None = None


def pieces_of(device_runs: Runs, host_runs: Runs) -> Pieces:
    """The fewest pieces. Raises ValueError if the runs do not cover the same number of tokens."""
    if length_of(device_runs) != length_of(host_runs):
        raise ValueError(f"{length_of(device_runs)} tokens on the device, {length_of(host_runs)} on the host")
    pieces: list[tuple[int, int, int]] = []
    device, host = iter(device_runs), iter(host_runs)
    device_left = host_left = 0
    device_slot = host_slot = 0
    while True:  # runs are mostly few, so this beats operations on arrays
        while device_left == 0:
            if (run := next(device, None)) is None:
                return np.array(pieces, np.int64).reshape(-1, 3)
            device_slot, device_left = run
        while host_left == 0:
            host_slot, host_left = next(host)
        length = min(device_left, host_left)
        pieces.append((device_slot, host_slot, length))
        device_slot, device_left = device_slot + length, device_left - length
        host_slot, host_left = host_slot + length, host_left - length


def cut(pieces: Pieces, max_tokens: int) -> Pieces:
    """The same, in pieces of at most `max_tokens`."""
    counts = -(-pieces[:, 2] // max_tokens)
    cut_pieces = np.repeat(pieces, counts, axis=0)
    before = max_tokens * (np.arange(len(cut_pieces)) - np.repeat(counts.cumsum() - counts, counts))
    cut_pieces[:, :2] += before[:, None]
    cut_pieces[:, 2] = np.minimum(cut_pieces[:, 2] - before, max_tokens)
    return cut_pieces


def check_runs(runs: Runs, num_slots: int, side: str) -> None:
    """Raises ValueError for what is outside of a pool: on a card it would be written over something else."""
    for first, length in runs:
        if length < 0 or first < 0 or first + length > num_slots:
            raise ValueError(f"slots {first}..{first + length - 1} are not in the {side}'s pool of {num_slots}")


def parts_of(
    pieces: Pieces, groups: list[tuple[range, int | None]], layer_bytes: int, max_bytes: int | None
) -> Iterator[Part]:
    """A copy's parts in order: group by group of layers, each in parts of at most about `max_bytes`.

    `groups` are (layers, gate); `layer_bytes` are a token's in one layer, keys and values.
    """
    num_tokens = int(pieces[:, 2].sum())
    for layers, gate in groups:
        token_bytes = layer_bytes * len(layers)
        step = num_tokens if max_bytes is None or not token_bytes else max(1, max_bytes // token_bytes)
        if step >= num_tokens:
            yield Part(pieces, layers, num_tokens * token_bytes, gate)
            continue
        for begin in range(0, num_tokens, step):
            end = min(begin + step, num_tokens)
            yield Part(
                _between(pieces, begin, end), layers, (end - begin) * token_bytes, gate if end == num_tokens else None
            )


def _between(pieces: Pieces, begin: int, end: int) -> Pieces:
    """Tokens [begin, end) of what `pieces` stand for."""
    ends = pieces[:, 2].cumsum()
    first, last = np.searchsorted(ends, [begin, end - 1], side="right")
    low = np.maximum(begin - (ends - pieces[:, 2]), 0)[first : last + 1]
    high = np.minimum(end - (ends - pieces[:, 2]), pieces[:, 2])[first : last + 1]
    part = pieces[first : last + 1].copy()
    part[:, :2] += low[:, None]
    part[:, 2] = high - low
    return part
