"""What an engine is told at its start and never changes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes in tokens. `pool_tokens` None takes 1 GiB on a CPU, and on a GPU 85% of what the weights leave free."""

    pool_tokens: int | None = None
    page_size: int = 16
    max_batch_tokens: int = 512  # new tokens of one iteration; longer prefills are cut into chunks
    max_running: int = 64  # calls admitted at once
    max_waiting: int = 10_000  # calls queued; one more is refused
    dtype: str = "float32"
    device: str = "auto"  # "cpu", "cuda", "cuda:1"; auto takes a GPU if there is one
    num_threads: int | None = None  # CPU threads; None leaves torch's own choice
