"""Drafts of any quality: right up to a random place, then wrong, at every chance, however long things take."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from laban.actors.calls import Call
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.draft_policy import WidthCosts
from laban.actors.engine.drafting import Drafting
from laban.actors.engine.engine import Engine
from laban.actors.engine.sequence import UNKNOWN, Chunk

Texts = dict[Any, list[int]]
"""What calls generate, by what they are asked."""


def key_of(call: Call) -> Any:
    return call.tokens, call.start, call.view, call.sampling


def remember_texts(engine: Engine) -> Texts:
    """Is filled with what the engine's calls generate from now on, every sampled token."""
    texts: Texts = {}
    make_decode = engine._make_decode

    def noting(call: Call) -> Any:
        decode = make_decode(call)
        decode.drafter = Noting(call, texts)  # type: ignore[assignment]
        return decode

    engine._make_decode = noting  # type: ignore[method-assign]
    return texts


class Noting:
    """Drafts nothing."""

    def __init__(self, call: Call, texts: Texts) -> None:
        self._tokens = texts.setdefault(key_of(call), [])
        self._tokens.clear()

    def take(self, token: int) -> None:
        self._tokens.append(token)

    def offer(self, most: int, num_unknown: int) -> tuple[list[int], list[float]]:
        return [], []


class SameCosts(WidthCosts):
    """Forwards of any width take as long."""

    def __init__(self) -> None:
        super().__init__(0.0, 0.0)

    def observe(self, num_tokens: int, seconds: float) -> None:
        pass


class WildDrafting(Drafting):
    """`num_right` and `num_wrong` drafted tokens were offered."""

    def __init__(self, waits: bool, texts: Texts, draw: random.Random, vocab_size: int = 128) -> None:
        super().__init__(EngineConfig(), on_card=False, waits=waits)
        self.costs = SameCosts()
        self._texts, self._draw, self._vocab_size = texts, draw, vocab_size
        self.num_right = self.num_wrong = 0

    def _offer(self, chunk: Chunk) -> tuple[list[int], list[float]]:
        decode = chunk.sequence.decode
        if decode is None or decode.drafter is None or chunk.count > 1 or not chunk.samples or not decode.num_sampled:
            return [], []
        most = min(15, decode.sampling.most_tokens - decode.num_launched - 1)
        unknown = chunk.sequence.tokens[chunk.begin] == UNKNOWN
        at = decode.num_sampled + unknown
        coming: Sequence[int] = self._texts.get(key_of(decode.call), [])[at:]
        right = list(coming[: self._draw.randrange(8)])[: max(most, 0)]
        wrong = [self._draw.randrange(self._vocab_size) for _ in range(self._draw.randrange(4))]
        wrong = wrong[: max(most - len(right), 0)]
        self.num_right += len(right)
        self.num_wrong += len(wrong)
        return [*right, *wrong], [1.0] * len([*right, *wrong])


def draft_wildly(engine: Engine, texts: Texts, draw: random.Random) -> WildDrafting:
    """From now on."""
    drafting = WildDrafting(engine.runner.overlaps, texts, draw)
    engine._drafting = drafting
    return drafting
