"""What an engine is told at its start and never changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 8192
CPU_POOL_BYTES = 1 << 30
CPU_HOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes in tokens. None, and "auto", leave the choice to the device that the model is loaded on.

    `pool_tokens` and `pool_bytes` None take 1 GiB on a CPU; on a GPU what weights, the largest forward and captured
    graphs leave of `memory_share` of the card.
    """

    pool_tokens: int | None = None
    pool_bytes: int | None = None  # of a worker's shards together, unless pool_tokens says
    page_size: int = 16
    max_batch_tokens: int | None = None  # new tokens of one iteration; longer prefills are cut into chunks
    max_running: int = 64  # calls admitted at once
    max_waiting: int = 10_000  # calls queued; one more is refused
    dtype: str = "auto"  # float32 on a CPU; on a GPU the model's own, of 16 bits
    device: str = "auto"  # "cpu", "cuda", "cuda:1"; auto takes a GPU if there is one
    num_threads: int | None = None  # CPU threads; None leaves torch's own choice
    memory_share: float = 0.9
    attention: str = "auto"  # the FlashAttention for large prefills on a GPU; auto takes the best that is installed
    drafting: bool = True  # guess tokens from what calls read, where that is measured to pay
    draft_tokens: int = 15  # drafted for one call in one iteration, at most
    cuda_graphs: bool = True  # capture forwards of up to 1,280 new tokens at start
    host_bytes: int | None = None  # of host memory for encodings; None takes 256 MiB on a CPU, with a GPU a quarter
    disk_folder: str | None = None  # where encodings are kept on disk; None keeps none
    disk_bytes: int = 16 << 30
    eviction: str = "cost"  # a policy's name, or package.module:Class
    tenant_share: float = 1.0  # of each tier, for one tenant's encodings at most
    num_workers: int = 1  # that may share this machine's memory
    adapters: tuple[str, ...] = ()  # folders of those that calls may ask for
    transport: str = "auto"  # of what other workers send: auto, cma, nixl, object_store
    link_bytes_per_s: float | None = None  # limit of copies between host and device, to try slower links

    @property
    def batch_tokens(self) -> int:
        return CPU_BATCH_TOKENS if self.max_batch_tokens is None else self.max_batch_tokens

    def settled(self, device_type: str, model_dtype: str) -> EngineConfig:
        """With what is left open chosen for a model that was saved as `model_dtype`."""
        on_gpu = device_type == "cuda"
        half = model_dtype if model_dtype in ("float16", "bfloat16") else "bfloat16"
        return replace(
            self,
            dtype=(half if on_gpu else "float32") if self.dtype == "auto" else self.dtype,
            max_batch_tokens=GPU_BATCH_TOKENS if on_gpu and self.max_batch_tokens is None else self.batch_tokens,
        )
