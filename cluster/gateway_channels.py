"""Channels to other gateways, one for each address: a gateway that is gone, or a certificate that was renewed, leaves
none open behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from grpc import aio

from laban.cluster.tls import PeerCredentials, PeerTls

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 32 * 1024),
    # One that is stopped, or behind a broken network, does not keep those who watch through it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


@dataclass(slots=True, eq=False)
class _Way:
    channel: aio.Channel
    num_open: int = 0  # calls
    is_retired: bool = False  # closed with the last of these


class PeerChannels:
    """Lives in one event loop."""

    def __init__(self, tls: PeerTls | None, addresses: Callable[[], Collection[str]]) -> None:
        """Without `tls` others are reached without it. `addresses` are those where others are. Raises NotFound or
        InvalidInput for certificates."""
        self._secret = None if tls is None else PeerCredentials(tls)
        name = None if tls is None else tls.name
        self._options = OPTIONS if name is None else (*OPTIONS, ("grpc.ssl_target_name_override", name))
        self._addresses = addresses
        self._ways: dict[str, _Way] = {}  # by address
        self._retired: set[_Way] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Channels that are not closed."""
        return len(self._ways) + len(self._retired)

    @contextmanager
    def through(self, address: str) -> Iterator[aio.Channel]:
        """For one call, while that lasts."""
        way = self._way(address)
        way.num_open += 1
        try:
            yield way.channel
        finally:
            way.num_open -= 1
            self._close_if_over(way)

    async def close(self) -> None:
        """Calls that are open end."""
        for way in (*self._ways.values(), *self._retired):
            await way.channel.close(None)
        self._ways.clear()
        self._retired.clear()

    def _way(self, address: str) -> _Way:
        if self._secret is not None and self._secret.refresh():
            self._retire(list(self._ways))
        found = self._ways.get(address)
        if found is None:
            there = self._addresses()
            self._retire([each for each in self._ways if each not in there])
            if self._secret is None:
                channel = aio.insecure_channel(address, options=self._options)
            else:
                channel = aio.secure_channel(address, self._secret.of_channel, options=self._options)
            found = self._ways[address] = _Way(channel)
        return found

    def _retire(self, addresses: Collection[str]) -> None:
        for address in addresses:
            way = self._ways.pop(address)
            way.is_retired = True
            self._retired.add(way)
            self._close_if_over(way)

    def _close_if_over(self, way: _Way) -> None:
        if way.is_retired and not way.num_open and way in self._retired:
            self._retired.remove(way)
            task = asyncio.get_running_loop().create_task(way.channel.close(None))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
