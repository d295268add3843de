"""What comes back from disk to a card is right, also where only the first part of it comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_harness import TOLERANCE, Driver
from shard_disk import NUM_MESSAGES, NUM_TOKENS, engine_over, play

from laban.kvstore.encodings import EncodingSpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

GOOD_TOKENS = 256  # of a file whose last chunk is damaged


def test_of_a_file_that_is_damaged_at_its_end_the_rest_is_read(tmp_path: Path) -> None:
    expected, _ = play(Driver(engine_over(None, None, pool_tokens=4096, host_tokens=0)), 1)
    specs: dict[str, EncodingSpec] = {}
    for life in range(2):
        engine = engine_over(tmp_path, None, pool_tokens=704, host_tokens=1024, device="cuda")
        told, encoded = play(Driver(engine, specs), 2 - life)
        engine.close()
        engine.runner.close()
        for at, got in enumerate(told):
            np.testing.assert_allclose(got, expected[at % NUM_MESSAGES], atol=TOLERANCE, rtol=0)
        if life == 0:
            damaged = next(path for path in sorted(tmp_path.rglob("*.kv")) if _is_message(path.stem, specs))
            data = bytearray(damaged.read_bytes())
            data[-5] ^= 1
            damaged.write_bytes(data)
    assert NUM_TOKENS - GOOD_TOKENS + 1 in encoded


def _is_message(encoding_id: str, specs: dict[str, EncodingSpec]) -> bool:
    return encoding_id in specs and specs[encoding_id].num_tokens == NUM_TOKENS
