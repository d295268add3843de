"""An iteration that was given to the device: what it sampled, once it is done."""

from __future__ import annotations

from collections.abc import Sequence

from torch import OutOfMemoryError, Tensor
from torch.cuda import Event

from laban.actors.calls import TokenLogprob
from laban.actors.engine.sampler import logprobs_of_rows


class BatchTooLarge(Exception):
    """The iteration does not fit the runner's buffers; nothing of it was done. Fewer tokens at once may fit."""


class Launched:
    """The next tokens of an iteration's sampled rows, on their way to the host."""

    def __init__(
        self, samples: Tensor, logits: Tensor, ready: Event | None = None, scored: Tensor | None = None
    ) -> None:
        """`samples` [2, num_rows] int64 on the host, whole once `ready`: tokens, and whether each is sound, which is to
        say that the row's logits are finite numbers. `logits` [num_rows, vocab_size] on the device, as are those of the
        tokens that are `scored`, in order."""
        self._samples, self._logits, self.ready, self.scored = samples, logits, ready, scored

    def wait(self) -> tuple[list[int], list[bool]]:
        """The tokens, and whether each is sound. Raises what the device failed with."""
        if self.ready is not None:
            self.ready.synchronize()
        tokens, sound = self._samples.tolist()
        return tokens, [bool(flag) for flag in sound]

    def logprobs(self, rows: Sequence[int], token_ids: Sequence[int], num_tops: Sequence[int]) -> list[TokenLogprob]:
        """Of the tokens chosen in `rows`. Waits for all that the device was given."""
        try:
            return logprobs_of_rows(self._logits[list(rows)], token_ids, num_tops)
        except OutOfMemoryError:  # slower, but not for a call to fail by
            return logprobs_of_rows(self._logits.cpu()[list(rows)], token_ids, num_tops)
