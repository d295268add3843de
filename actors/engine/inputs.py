"""An iteration's tokens on their way to the device: ids, positions, slots, at fixed addresses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laban.actors.engine.flat_batch import FlatBatch


class Inputs:
    """The ints of an iteration on the device, at fixed addresses: token ids, sources, positions and slots."""

    def __init__(self, max_tokens: int, max_rows: int, device: torch.device) -> None:
        self._on_card = device.type == "cuda"
        self._max_tokens = max_tokens
        size = 4 * max_tokens + max_rows
        self._staged = [torch.zeros(size, dtype=torch.int32, pin_memory=self._on_card) for _ in range(2)]
        self._turn = 0
        self._ints = torch.zeros(size, dtype=torch.int32, device=device)
        self._staged_adapters = [torch.zeros(max_tokens, dtype=torch.int32, pin_memory=self._on_card) for _ in range(2)]
        self._adapters_turn = 0
        self.adapters = torch.full((max_tokens,), -1, dtype=torch.int32, device=device)
        """Of each token, as `AdapterRows` has them. Of padding it does not matter."""

    def send(self, batch: FlatBatch | None, size: int, padding_slot: int = -1) -> None:
        """Copies `batch` (None: nothing but padding), padded to `size` tokens; the host does not wait."""
        self._turn = 1 - self._turn
        staged = self._staged[self._turn].numpy()
        num_rows = 0
        rows = staged[: 4 * size].reshape(4, size)
        rows[:] = [[0], [-1], [0], [padding_slot]]
        if batch is not None:
            rows[:, : batch.num_tokens] = batch.token_ids, batch.sources, batch.positions, batch.slots
            num_rows = len(batch.logit_rows)
            staged[4 * size : 4 * size + num_rows] = batch.logit_rows
        used = 4 * size + num_rows
        self._ints[:used].copy_(self._staged[self._turn][:used], non_blocking=True)

    def send_adapters(self, numbers: Sequence[int]) -> None:
        """Copies the tokens' adapters; the host does not wait. At most one launch may be under way before it."""
        self._adapters_turn = 1 - self._adapters_turn
        staged = self._staged_adapters[self._adapters_turn][: len(numbers)]
        staged.numpy()[:] = numbers
        self.adapters[: len(numbers)].copy_(staged, non_blocking=True)

    def token_ids(self, size: int, samples: Tensor) -> Tensor:
        """[size] with the tokens sampled in the last iteration in their places."""
        ids, sources = self._ints[:size], self._ints[size : 2 * size]
        return torch.where(sources >= 0, samples.index_select(0, sources.clamp(min=0)), ids)

    def positions(self, size: int) -> Tensor:
        return self._ints[2 * size : 3 * size]

    def slots(self, size: int) -> Tensor:
        return self._ints[3 * size : 4 * size]

    def logit_rows(self, size: int, num_rows: int) -> Tensor:
        return self._ints[4 * size : 4 * size + num_rows]
