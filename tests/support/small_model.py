"""A random small model in a folder, for workers in processes of their own, and an engine that takes its time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MAX_CONTEXT = 4096


def save_small_model(folder: Path) -> str:
    """With a token for each ASCII character, as CharTokenizer has them."""
    from engine_harness import byte_backend
    from engine_reference import random_model

    random_model("llama", max_position_embeddings=MAX_CONTEXT).save_pretrained(folder)
    byte_backend().save(str(folder / "tokenizer.json"))
    return str(folder)


def load(*arguments: Any, **options: Any) -> Any:
    """An engine that takes TEST_CHUNK_S longer for each chunk that it sends or reads, TEST_TOKEN_S for each token."""
    from laban.actors.engine.load import load_engine

    engine = load_engine(*arguments, **options)
    chunk_s, token_s = (float(os.environ.get(name, "0")) for name in ("TEST_CHUNK_S", "TEST_TOKEN_S"))
    pool, runner = engine.tiers.pool, engine.runner
    assert pool is not None
    read, launch = pool.read, runner.launch

    def slow_read(runs: Any) -> Any:
        time.sleep(chunk_s)
        return read(runs)

    def slow_launch(chunks: Any, *rest: Any) -> Any:
        time.sleep(token_s * sum(chunk.count for chunk in chunks))
        return launch(chunks, *rest)

    make_reader = engine.tiers.direct.reader

    def slow_reader(window: Any) -> Any:
        reader = make_reader(window)
        return SimpleNamespace(read=lambda pieces: (time.sleep(chunk_s), reader.read(pieces)))

    pool.read, runner.launch, engine.tiers.direct.reader = slow_read, slow_launch, slow_reader
    return engine
