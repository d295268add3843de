"""What copies cost a decode that runs beside them, and what is left of their rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from gpu_links_pools import DIRECTIONS, LAYOUTS, Links
from report import Row

from laban.actors.engine.card_copies import Path as Way
from laban.actors.engine.copier import Copier, Copy, Direction
from laban.actors.engine.runs import Runs

PROGRAMS = (4, 8, 16, 32)
TOKENS = 1024
WEIGHTS, HIDDEN, INNER, BATCH = 136, 4096, 14_336, 16  # 16 GB in bfloat16, as much as an 8B model's
IN_FLIGHT, REPLAYS = 3, 20


class Decode:
    """Products of few rows with 16 GB of weights, captured: as long as a decode of an 8B model, and as hungry."""

    def __init__(self, links: Links) -> None:
        self.device = links.device
        num, hidden, inner = (2, 64, 96) if links.size.tiny else (WEIGHTS, HIDDEN, INNER)
        dtype = links.k.dtype
        self._up, self._down = (
            [torch.randn(rows, columns, dtype=dtype, device=self.device) for _ in range(num // 2)]
            for rows, columns in ((hidden, inner), (inner, hidden))
        )
        self._x = torch.randn(BATCH, hidden, dtype=dtype, device=self.device)
        self._run()
        self.replay = self._run
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._run()
            self.replay = graph.replay

    def _run(self) -> None:
        for up, down in zip(self._up, self._down, strict=True):
            torch.mm(torch.mm(self._x, up), down)

    def beside(self, start: Callable[[], Copy] | None) -> tuple[float, float]:
        """(ms of one, GB/s of the copies that `start` begins, some of them always under way)."""
        under_way: list[Copy] = []
        num_bytes = 0
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            ended = end.query
            if start is not None:
                under_way = [start() for _ in range(IN_FLIGHT)]
            begin.record()
            for _ in range(REPLAYS):
                self.replay()
            end.record()
        else:
            ended = iter([False, False, True]).__next__
        began = time.perf_counter()
        while not ended():
            if self.device.type != "cuda":
                self.replay()
            if start is not None:
                over = [copy for copy in under_way if copy.done()]
                num_bytes += sum(copy.num_bytes for copy in over)
                under_way = [copy for copy in under_way if copy not in over]
                under_way += [start() for _ in range(IN_FLIGHT - len(under_way))]
        seconds = time.perf_counter() - began
        for copy in under_way:
            copy.wait()
        ms = begin.elapsed_time(end) / REPLAYS if self.device.type == "cuda" else 1000 * seconds / 2
        return ms, num_bytes / seconds / 1e9


def measure_beside(links: Links) -> list[Row]:
    """The decode alone, and beside copies that never stop: its time, and their rate."""
    decode = Decode(links)
    tokens = links.size.tokens(TOKENS)
    alone_ms = median(decode.beside(None)[0] for _ in range(2 + links.reps))
    rows = [Row("decode.alone", alone_ms, "ms", better="lower")]

    def measure(name: str, start: Callable[[], Copy]) -> None:
        found = [decode.beside(start) for _ in range(1 + links.reps)][1:]
        slower = 100 * (median(ms for ms, _ in found) / alone_ms - 1)
        rows.append(Row(f"decode.beside.{name}.slower", slower, "%", better="lower"))
        rows.append(Row(f"decode.beside.{name}.copies", median(rate for _, rate in found), "GB/s"))

    for layout in LAYOUTS:
        for way in links.ways:
            for direction in DIRECTIONS:
                runs = links.runs(direction, tokens, layout)
                measure(f"{direction}.{layout}.{way}", _starter(links.copier, direction, runs, way))
    for programs in PROGRAMS if "kernel" in links.ways else ():
        copier = Copier(links.k, links.v, links.host, num_programs=programs)
        for direction in DIRECTIONS:
            runs = links.runs(direction, tokens, "scattered")
            measure(f"{direction}.programs_{programs}", _starter(copier, direction, runs, "kernel"))
        copier.close()
    return rows


def _starter(copier: Copier, direction: Direction, runs: tuple[Runs, Runs], way: Way) -> Callable[[], Copy]:
    return lambda: copier.start(direction, *runs, path=way)
