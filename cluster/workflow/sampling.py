"""Sampling as one instance will use it: the step's values over its agent's over the workflow's."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from laban.cluster.workflow.schema import Sampling


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """Every value decided but the seed: None means `instance_seed` of the run's seed."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    forced_text: str | None = None
    logprobs: int | None = None
    drafting: bool = True


def merge(*layers: Sampling) -> SamplingSpec:
    """The first layer that gives a value wins."""
    given: dict[str, object] = {}
    for layer in reversed(layers):
        given.update(layer.model_dump(exclude_none=True))
    if "stop" in given:
        stop = given["stop"]
        assert isinstance(stop, list)
        given["stop"] = tuple(stop)
    return SamplingSpec(**given)  # type: ignore[arg-type]


def instance_seed(seed: int, address: str) -> int:
    """A seed in [0, 2**63) for one instance: siblings of one run differ, equal runs agree.

    >>> instance_seed(7, "propose[1]") == instance_seed(7, "propose[1]") != instance_seed(7, "propose[2]")
    True
    """
    digest = blake2b(f"{seed}|{address}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
