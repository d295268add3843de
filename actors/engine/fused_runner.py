"""The model on a card: small forwards are replayed CUDA graphs, attention is the fused kernel's, nothing waits.

What changes from one iteration to the next lies in buffers at fixed addresses (token ids, positions, slots, plans),
filled by one or two copies an iteration from pinned memory. A forward of up to 1,280 new tokens is captured once for
each size in a list, and smaller batches are padded to the next; larger ones run operation by operation, with a stock
FlashAttention. Sampled tokens stay on the card for the next iteration, and come to the host while that runs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from laban.actors.calls import Sampling
from laban.actors.engine.adapters import Adapters
from laban.actors.engine.batch import build_batch
from laban.actors.engine.draft_policy import MOST_DRAFTED
from laban.actors.engine.flat_batch import FlatBatch, Flattener
from laban.actors.engine.inputs import Inputs
from laban.actors.engine.launched import BatchTooLarge, Launched
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.layers import layer_kinds
from laban.actors.engine.plan_buffers import PlanBuffers, TileChoice
from laban.actors.engine.runner import head_dim, logits_of
from laban.actors.engine.sampler import AskMasks, sampling_params
from laban.actors.engine.sequence import Chunk, scored_rows
from laban.actors.engine.shard_group import ShardGroup
from laban.actors.engine.sharding import local_num_heads, local_num_kv_heads
from laban.actors.engine.steps import ATTENTION, FlashStep, FusedStep
from laban.actors.errors import UnsupportedModel
from laban.actors.models import Progress, say_nothing
from laban.kernels.flash import FlashPlan
from laban.kernels.flash_backends import pick_flash
from laban.kernels.fused_layers import FusedStack
from laban.kernels.fused_modules import install, skip_rotary
from laban.kernels.fused_ops import (
    rotate_and_write,
    rotate_and_write_reference,
    turn_table,
    turn_table_reference,
)
from laban.kernels.plan_layout import CHUNK_INTS, NUM_ROWS, READ_INTS
from laban.kernels.sampling import sample_rows
from laban.kernels.view_attention import AttentionPlan
from laban.kernels.view_plan import PlanFull, PlanShape
from laban.kernels.view_tiles import Scratch, Tile, pick_tile

log = logging.getLogger(__name__)

LAYER_GROUPS = 4
"""In so many parts a forward waits for what it reads, if that is still being loaded."""

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 640, 768, 1024, 1280)
"""New tokens of the forwards that are captured. In larger ones the host keeps ahead of the card."""

MIXED_TOKENS = 512
"""Of a forward that may be one of decodes; larger ones hold long prefills and take the tile of many rows."""

MIN_FLASH_ROWS = 256
"""Of a prefill that a stock FlashAttention is given, in a forward too large to be captured."""


class FusedRunner:
    """Owns the weights and the pool of keys and values; a launch writes the pool, nothing else does.

    The pool is [num_layers, num_slots, num_kv_heads, head_dim], keys as first rotated. On a CPU it computes the same
    from the kernels' references, for tests.
    """

    overlaps = True

    def __init__(
        self,
        model: PreTrainedModel,
        num_slots: int,
        *,
        page_size: int,
        max_batch_tokens: int,
        max_running: int,
        group: ShardGroup | None = None,
        attention: str | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """`model` is a slice of the whole where `group` are the shards that have the rest. It is changed in place.

        `attention` names the FlashAttention for large prefills; None takes the best that is installed.
        """
        self.group = group
        self.model = model.train(False)
        self.device, self.dtype = model.device, model.dtype
        self.on_card = self.device.type == "cuda"
        self.vocab_size: int = model.config.vocab_size
        self.head_dim = head_dim(model.config)
        self.num_heads, self.num_kv_heads = local_num_heads(model), local_num_kv_heads(model)
        self.kinds, self.kind_of_layer = layer_kinds(model)
        model.set_attn_implementation(ATTENTION)
        install(model)
        if self.on_card:
            from laban.kernels.row_linear import use_row_linears

            use_row_linears(model)
        if not skip_rotary(model):
            raise UnsupportedModel(
                f"{type(model).__name__} rotates its heads in a way that is not served", field="model"
            )
        self.stack = FusedStack.of(model.base_model)
        max_rows = max_running + MOST_DRAFTED
        self.inputs = Inputs(max(max_batch_tokens, SIZES[-1]), max_rows, self.device)
        self.adapters = adapters or Adapters()
        self.adapters.attach(model, group, self.inputs.adapters if self.on_card else None)
        self.flash = pick_flash(self.device, self.dtype, self.head_dim, attention)
        self.attention_backend = f"fused-triton+{self.flash.name}" if self.on_card else "fused-reference"
        self._flattener = Flattener(page_size)
        self._samples = torch.zeros(max_rows, dtype=torch.int64, device=self.device)
        self._told = [torch.zeros(2 * max_rows, dtype=torch.int64, pin_memory=self.on_card) for _ in range(2)]
        self._turn = 0
        tokens = max(max_batch_tokens, SIZES[-1])
        self.tiles: tuple[Tile, Tile]
        self.tiles, choice = self._tiles(page_size)
        self._plans = tuple(PlanBuffers(kind, choice, self.device) for kind in self.kinds)
        self._large_plans = tuple(PlanBuffers(kind, choice.enlarged(tokens), self.device) for kind in self.kinds)
        self.scratch: Scratch | None = None
        if self.on_card:
            self.scratch = Scratch.empty(choice.wide.max_partials, self.num_heads, self.head_dim, self.device)
            # Queries, and once more for every place that they are turned for.
            rows = tokens + max(plans[0].choice.wide.max_turned for plans in (self._plans, self._large_plans))
            self._queries = torch.empty(rows, self.num_heads, self.head_dim, dtype=self.dtype, device=self.device)
        half = [kind.inv_freq.shape[0] for kind in self.kinds]
        self._cos = [torch.zeros(tokens, h, device=self.device) for h in half]
        self._sin = [torch.zeros(tokens, h, device=self.device) for h in half]
        self.gates = _gates(self.model.config.num_hidden_layers, self.device) if self.on_card else None
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.make_pool(num_slots)

    def make_pool(self, num_slots: int) -> None:
        """Pools of `num_slots`, in place of those there are. Not after `capture`."""
        assert not self._graphs
        self.k_pool = self.v_pool = torch.empty(0)
        shape = (self.model.config.num_hidden_layers, num_slots, self.num_kv_heads, self.head_dim)
        self.k_pool = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.v_pool = torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _tiles(self, page_size: int) -> tuple[tuple[Tile, Tile], TileChoice]:
        """The kernel's tiles, of few rows and of many, and the shapes of their plans."""
        group = self.num_heads // self.num_kv_heads
        num_processors = torch.cuda.get_device_properties(self.device).multi_processor_count if self.on_card else 1
        few, many = (pick_tile(rows, self.head_dim, self.dtype) for rows in (1, 64))
        least = 1 << (group - 1).bit_length()  # one token's query heads of a key head
        tiles = replace(few, block_m=max(few.block_m, least)), replace(many, block_m=max(many.block_m, least))
        shapes = [
            PlanShape(
                tile.block_m // group,
                tile.block_n,
                self.num_kv_heads,
                num_processors * tile.programs_per_sm,
                page_size,
                max_tokens=SIZES[-1],
            )
            for tile in tiles
        ]
        return tiles, TileChoice(*shapes)

    @torch.inference_mode()
    def launch(
        self,
        chunks: Seq[Chunk],
        samplings: Seq[Sampling],
        indices: Seq[int],
        ask_masks: AskMasks | None = None,
    ) -> Launched:
        """Gives the device an iteration: keys and values of `chunks` into the pool, and the next tokens.

        Those are of the chunks that sample, in order, after the last token known and each drafted one: row i is token
        `indices[i]` of a call that samples by `samplings[i]`. Returns at once. At most one launch may be under way
        before it. With `ask_masks` some rows are constrained: it is called once the forward is under way, and may wait
        for the launch before.
        """
        if self.adapters:
            if self.on_card:
                self.inputs.send_adapters(self.adapters.numbers_of(chunks))
            else:
                self.adapters.set_rows(chunks)
        batch = self._flattener.flatten(chunks)
        hidden = self._forward(batch, chunks)
        num_rows = len(batch.logit_rows)
        rows = hidden[:num_rows]
        size = hidden.shape[0]
        if batch.logit_rows != list(range(num_rows)):
            rows = hidden.index_select(0, self.inputs.logit_rows(size, num_rows))
        logits = logits_of(self.model, rows)
        scored = self._scored(hidden, chunks)
        masks = None if ask_masks is None else ask_masks()
        tokens, sound = sample_rows(logits, sampling_params(samplings, indices, self.device, masks))
        samples = torch.stack((tokens, sound.to(tokens.dtype)))
        if self.group is not None and num_rows:  # all shards go on with the first one's
            self.group.broadcast_(samples)
        self._samples[:num_rows] = samples[0]
        if not self.on_card:
            return Launched(samples, logits, scored=scored)
        self._turn = 1 - self._turn
        told = self._told[self._turn][: 2 * num_rows].view(2, num_rows)  # in one piece, or the copy would wait
        told.copy_(samples, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()
        return Launched(told, logits, ready, scored)

    def _scored(self, hidden: Tensor, chunks: Seq[Chunk]) -> Tensor | None:
        """Logits of what is to be scored, taken before the next forward writes over `hidden`."""
        rows = scored_rows(chunks)
        if not rows:
            return None
        index = torch.tensor(rows)
        index = index.pin_memory().to(self.device, non_blocking=True) if self.on_card else index
        return logits_of(self.model, hidden.index_select(0, index))

    def _forward(self, batch: FlatBatch, chunks: Seq[Chunk]) -> Tensor:
        """The last layer's [padded size, hidden_size]."""
        size = next((size for size in SIZES if size >= batch.num_tokens), None)
        if size is not None and self._make(self._plans, batch, wide=True if size > MIXED_TOKENS else None):
            wide = self._plans[0].is_wide
            self._send(self._plans, batch, size)
            if (captured := self._graphs.get((size, wide))) is not None:
                graph, hidden = captured
                graph.replay()
                return hidden
            return self._run_fused(self._plans, size, wide)
        # Long prefills alone are a stock FlashAttention's; windows, and what decodes beside them, are not.
        long = all(chunk.count >= MIN_FLASH_ROWS for chunk in chunks) and all(k.window is None for k in self.kinds)
        if not long and self._make(self._large_plans, batch):
            self._send(self._large_plans, batch, batch.num_tokens)
            return self._run_fused(self._large_plans, batch.num_tokens, self._large_plans[0].is_wide)
        self.inputs.send(batch, batch.num_tokens)
        made = build_batch(chunks, self.kinds, self.dtype, self.device)
        for plan in made.plans:
            if plan.turned is not None and len(plan.turned) > self._large_plans[0].shape.max_turned:
                raise BatchTooLarge(f"{len(plan.turned)} queries would be turned for what they read")
        return self._run(FlashStep(self, batch.num_tokens, tuple(FlashPlan.of(plan) for plan in made.plans)))

    def _make(self, plans: tuple[PlanBuffers, ...], batch: FlatBatch, wide: bool | None = None) -> bool:
        """Plans `batch` for every kind of layer and one tile; False if it does not fit."""
        try:
            plans[0].make(batch, wide=wide)
            for others in plans[1:]:
                others.make(batch, wide=plans[0].is_wide)
        except PlanFull:
            return False
        return True

    def _send(self, plans: tuple[PlanBuffers, ...], batch: FlatBatch, size: int) -> None:
        self.inputs.send(batch, size)
        for kind_plans in plans:
            kind_plans.send()

    def _run_fused(self, plans: tuple[PlanBuffers, ...], size: int, wide: bool) -> Tensor:
        for kind_plans in plans:
            kind_plans.fill_tables()
        return self._run(FusedStep(self, size, plans, wide))

    def _run(self, step: FusedStep | FlashStep) -> Tensor:
        size = step.num_tokens
        positions = self.inputs.positions(size)
        fill = turn_table if self.on_card else turn_table_reference
        for kind, cos, sin in zip(self.kinds, self._cos, self._sin, strict=True):
            fill(positions, kind.inv_freq, kind.attention_scaling, cos[:size], sin[:size])
        token_ids = self.inputs.token_ids(size, self._samples)
        if self.stack is not None:
            return self.stack.forward(token_ids, positions, laban_step=step)
        hidden: Tensor = self.model.base_model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            laban_step=step,
        ).last_hidden_state[0]
        return hidden

    def rotate(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, size: int, plans: PlanBuffers | None = None
    ) -> Tensor:
        """Rotates, writes keys and values into the pool, and returns the rotated queries, then those `plans` turn."""
        if self.gates is not None and (group := self.gates.group_beginning_at(layer)) is not None:
            self.gates.wait(group)
        kind = self.kind_of_layer[layer]
        tables = self._cos[kind][:size], self._sin[kind][:size]
        pools = self.k_pool[layer], self.v_pool[layer]
        slots = self.inputs.slots(size)
        if not self.on_card:
            return rotate_and_write_reference(q, k, v, *tables, *pools, slots)
        if plans is None:
            return rotate_and_write(q, k, v, *tables, *pools, slots)
        return rotate_and_write(q, k, v, *tables, *pools, slots, plans.turned, self._queries)

    def _warm_up(self) -> None:
        """Compiles what the first calls would otherwise wait for: the planner, and the kernels of larger forwards."""
        row = np.zeros((1, CHUNK_INTS), np.int64)
        row[0, NUM_ROWS] = 1
        nothing, one = np.zeros((0, READ_INTS), np.int64), np.zeros(1, np.int32)
        batch = FlatBatch(one, one - 1, one, one - 1, [0], row, nothing, np.array([0, 1]), one, follows=False)
        for plans in (self._plans, self._large_plans):
            for again in (False, True):
                self._make(plans, replace(batch, follows=again, number=int(again)))
            for wide in (False, True):
                for kind_plans in plans:
                    kind_plans.clear(wide=wide)
                self.inputs.send(None, SIZES[-1])
                self._run_fused(plans, SIZES[-1], wide)

    def _try_gates(self) -> None:
        """Does without them if waiting for an event cannot be captured here."""
        if self.gates is None:
            return
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.gates.wait(0)
                self._samples.add_(0)
            graph.replay()
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            log.warning("forwards wait for whole loads, not layer by layer: %s", error)
            self.gates = None

    @torch.inference_mode()
    def capture(self, progress: Progress = say_nothing) -> None:
        """Captures the forwards of all sizes, the largest first, so that the others fit into its memory."""
        self._try_gates()
        cases = [(size, wide) for size in reversed(SIZES) for wide in (True, False) if wide or size <= MIXED_TOKENS]
        self._warm_up()
        pool = None
        for number, (size, wide) in enumerate(cases):
            progress("capturing CUDA graphs", number / len(cases))
            for plans in self._plans:
                plans.clear(wide=wide)
            self.inputs.send(None, size)
            self._run_fused(self._plans, size, wide)  # compiles kernels; libraries take memory that they keep
            torch.cuda.synchronize(self.device)
            graph = torch.cuda.CUDAGraph()
            # What other threads do on the card, NCCL's watchdog for one, is no part of it.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                hidden = self._run_fused(self._plans, size, wide)
            pool = graph.pool()
            self._graphs[size, wide] = graph, hidden
        progress("capturing CUDA graphs", 1.0)

    def close(self) -> None:
        """Drops the graphs, for which NCCL would wait when the group is left. Forwards run without them then."""
        if self.on_card:
            torch.cuda.synchronize(self.device)
        self._graphs.clear()

    @torch.inference_mode()
    def measure(self, num_tokens: int) -> int:
        """Bytes that a forward of `num_tokens` needs besides what is held all the time. For before the pool is made."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        owners = torch.arange(num_tokens, device=self.device)
        run = AttentionPlan(num_tokens, None, None, None, (slice(0, num_tokens),), (), (), None, owners, in_order=True)
        self.inputs.send(None, num_tokens, padding_slot=0)  # every row writes there, whatever that gives
        hidden = self._run(FlashStep(self, num_tokens, tuple(FlashPlan.of(run) for _ in self.kinds)))
        logits_of(self.model, hidden[: self._samples.shape[0]])
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def _gates(num_layers: int, device: torch.device) -> LayerGates | None:
    try:
        return LayerGates(num_layers, LAYER_GROUPS, device)
    except RuntimeError as error:
        log.warning("forwards wait for whole loads: %s", error)
        return None
