"""Iterations that failed: whether the next one may do better, or the worker has to be made anew."""

from __future__ import annotations

import torch
from torch import AcceleratorError

MOST_IN_A_ROW = 3
"""A call that no iteration can take fails alone. So many in a row, with none between them that works, are not the
calls': answered one by one, as they come, all of a cluster's would fail where the queue is always empty."""


class Failures:
    """Of one engine's iterations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._num_in_a_row = 0

    def worked(self) -> None:
        """An iteration has gone well."""
        self._num_in_a_row = 0

    def is_last(self, error: Exception) -> bool:
        """Whether an iteration that failed so is to end the worker."""
        self._num_in_a_row += 1
        return self._num_in_a_row >= MOST_IN_A_ROW or self.is_of_device(error)

    def is_of_device(self, error: Exception) -> bool:
        """Whether nothing runs on the device any more in this process.

        After an illegal access, or a card that left the bus, CUDA answers all that follows with the same error, and so
        it does when it is asked to synchronize. Libraries and compilers say it in exceptions of their own.
        """
        if isinstance(error, AcceleratorError):
            return True
        if self._device.type != "cuda":
            return False
        try:
            torch.cuda.synchronize(self._device)
        except Exception:
            return True
        return False
