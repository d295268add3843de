"""What a gateway needs where several share a journal: calls passed on, and pages of all there is."""

from __future__ import annotations

from collections.abc import Collection

from laban.cluster.config import LabanConfig
from laban.cluster.executor import Executor
from laban.cluster.gateway_relay import Relay
from laban.cluster.journal_reader import JournalReader
from laban.cluster.membership import Membership
from laban.cluster.records import WorkflowRecord
from laban.cluster.switchboard import Switchboard


class Sharing:
    def __init__(self, config: LabanConfig, executor: Executor, membership: Membership) -> None:
        """The configuration has a journal. Raises NotFound or InvalidInput for certificates."""
        assert config.journal.url is not None
        self._reader = JournalReader(config.journal.url)
        self._board = Switchboard(executor, self._reader, membership)
        self.relay = Relay(self._board, executor.shelf, config.server.peer_tls)

    async def page(
        self, *, page_size: int = 0, page_token: str = "", states: Collection[str] = (), tenant: str | None = None
    ) -> tuple[list[WorkflowRecord], str]:
        return await self._board.page(page_size=page_size, page_token=page_token, states=states, tenant=tenant)

    async def close(self) -> None:
        await self.relay.close()
        await self._reader.close()
