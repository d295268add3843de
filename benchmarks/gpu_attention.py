"""One attention layer over reordered messages, by our kernel and by copying, and the plan that it runs from.

A layer is timed as the engine launches it: queries and keys rotated and written, queries turned, attention, merge. Its
launches go through several layers' pools, so that no cache of the card holds what they read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from gpu_cases import CASES, COMPARED, PAGE, Case, Heads, batch_of
from gpu_model import Size
from gpu_timing import looped_us, replayed_us
from report import Row
from torch import Tensor

from laban.actors.engine.fused_runner import SIZES
from laban.actors.engine.layers import LayerKind
from laban.actors.engine.plan_buffers import PlanBuffers, TileChoice
from laban.kernels.flash_backends import FlashBackend, cumulated
from laban.kernels.fused_ops import rotate_and_write, rotate_and_write_reference, turn_table, turn_table_reference
from laban.kernels.rotary import turn, turn_tables
from laban.kernels.view_plan import PlanShape
from laban.kernels.view_reference import attend_views_reference
from laban.kernels.view_tiles import Scratch, pick_tile

COLD_BYTES, MOST_LAYERS = 256 << 20, 16  # between two uses of the same keys: five times the card's cache
H100_PROCESSORS = 132
NEVER = 1 << 30  # tokens in common
PLANS, ADVANCES = 50, 10


def tile_choice(heads: Heads, dtype: torch.dtype, num_processors: int, *, ungrouped: bool = False) -> TileChoice:
    """As the engine's runner has it."""
    shapes = []
    for num_rows in (1, 64):
        tile = pick_tile(num_rows, heads.dim, dtype)
        rows, programs = tile.block_m // (heads.num // heads.num_kv), num_processors * tile.programs_per_sm
        shape = PlanShape(rows, tile.block_n, heads.num_kv, programs, PAGE, max_tokens=SIZES[-1])
        shapes.append(replace(shape, min_shared_tokens=NEVER) if ungrouped else shape)
    return TileChoice(*shapes)


