"""What things take in the simulator: rates of one worker, as measured on an H100, and how much room it has."""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, bytes and tokens. The defaults are Llama-3.1-8B's shapes on one H100 (see docs/policies.md)."""

    bytes_per_token: int = 131_072
    encode_tokens_per_s: float = 38_000.0
    iteration_s: float = 6.8e-3  # the shortest forward, which decodes one token of every running call
    running_s: float = 5e-5  # longer for each of them
    link_bytes_per_s: float = 50 * GB  # host to device; and device to host, at once
    peer_bytes_per_s: float = 20 * GB  # from another worker
    disk_read_bytes_per_s: float = 6 * GB
    disk_write_bytes_per_s: float = 0.6 * GB
    device_bytes: float = 40 * GB
    host_bytes: float = 0.0
    disk_bytes: float = 0.0
    max_running: int = 64
    batch_tokens: int = 8192  # new tokens a forward
    mixing: bool = True  # encode the head of an encoding while its tail loads

    def num_bytes(self, num_tokens: int) -> int:
        return num_tokens * self.bytes_per_token

    def encode_s(self, num_tokens: float) -> float:
        return num_tokens / self.encode_tokens_per_s

    def forward_s(self, num_new: int, num_running: int) -> float:
        """Of one iteration: so many new tokens, and a token of each running call."""
        return max(self.iteration_s, self.encode_s(num_new)) + self.running_s * num_running
