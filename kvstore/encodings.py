"""What an encoding is: the identity of one message's keys and values under one view.

The truth about a message is its token ids, its view and its positions; keys and values are a cache of
it. An `EncodingSpec` is that truth: whoever holds it can compute the encoding again, anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from struct import pack

EncodingId = str


@dataclass(frozen=True, slots=True)
class Placement:
    """Tokens `[begin, end)` of an encoding, the first of them at `position` in this view."""

    encoding_id: EncodingId
    position: int
    begin: int
    end: int

    @property
    def num_tokens(self) -> int:
        return self.end - self.begin

    @property
    def stop(self) -> int:
        """The position after the last placed token."""
        return self.position + self.num_tokens


@dataclass(frozen=True, slots=True)
class View:
    """What a call attends to: an encoding's own view and the encoding itself, then placements, in order.

    `prefix_id` stands for a whole chain: the view under which that encoding was computed, followed by
    the encoding at its own position. `extend` keeps views in the one form in which everything that
    can be folded into the prefix is, so equal views compare equal.
    """

    prefix_id: EncodingId | None = None
    placements: tuple[Placement, ...] = ()


EMPTY_VIEW = View()


@dataclass(frozen=True, slots=True)
class EncodingSpec:
    """How to compute an encoding: its tokens, the position of the first, and what they attend to.

    `namespace` names the model weights, tokenizer, RoPE, dtype, adapter and tenant. `exact` says that
    the encoding is what encoding its whole view as one prompt gives. With a `tolerance` it may also be predicted from
    other encodings of the same tokens (anchors.py), if that is expected to change what a reader says by no more than so
    many nats a token; so it is never exact.
    """

    encoding_id: EncodingId
    namespace: str
    tokens: tuple[int, ...]
    start: int
    view: View
    exact: bool
    tolerance: float = 0.0

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def stop(self) -> int:
        """The position after the last token, at the encoding's own place."""
        return self.start + len(self.tokens)


Specs = Mapping[EncodingId, EncodingSpec]
MutableSpecs = MutableMapping[EncodingId, EncodingSpec]


def owner_of(namespace: str) -> str:
    """Whose a namespace is: what is behind a # sets a part of it apart, and counts for the same share.

    >>> owner_of("model/tenant#trial"), owner_of("model/tenant")
    ('model/tenant', 'model/tenant')
    """
    return namespace.partition("#")[0]


COMMON = "*"
"""In the place of a tenant, whose names have no such character: what is granted to several is nobody's."""


def common_namespace(model_namespace: str) -> str:
    """
    >>> common_namespace("model")
    'model/*'
    """
    return f"{model_namespace}/{COMMON}"


def is_common(namespace: str) -> bool:
    """Whether its encodings are no tenant's, and count for none.

    >>> is_common("model/*#adapter=5f"), is_common("model/tenant")
    (True, False)
    """
    return owner_of(namespace).endswith(f"/{COMMON}")


ADAPTER = "#adapter="


def with_adapter(namespace: str, fingerprint: str) -> str:
    """The part of a namespace in which an adapter computes. "" is the plain model, the namespace itself.

    >>> with_adapter("model/tenant", "5f"), with_adapter("model/tenant", "")
    ('model/tenant#adapter=5f', 'model/tenant')
    """
    return f"{namespace}{ADAPTER}{fingerprint}" if fingerprint else namespace


def part_of(namespace: str, part: str) -> str:
    """What is set apart in a namespace, computed with the same adapter.

    >>> part_of("model/tenant#adapter=5f", "trial"), part_of("model/tenant", "trial")
    ('model/tenant#trial#adapter=5f', 'model/tenant#trial')
    """
    plain, mark, fingerprint = namespace.partition(ADAPTER)
    return f"{plain}#{part}{mark}{fingerprint}"


def adapter_of(namespace: str) -> str:
    """The fingerprint of the adapter that a namespace's encodings are computed with; "" for none.

    >>> adapter_of("model/tenant#trial#adapter=5f"), adapter_of("model/tenant#trial")
    ('5f', '')
    """
    return namespace.partition(ADAPTER)[2]


def make_spec(
    namespace: str, tokens: Sequence[int], start: int, view: View, specs: Specs, *, tolerance: float = 0.0
) -> EncodingSpec:
    """The spec of a message encoded at `start` under `view`. Equal arguments give equal ids.

    Raises ValueError for no tokens or a negative start, KeyError for a view that names unknown encodings.
    """
    if not tokens:
        raise ValueError("an encoding needs at least one token")
    if start < 0:
        raise ValueError(f"start is {start}, expected 0 or more")
    for placement in view.placements:
        if placement.encoding_id not in specs:
            raise KeyError(placement.encoding_id)
    exact = not tolerance and not view.placements and (view.prefix_id is None or specs[view.prefix_id].exact)
    digest = blake2b(digest_size=16)
    placed = ";".join(f"{p.encoding_id},{p.position},{p.begin},{p.end}" for p in view.placements)
    # Every field has a length or a fixed alphabet before it, so no two specs share their bytes.
    digest.update(f"{len(namespace)}:{namespace}|{start}|{view.prefix_id}|{placed}|{len(tokens)}|".encode())
    digest.update(token_bytes(tokens))
    if tolerance:
        digest.update(f"|{tolerance!r}".encode())
    return EncodingSpec(digest.hexdigest(), namespace, tuple(tokens), start, view, exact, tolerance)


def token_bytes(tokens: Sequence[int]) -> bytes:
    """4 of each. In less than half of the time that an array takes."""
    return pack(f"{len(tokens)}i", *tokens)


def extend(view: View, placement: Placement, specs: Specs) -> View:
    """`view` with one more placement, folded into the prefix where it is the prefix's exact continuation."""
    spec = specs[placement.encoding_id]
    whole = placement.begin == 0 and placement.end == spec.num_tokens
    if whole and placement.position == spec.start and not view.placements and spec.view == view:
        return View(spec.encoding_id)
    return View(view.prefix_id, (*view.placements, placement))


def flatten(view: View, specs: Specs) -> list[Placement]:
    """Every placement of `view` in order, the prefix's chain written out."""
    chain: list[Placement] = []
    prefix_id = view.prefix_id
    tail: list[Placement] = list(view.placements)
    while prefix_id is not None:
        spec = specs[prefix_id]
        chain.append(Placement(prefix_id, spec.start, 0, spec.num_tokens))
        # A prefix may itself have been computed under placements: they come before it.
        chain.extend(reversed(spec.view.placements))
        prefix_id = spec.view.prefix_id
    chain.reverse()
    return chain + tail


def view_stop(view: View, specs: Specs) -> int:
    """The position after the furthest placed token; 0 for an empty view."""
    return max((p.stop for p in flatten(view, specs)), default=0)


def dependencies(view: View) -> list[EncodingId]:
    """The encodings that `view` names itself."""
    named = [p.encoding_id for p in view.placements]
    return named if view.prefix_id is None else [view.prefix_id, *named]


def closure(roots: Iterable[EncodingId], specs: Specs) -> list[EncodingSpec]:
    """Every spec needed to compute `roots`, each after all that it depends on."""
    ordered: dict[EncodingId, EncodingSpec] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        encoding_id, expanded = stack.pop()
        if encoding_id in ordered:
            continue
        spec = specs[encoding_id]
        if expanded:
            ordered[encoding_id] = spec
            continue
        stack.append((encoding_id, True))
        stack.extend((parent, False) for parent in dependencies(spec.view) if parent not in ordered)
    return list(ordered.values())
