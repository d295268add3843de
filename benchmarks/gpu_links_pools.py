"""Pools on a card and its host, and messages to move between them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from gpu_model import Size
from torch import Tensor

from laban.actors.engine.card_copies import Path as Way
from laban.actors.engine.copier import Copier, Copy, Direction
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.runs import Runs, merge_adjacent

PAGE = 16
TOKENS = (128, 256, 512, 1024, 8192)
WAYS: tuple[Way, ...] = ("auto", "dma", "slices", "kernel")
DIRECTIONS: tuple[Direction, ...] = ("load", "save")
LAYOUTS = ("contiguous", "scattered")


@dataclass
class Links:
    """Pools of either side with room for twice the largest message: loads use the one half, saves the other."""

    size: Size
    device: torch.device
    reps: int
    seed: int
    k: Tensor
    v: Tensor
    host: HostPool
    copier: Copier

    @staticmethod
    def open(size: Size, device: torch.device, reps: int, seed: int) -> Links:
        on_card = device.type == "cuda"
        layers, kv_heads, dim = (2, 2, 8) if size.tiny else (32, 8, 128)
        dtype = torch.bfloat16 if on_card else torch.float32
        num_pages = 2 * -(-max(size.tokens(tokens) for tokens in TOKENS) // PAGE)
        k, v = (torch.zeros(layers, num_pages * PAGE, kv_heads, dim, dtype=dtype, device=device) for _ in range(2))
        host = HostPool(num_pages, PAGE, layers, kv_heads, dim, dtype, pinned=on_card)
        return Links(size, device, reps, seed, k, v, host, Copier(k, v, host))

    @property
    def ways(self) -> tuple[Way, ...]:
        return WAYS if self.device.type == "cuda" else ("auto",)

    def runs(self, direction: Direction, tokens: int, layout: str) -> tuple[Runs, Runs]:
        """(device's, host's) of a message, in that direction's half."""
        half = self.host.num_slots // 2
        first = 0 if direction == "load" else half
        if layout == "contiguous":
            return [(first, tokens)], [(first, tokens)]
        draw = random.Random(self.seed)
        sides = []
        for _ in range(2):
            pages = draw.sample(range(half // PAGE), -(-tokens // PAGE))
            runs = [(first + page * PAGE, min(PAGE, tokens - PAGE * at)) for at, page in enumerate(pages)]
            sides.append(merge_adjacent(runs))
        return sides[0], sides[1]

    def start(self, direction: Direction, tokens: int, layout: str, way: Way = "auto") -> Copy:
        return self.copier.start(direction, *self.runs(direction, tokens, layout), path=way)

    def cases(self) -> Iterator[tuple[str, int, Way]]:
        for layout in LAYOUTS:
            for tokens in TOKENS:
                for way in self.ways:
                    yield layout, tokens, way

    def close(self) -> None:
        self.copier.close()
        self.host.close()
