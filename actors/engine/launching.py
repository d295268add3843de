"""Gives iterations to the device: the next one before the host takes in the one before it, where the runner can."""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial

from torch import OutOfMemoryError
from torch.cuda import empty_cache

from laban.actors.engine.constraining import Constraining
from laban.actors.engine.corrections import Corrections
from laban.actors.engine.decoding import Decode
from laban.actors.engine.fences import Fences
from laban.actors.engine.iteration import Iteration, samples_of
from laban.actors.engine.launched import BatchTooLarge
from laban.actors.engine.runner import AnyRunner
from laban.actors.engine.sampler import Masks
from laban.actors.engine.scheduler import Scheduler
from laban.actors.engine.sequence import Chunk

log = logging.getLogger(__name__)


class Launching:
    """Owns the iteration that is under way. Without overlap there is none between two calls of `advance`."""

    def __init__(
        self,
        runner: AnyRunner,
        scheduler: Scheduler,
        constraining: Constraining,
        corrections: Corrections,
        fences: Fences,
    ) -> None:
        self._runner, self._scheduler, self._constraining = runner, scheduler, constraining
        self._corrections, self._fences = corrections, fences
        self.under_way: Iteration | None = None

    def advance(self, chunks: list[Chunk]) -> Iteration | None:
        """Launches an iteration of `chunks`, if there are any. The one that is to be taken in now, if there is."""
        launched = self._try_launch(chunks) if chunks else None
        if self._runner.overlaps:  # the host takes in the iteration before while the device runs this one
            launched, self.under_way = self.under_way, launched
        return launched

    def drain(self) -> None:
        """What is under way ends, and nothing of it is taken in."""
        if self.under_way is not None:  # it reads from buffers that the next one is written to
            with contextlib.suppress(Exception):
                self.under_way.launched.wait()
            self.under_way = None

    def _try_launch(self, chunks: list[Chunk]) -> Iteration | None:
        """None if the device has no room for that much: less of it is tried next."""
        num_tokens = sum(chunk.count for chunk in chunks)
        try:
            return self._launch(chunks)
        except (BatchTooLarge, OutOfMemoryError) as error:
            if num_tokens == 1 or (self._runner.group is not None and isinstance(error, OutOfMemoryError)):
                raise
            log.warning("an iteration of %d tokens does not fit: %s", num_tokens, error)
        self._scheduler.chunking.shrink(num_tokens)
        empty_cache()
        return None

    def _launch(self, chunks: list[Chunk]) -> Iteration:
        sampled = samples_of(chunks)
        decodes = [each.decode for each in sampled for _ in each.rows]
        indices = [each.decode.num_launched + at for each in sampled for at in range(len(each.rows))]
        began_s = time.perf_counter()
        ask = None if all(d.matcher is None for d in decodes) else partial(self._masks, decodes)
        launched = self._runner.launch(chunks, [d.sampling for d in decodes], indices, ask)
        number = self._fences.launched()
        self._corrections.copying = None
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.sequence.entry.num_tokens = chunk.begin + chunk.num_known
            chunk.sequence.num_iterations += 1
            if chunk.sequence.load is not None:
                self._scheduler.encoded_instead(chunk)
        for each in sampled:
            each.launched()
        return Iteration(launched, chunks, sampled, number, began_s)

    def _masks(self, decodes: list[Decode]) -> Masks | None:
        """What an iteration's sampled rows may take, asked for while its forward runs: by now what the one before it
        sampled is there, which constrained calls go by."""
        if (before := self.under_way) is not None:
            tokens, sound = before.launched.wait()
            for each in before.sampled:
                matcher, row = each.decode.matcher, each.first_row
                if matcher is not None and sound[row] and self._scheduler.awaits(each.sequence, each.decode):
                    matcher.take(each.decode.num_sampled, tokens[row])
        return self._constraining.masks(decodes)
