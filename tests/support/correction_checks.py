"""Reads that may be predicted, on a random small model: views of messages in their places, and what is read there."""

from __future__ import annotations

import random
from dataclasses import dataclass

from engine_harness import Driver

from laban.actors.calls import Sampling
from laban.actors.engine.corrections import Corrections
from laban.kvstore.anchors import Mix
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, Placement, View, extend, make_spec, view_stop

HEADER = [5, 6, 7]


def words(rng: random.Random, num: int) -> tuple[int, ...]:
    return tuple(rng.randrange(1, 120) for _ in range(num))


@dataclass
class Reader(Driver):
    """A driver whose views are chains of texts, some of which may be predicted."""

    @property
    def corrections(self) -> Corrections:
        return self.engine.corrections

    def view_of(self, *texts: tuple[tuple[int, ...], float], start: int = 0) -> tuple[View, list[EncodingSpec]]:
        """Each text with the tolerance that it is read with: 0 is exact."""
        view, specs = EMPTY_VIEW, []
        for tokens, tolerance in texts:
            at = max(start, view_stop(view, self.specs))
            spec = make_spec("test", tokens, at, view, self.specs, tolerance=tolerance)
            self.specs[spec.encoding_id] = spec
            specs.append(spec)
            view = extend(view, Placement(spec.encoding_id, at, 0, len(tokens)), self.specs)
        return view, specs

    def read(self, *texts: tuple[tuple[int, ...], float], start: int = 0, num_tokens: int = 4) -> list[EncodingSpec]:
        """Generates a message under the texts, and then all that is left to do; returns the texts' encodings."""
        view, specs = self.view_of(*texts, start=start)
        call_id = self.submit(HEADER, view, sampling=Sampling(max_tokens=num_tokens))
        self.run()
        self.result(call_id)
        return specs

    def mix(self, spec: EncodingSpec) -> Mix | None:
        """How it was predicted; None if it was encoded."""
        assert self.engine.store.get_ready(spec.encoding_id) is not None
        return self.corrections.mix_of(spec.encoding_id)


def largest_difference(driver: Driver, spec: EncodingSpec, other_driver: Driver, other: EncodingSpec) -> float:
    """Of keys and values, where both were encoded at the same place."""
    assert spec.start == other.start
    pairs = zip(driver.keys_and_values(spec), other_driver.keys_and_values(other), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)
