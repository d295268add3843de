"""Which workflow it is that something was found of.

It is known by all of it but the levels that it asks for, with their shares: prompts, steps and sampling. So what was
found under one level serves the choice among them, and a change of anything else makes it another workflow, of which
nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from hashlib import blake2b

from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE
from laban.cluster.workflow.schema import LoopBlock, Step, WhenBlock, Workflow

Block = Step | LoopBlock | WhenBlock


def digest_of(workflow: Workflow) -> str:
    """Slow for large ones: call it off the event loop."""
    bare = with_steps(workflow, _bare).model_dump(mode="json")
    return blake2b(json.dumps(bare, sort_keys=True).encode(), digest_size=16).hexdigest()


def with_steps(workflow: Workflow, change: Callable[[Step], Step]) -> Workflow:
    """The workflow, and those within it, without levels of their own: `change` says what their steps have."""
    within = {name: with_steps(inner, change) for name, inner in workflow.workflows.items()}
    changes: dict[str, object] = {
        "fidelity": "exact", "tolerance": None, "recompute_share": RECOMPUTE_SHARE, "description": "",
    }  # fmt: skip
    if within:
        changes["workflows"] = within
    return workflow.model_copy(update=changes | {"steps": changed(workflow.steps, change)})


def changed(entries: Iterable[Block], change: Callable[[Step], Step]) -> list[Block]:
    """Steps, and blocks of them, with each step changed."""
    found: list[Block] = []
    for entry in entries:
        if isinstance(entry, Step):
            found.append(change(entry))
            continue
        update: dict[str, object] = {"steps": changed(entry.steps, change)}
        if isinstance(entry, WhenBlock) and entry.otherwise:
            update["otherwise"] = changed(entry.otherwise, change)
        found.append(entry.model_copy(update=update))
    return found


def at_share(workflow: Workflow, share: float) -> Workflow:
    """The workflow, and those within it, with this one share for all that is blended."""
    changes: dict[str, object] = {"recompute_share": share, "steps": changed(workflow.steps, _shareless)}
    if workflow.workflows:
        changes["workflows"] = {name: at_share(inner, share) for name, inner in workflow.workflows.items()}
    return workflow.model_copy(update=changes)


def _shareless(step: Step) -> Step:
    return _without(step, "recompute_share")


def _bare(step: Step) -> Step:
    return _without(step, "fidelity", "tolerance", "recompute_share")


def _without(step: Step, *names: str) -> Step:
    """Of the step and of its reads."""
    nothing: dict[str, object] = dict.fromkeys(names)
    return step.model_copy(update=nothing | {"read": [read.model_copy(update=nothing) for read in step.read]})
