"""Shards on GPUs of their own, over NCCL and in CUDA graphs, answer as the whole model does on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_harness import TOLERANCE, Driver
from shard_disk import check_lives, lives
from shard_processes import play, play_all, run_shards, sharded_engine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]


@pytest.mark.parametrize("size", [n for n in (2, 4) if n <= torch.cuda.device_count()])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_shards_answer_as_the_whole_model_does(kind: str, size: int) -> None:
    shards = run_shards(size, play_all, (kind,), timeout_s=200, device="cuda")
    told, generated, reasons = play(Driver(sharded_engine(kind, None)))
    (shard_told, *shard_rest), _ = shards[0][0]
    for expected, got in zip(told, shard_told, strict=True):
        np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)
    assert tuple(shard_rest) == (generated, reasons)
    entries = [answers[0][1] for answers in shards]
    assert all(other == entries[0] for other in entries), "the stores of the shards differ"


def test_what_they_keep_on_disk_is_there_in_all(tmp_path: Path) -> None:
    check_lives(run_shards(2, lives, tmp_path, timeout_s=300, device="cuda"))
