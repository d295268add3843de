"""Where encodings are at home: in one tenant's namespace, but for those that are granted to several.

A namespace is part of every encoding's id (`encodings.make_spec`). So what is computed in another one is another
encoding, and a view that begins in a common one goes on in the tenant's own: its first encoding there names what is
before it by its id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from laban.kvstore.encodings import (
    EncodingId,
    EncodingSpec,
    MutableSpecs,
    Specs,
    View,
    closure,
    dependencies,
    make_spec,
)

Granted = Mapping[tuple[int, View], tuple[EncodingSpec, ...]]
"""Encodings at home in a common namespace, by the place of their first token and what they attend to."""

NOTHING: Granted = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Space:
    """A tenant's encodings, of one model and adapter. `granted` are those that it shares with other tenants."""

    namespace: str
    granted: Granted = field(default_factory=dict)

    def find(self, tokens: Sequence[int], start: int, view: View) -> EncodingSpec | None:
        """The granted encoding of exactly these tokens, at that place, under that view."""
        if not self.granted:
            return None
        here = self.granted.get((start, view), ())
        return next((spec for spec in here if spec.tokens == tuple(tokens)), None)

    def spec(
        self, tokens: Sequence[int], start: int, view: View, specs: Specs, *, tolerance: float = 0.0
    ) -> EncodingSpec:
        """As `make_spec`, but for what is granted."""
        found = None if tolerance else self.find(tokens, start, view)
        return found or make_spec(self.namespace, tokens, start, view, specs, tolerance=tolerance)

    def has(self, spec: EncodingSpec) -> bool:
        """Whether it is an encoding of this space."""
        return spec.namespace == self.namespace or spec in self.granted.get((spec.start, spec.view), ())


def moved(root: EncodingId, space: Space, specs: MutableSpecs, known: dict[EncodingId, EncodingId]) -> EncodingId:
    """The encoding of the same tokens, at the same place under the same view, in `space`; so of all it depends on.

    Specs that are not there yet are put into `specs`. `known` (id -> id there) is filled, and saves work next time.
    """
    for spec in closure([root], specs):
        if spec.encoding_id in known:
            continue
        made = space.spec(spec.tokens, spec.start, _renamed(spec.view, known), specs, tolerance=spec.tolerance)
        specs.setdefault(made.encoding_id, made)
        known[spec.encoding_id] = made.encoding_id
    return known[root]


def moved_view(view: View, space: Space, specs: MutableSpecs) -> View:
    """The view with all that it names as `moved` has it in `space`, which is put into `specs`."""
    known: dict[EncodingId, EncodingId] = {}
    for encoding_id in dependencies(view):
        moved(encoding_id, space, specs, known)
    return _renamed(view, known)


def _renamed(view: View, known: Mapping[EncodingId, EncodingId]) -> View:
    placements = tuple(replace(placement, encoding_id=known[placement.encoding_id]) for placement in view.placements)
    return View(None if view.prefix_id is None else known[view.prefix_id], placements)
