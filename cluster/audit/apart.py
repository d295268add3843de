"""Calls whose encodings may be predicted, set apart from what `exact` has encoded.

A worker predicts nothing that it has encoded already under the same view (`actors/engine/corrections.py`). An audit
runs `exact` first: beside it the worker would answer with just that, and no difference would be found. What predictions
are made from is found by its owner, so it is there in every part of a tenant's namespace.
"""

from __future__ import annotations

from dataclasses import replace

from laban.actors.calls import Call
from laban.cluster.workflow.fidelity import Fidelity
from laban.kvstore.encodings import closure, dependencies, part_of
from laban.kvstore.spaces import Space, moved_view

PREDICTED: Fidelity = "corrected"


def apart(call: Call, namespace: str, part: str) -> Call:
    """The same call, with all that it reads and makes in a part of `namespace`, which is its tenant's. What is granted
    is there once more."""
    specs = {spec.encoding_id: spec for spec in call.specs}
    space = Space(part_of(namespace, part))
    view = moved_view(call.view, space, specs)
    return replace(call, namespace=space.namespace, view=view, specs=tuple(closure(dependencies(view), specs)))
