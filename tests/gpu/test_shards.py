"""Shards on GPUs of their own, over NCCL and in CUDA graphs, answer as the whole model does on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_harness import TOLERANCE, Driver
from shard_processes import play, play_all, run_shards, sharded_engine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]
KINDS = ("llama", "qwen3", "gemma3")


@pytest.mark.parametrize("size", [n for n in (2, 4) if n <= torch.cuda.device_count()])
def test_shards_answer_as_the_whole_model_does(size: int) -> None:
    shards = run_shards(size, play_all, KINDS, timeout_s=300, device="cuda")
    for index, kind in enumerate(KINDS):
        told, generated, reasons = play(Driver(sharded_engine(kind, None)))
        shard_told, *shard_rest = shards[0][index][0]
        for expected, got in zip(told, shard_told, strict=True):
            np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0, err_msg=kind)
        assert tuple(shard_rest) == (generated, reasons), kind
        entries = [answers[index][1] for answers in shards]
        assert all(other == entries[0] for other in entries), f"{kind}: the stores of the shards differ"
