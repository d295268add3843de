"""Idempotency keys: which workflow each has started, and with what content."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from laban.actors.errors import Conflict, InvalidInput, Unavailable
from laban.cluster.texts import check_plain
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides

MAX_KEY = 128

Key = tuple[str, str]
"""A tenant and what it calls its key."""


class KeyTaken(Unavailable):
    """A key is in the journal already, of a workflow that may be another Laban's."""

    def __init__(self, workflow_id: str, content: str) -> None:
        super().__init__("the workflow of this idempotency key is with another Laban: try again")
        self.workflow_id = workflow_id
        self.content = content


@dataclass(frozen=True, slots=True)
class _Claim:
    workflow_id: str
    content: str
    accepted: asyncio.Future[None] | None  # while it is being written to the journal


class Claims:
    """Lives in one event loop."""

    def __init__(self) -> None:
        self._claims: dict[Key, _Claim] = {}
        self._keys: dict[str, Key] = {}  # by workflow

    def put(
        self, key: Key | None, workflow_id: str, content: str, accepted: asyncio.Future[None] | None = None
    ) -> None:
        """`accepted` is done once it is known whether the workflow is accepted; until then others with the key wait."""
        if key is not None:
            self._claims[key] = _Claim(workflow_id, content, accepted)
            self._keys[workflow_id] = key

    def drop(self, workflow_id: str) -> None:
        """The key is free again. One without is no error."""
        key = self._keys.pop(workflow_id, None)
        if key is not None:
            del self._claims[key]

    def __len__(self) -> int:
        return len(self._keys)

    async def find(self, key: Key | None, content: str) -> str | None:
        """The workflow that the same content started. Raises Conflict for a key that was used with other content."""
        while key is not None and (claim := self._claims.get(key)) is not None:
            if claim.content != content:
                raise used_before(key[1])
            if claim.accepted is None or claim.accepted.done():
                return claim.workflow_id
            await asyncio.wait([claim.accepted])
        return None


def used_before(key: str | None) -> Conflict:
    return Conflict("was used before, with other content", field="idempotency_key", value=key)


def key_of(tenant: str, given: str | None) -> Key | None:
    """Raises InvalidInput for one that is too long, or has control characters."""
    if not given:
        return None
    if len(given) > MAX_KEY:
        raise InvalidInput(f"expected at most {MAX_KEY} characters", field="idempotency_key", value=given)
    check_plain(given, "idempotency_key")
    return (tenant, given)


def digest(workflow: Workflow, inputs: Mapping[str, object], overrides: Overrides) -> str:
    """Of what was submitted: the same for the same, whoever sends it."""
    changes = sorted((address, name, repr(value)) for (address, name), value in overrides.set.items())
    content = [workflow.model_dump(mode="json"), dict(inputs), overrides.fidelity, overrides.seed, changes]
    return blake2b(json.dumps(content, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()