def _num_cold(num_bytes: int, device: torch.device) -> int:
    """Of how many layers of so many bytes each is out of the card's cache when its turn comes again."""
    return min(MOST_LAYERS, -(-COLD_BYTES // num_bytes)) if device.type == "cuda" else 1


class Layer:
    """A batch's attention in any of several layers, on random queries, keys and values."""

    def __init__(self, case: Case, heads: Heads, device: torch.device, seed: int, *, fused: bool) -> None:
        """`fused` launches the kernels, else their references compute."""
        self.case, self.heads, self.device, self.fused = case, heads, device, fused
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        torch.manual_seed(seed)
        self.batch = batch_of(case, np.random.default_rng(seed))
        self.inv_freq = 1 / 500_000 ** (torch.arange(0, heads.dim, 2, device=device).float() / heads.dim)
        on_card = device.type == "cuda"
        processors = torch.cuda.get_device_properties(device).multi_processor_count if on_card else 2
        choice = tile_choice(heads, dtype, processors, ungrouped=case.ungrouped)
        self.plans = PlanBuffers(LayerKind(self.inv_freq, 1.0, None), choice, device)
        self.plans.make(self.batch)
        self.plans.send()
        self.plans.fill_tables()
        num_slots = PAGE * len(self.batch.pages)
        bytes_a_layer = 2 * num_slots * heads.num_kv * heads.dim * dtype.itemsize
        self.num_layers = _num_cold(bytes_a_layer, device)
        shape = (self.num_layers, num_slots, heads.num_kv, heads.dim)
        self.k_pool, self.v_pool = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
        n = case.num_calls
        self.q = torch.randn(n, heads.num, heads.dim, device=device, dtype=dtype)
        self.k, self.v = (torch.randn(n, heads.num_kv, heads.dim, device=device, dtype=dtype) for _ in range(2))
        self.cos, self.sin = (torch.empty(n, heads.dim // 2, device=device) for _ in range(2))
        positions = torch.from_numpy(self.batch.positions).to(device)
        (turn_table if fused else turn_table_reference)(positions, self.inv_freq, 1.0, self.cos, self.sin)
        self.slots = torch.from_numpy(self.batch.slots).to(device)
        self.rotated = torch.zeros(n + choice.wide.max_turned, heads.num, heads.dim, device=device, dtype=dtype)
        self.scratch = Scratch.empty(choice.wide.max_partials, heads.num, heads.dim, device)
        self.tile = pick_tile(64 if self.plans.is_wide else 1, heads.dim, dtype)
        self.out = torch.full_like(self.q, torch.nan)

    @property
    def scale(self) -> float:
        return float(self.heads.dim**-0.5)

    def run(self, layer: int) -> None:
        self.rotate(layer)
        self.attend(layer)

    def rotate(self, layer: int) -> None:
        """New keys and values into the pool; queries, and once more for every place that they are turned for."""
        given = self.q, self.k, self.v, self.cos, self.sin, self.k_pool[layer], self.v_pool[layer], self.slots
        if self.fused:
            rotate_and_write(*given, self.plans.turned, self.rotated)
        else:
            self.rotated[: len(self.q)] = rotate_and_write_reference(*given)

    def attend(self, layer: int) -> None:
        pools, plans = (self.k_pool[layer], self.v_pool[layer]), self.plans
        if not self.fused:
            rotated = self.rotated[: len(self.q)]
            attend_views_reference(rotated, *pools, plans.host, self.inv_freq, plans.shape, self.scale, self.out)
            return
        from laban.kernels.view_kernel import attend_views

        n = len(self.q)
        given = self.rotated, n, *pools, plans.plan, self.scratch, plans.shape, self.tile, self.scale, self.out
        attend_views(*given)

    def seen(self, call: int) -> tuple[Tensor, Tensor]:
        """The slots that a call reads, in order, its own token last, and by how much each key is to be moved."""
        batch, slots, offsets = self.batch, [], []
        reads = [(entry, end, offset) for reader, entry, _, end, offset, _ in batch.reads.tolist() if reader == call]
        for entry, end, offset in [*reads, (int(batch.chunks[call, 3]), 1, 0)]:
            index = np.arange(end)
            slots.append(batch.pages[batch.page_starts[entry] + index // PAGE].astype(np.int64) * PAGE + index % PAGE)
            offsets.append(np.full(end, offset))
        found = torch.from_numpy(np.concatenate(slots)), torch.from_numpy(np.concatenate(offsets))
        return found[0].to(self.device), found[1].to(self.device)

    def expected(self) -> Tensor:
        """By definition in float64, in layer 0, from the numbers as they lie: [num_calls, num_heads, head_dim]"""
        rows = []
        position = torch.tensor([self.case.tokens_read], device=self.device)
        for call in range(self.case.num_calls):
            slots, offsets = self.seen(call)
            # One rotation of the query for each message, by where the message stands.
            places, which = offsets.unique(return_inverse=True)
            cos, sin = turn_tables(places - position, self.inv_freq, torch.float64)
            queries = turn(self.q[call].double()[None].expand(len(places), -1, -1), cos, sin)
            queries = queries.unflatten(1, (self.heads.num_kv, -1))
            keys, values = self.k_pool[0, slots].double(), self.v_pool[0, slots].double()
            scores = torch.cat(
                [torch.einsum("hgd,nhd->hgn", queries[i], keys[which == i]) for i in range(len(places))], -1
            )
            order = torch.cat([(which == i).nonzero().flatten() for i in range(len(places))])
            weights = (scores * self.scale).softmax(-1)
            rows.append(torch.einsum("hgn,nhd->hgd", weights, values[order]).flatten(0, 1))
        return torch.stack(rows)

    def copied(self, layer: int) -> tuple[Tensor, Tensor]:
        """Every call's keys, moved to where it reads them, and values, one call after another."""
        keys, values = [], []
        for call in range(self.case.num_calls):
            slots, offsets = self.seen(call)
            cos, sin = turn_tables(-offsets, self.inv_freq, torch.float32)
            keys.append(turn(self.k_pool[layer, slots].float(), cos, sin).to(self.k_pool.dtype))
            values.append(self.v_pool[layer, slots])
        return torch.cat(keys), torch.cat(values)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def measure_attention(
    size: Size, device: torch.device, reps: int, seed: int, flash: FlashBackend, say: Callable[[str], None]
) -> list[Row]:
    rows = []
    for case in CASES:
        say(f"attention of {case.name}")
        rows += measure_case(case, size, device, reps, seed, flash, fused=device.type == "cuda")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def measure_case(
    case: Case, size: Size, device: torch.device, reps: int, seed: int, flash: FlashBackend, *, fused: bool
) -> list[Row]:
    """Time and error of one layer, and of a stock FlashAttention over copies where that is `COMPARED`."""
    layer = Layer(case.scaled(size), Heads.of(size), device, seed, fused=fused)
    name, expected = f"attention.{case.name}", None
    layer.run(0)
    rows = []
    if not case.name.startswith("short"):
        expected = layer.expected()
        rows.append(Row(f"{name}.error", relative_error(layer.out, expected), "", 0.0045, "lower"))
    for part, what, target in (("", layer.run, case.target_us), (".attend", layer.attend, None)):

        def launches(what: Callable[[int], None] = what) -> None:
            for number in range(layer.num_layers):
                what(number)

        rows.append(Row(name + part, replayed_us(launches, device, reps) / layer.num_layers, "us", target, "lower"))
    if case.name in COMPARED and flash.varlen is not None and expected is not None:
        rows += _measure_copied(name, layer, expected, device, reps, flash)
    return rows


def _measure_copied(
    name: str, layer: Layer, expected: Tensor, device: torch.device, reps: int, flash: FlashBackend
) -> list[Row]:
    """Attention alone: neither the moving and copying of keys nor the rotation of queries is counted."""
    lengths = [layer.case.tokens_read + 1] * layer.case.num_calls
    copies = [layer.copied(0)]
    bytes_a_layer = 2 * copies[0][0].numel() * copies[0][0].itemsize
    copies += [layer.copied(i % layer.num_layers) for i in range(1, _num_cold(bytes_a_layer, device))]
    cu_q, cu_k = cumulated([1] * len(lengths), device), cumulated(lengths, device)
    q = layer.rotated[: len(lengths)]
    varlen = flash.varlen
    assert varlen is not None

    def attend(keys: Tensor, values: Tensor) -> Tensor:
        return varlen(q, keys, values, cu_q, cu_k, 1, lengths[0], False, layer.scale)[0]

    def launches() -> None:
        for keys, values in copies:
            attend(keys, values)

    error = relative_error(attend(*copies[0]), expected)
    try:
        taken_us = replayed_us(launches, device, reps)
    except RuntimeError:  # one that waits for the card cannot be captured
        torch.cuda.synchronize(device)
        taken_us = looped_us(launches, device, reps)
    return [
        Row(f"{name}.copied", taken_us / len(copies), "us", better="lower"),
        Row(f"{name}.copied.error", error, "", better="lower"),
    ]


def measure_plan(size: Size, device: torch.device, seed: int) -> list[Row]:
    """On the host: the plan of 64 calls of 16 messages as the engine makes it, for either tile, and its advance."""
    case = Case("plan", 64, 16, 512)
    choice = tile_choice(Heads.of(Size()), torch.bfloat16, H100_PROCESSORS)
    inv_freq = torch.ones(Heads.of(Size()).dim // 2, device=device)
    plans = PlanBuffers(LayerKind(inv_freq, 1.0, None), choice, device)
    built, advanced = [], []
    for number in range(2 + (5 if size.tiny else PLANS)):  # the first two compile
        batch = batch_of(case, np.random.default_rng(seed + number))
        built.append(_host_ms(lambda batch=batch: plans.make(batch)))
        for _ in range(ADVANCES):
            batch = replace(batch, follows=True, number=batch.number + 1)
            advanced.append(_host_ms(lambda batch=batch: plans.make(batch)))
    return [
        Row("plan.build_64x16", median(built[2:]), "ms", 0.5, "lower"),
        Row("plan.advance_64x16", median(advanced[2 * ADVANCES :]), "ms", better="lower"),
    ]


def _host_ms(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)
