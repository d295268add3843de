"""Calls that are compared on a card: over its whole vocabulary."""

from __future__ import annotations

import pytest
import torch
from engine_harness import make_engine
from scoring_checks import check_reported_divergence

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("seed", "chunk"), [(0, 16), (1, 64), (2, 512)])
def test_what_the_worker_reports_is_the_interpreters_divergence(seed: int, chunk: int, fused: bool) -> None:
    check_reported_divergence(make_engine(seed=seed, device="cuda", fused=fused, max_batch_tokens=chunk), seed)
