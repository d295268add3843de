"""What a plan of `view_plan` says, in plain torch: the reference of the fused kernel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from laban.kernels.plan_layout import (
    CAUSAL,
    COUNT_BITS,
    HEADER,
    ITEM_INTS,
    NUM_ITEMS,
    PACKED,
    PACKED_INTS,
    PIECE_INTS,
    ROW_INTS,
    Buffer,
)
from laban.kernels.rotary import turn, turn_tables
from laban.kernels.view_plan import PlanShape


def attend_views_reference(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    plan: Buffer,
    inv_freq: Tensor,
    shape: PlanShape,
    scale: float,
    out: Tensor,
) -> None:
    """What the plan says, item by item in plain torch, in float64. Arguments as `attend_views`."""
    group = q.shape[1] // k_pool.shape[1]
    parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for i in range(int(plan[NUM_ITEMS])):
        item = plan[shape.items_at + ITEM_INTS * i :][:ITEM_INTS]
        rows = plan[item[0] :][: ROW_INTS * item[1]].reshape(-1, ROW_INTS)
        for token, number, position in rows.tolist():
            scores, values = [], []
            for list_at, begin, end, first_turned, start, kind in (
                plan[item[2] :][: PIECE_INTS * item[3]].reshape(-1, PIECE_INTS).tolist()
            ):
                keys = np.arange(begin, end)
                if kind == PACKED:
                    offset = 0
                    pages, codes, places = plan[list_at + PACKED_INTS * (keys // shape.page_size) + [[0], [1], [2]]]
                    places = places + keys % shape.page_size
                    seen = (codes >> COUNT_BITS == number) & (keys % shape.page_size < codes % (1 << COUNT_BITS))
                    seen &= places <= position
                else:
                    offset = position - int(plan[HEADER + first_turned + number]) if first_turned >= 0 else 0
                    pages, places = plan[list_at + keys // shape.page_size], start + offset + keys
                    seen = places <= position if kind == CAUSAL else np.ones(len(keys), bool)
                if shape.window is not None:
                    seen &= position - places < shape.window
                slots = torch.from_numpy((pages.astype("int64") * shape.page_size + keys % shape.page_size)[seen])
                slots = slots.to(q.device)
                cos, sin = turn_tables(torch.tensor([offset]), inv_freq.cpu(), torch.float64)
                query = turn(q[token : token + 1].double(), cos.to(q.device), sin.to(q.device))[0]
                scores.append(torch.einsum("hd,nhd->hn", query, k_pool[slots].double().repeat_interleave(group, 1)))
                values.append(v_pool[slots].double().repeat_interleave(group, 1))
            found = torch.cat(scores, 1) * scale
            if found.shape[1]:
                result = torch.einsum("hn,nhd->hd", found.softmax(1), torch.cat(values)), found.logsumexp(1)
                parts.setdefault(token, []).append(result)
    for token, results in parts.items():
        weights = torch.stack([lse for _, lse in results]).softmax(0)
        merged = sum(part * weight[:, None] for (part, _), weight in zip(results, weights, strict=True))
        out[token] = merged.to(out.dtype)
