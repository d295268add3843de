"""A workflow that had ended before this process began, as far as somebody may still ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from laban.actors.errors import LabanError
from laban.cluster.external import ExternalSteps, StepOwner
from laban.cluster.inbox import Inbox
from laban.cluster.journal_records import Archive
from laban.cluster.records import NextUse
from laban.cluster.replay import Nobody
from laban.kvstore.encodings import EncodingId
from laban.kvstore.uses import Use


class Finished:
    """What an Execution is after its end."""

    def __init__(self, archive: Archive) -> None:
        self.workflow_id = archive.record.workflow_id
        self.board = archive.board()
        # No step is open, so its owner is never asked for anything.
        self.external = ExternalSteps(self.board, {}, Nobody(), cast(StepOwner, None))
        self.external.answers = archive.answers
        self.inbox = Inbox(self.workflow_id, lambda move, at: None, log=None, clock=lambda: 0.0)

    def next_uses(self, address: str, uses: Mapping[EncodingId, Use]) -> tuple[NextUse, ...]:
        return ()

    async def look_over(self, address: str, text: str) -> None:
        """No step of it is answered any more."""

    def cancel(self) -> None:
        """It has ended."""

    def leave(self, why: LabanError) -> None:
        """Nothing of it is anywhere."""
