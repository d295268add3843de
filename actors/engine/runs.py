"""Runs of slots or rows: (first, length) of stretches that lie in one piece, in order."""

from __future__ import annotations

import torch
from torch import Tensor

from laban.kernels.view_attention import Index

Runs = list[tuple[int, int]]


def merge_adjacent(runs: Runs) -> Runs:
    merged: Runs = []
    for first, length in runs:
        if merged and sum(merged[-1]) == first:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((first, length))
    return merged


def between(runs: Runs, begin: int, end: int) -> Runs:
    """Numbers [begin, end) of those that `runs` stands for."""
    cut: Runs = []
    at = 0
    for first, length in runs:
        if at >= end:
            break
        low, high = max(begin - at, 0), min(end - at, length)
        if low < high:
            cut.append((first + low, high - low))
        at += length
    return cut


def length_of(runs: Runs) -> int:
    return sum(length for _, length in runs)


def as_index(runs: Runs) -> Index:
    """`runs` as one slice if they follow one another, else as a tensor."""
    at = runs[0][0]
    for first, length in runs:
        if first != at:
            return as_tensor(runs)
        at += length
    return slice(runs[0][0], at)


def as_tensor(runs: Runs) -> Tensor:
    """[length_of(runs)] int64"""
    return torch.cat([torch.arange(first, first + length) for first, length in runs])
