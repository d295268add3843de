"""Encodings lent to other workers: pinned in host memory while they are read from there."""

from __future__ import annotations

from functools import partial

from laban.actors.engine.corrections import Corrections
from laban.actors.engine.disk_folder import chunk_of
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.tiers import Tiers
from laban.actors.transfers import Export, ExportRequest, Refused, Rows
from laban.kvstore.store import EncodingStore, Entry


class Exports:
    """Owned by the engine's thread; what is exported is read by others."""

    def __init__(self, tiers: Tiers, device: EncodingStore, corrections: Corrections) -> None:
        self._tiers, self._device, self._corrections = tiers, device, corrections
        self._waiting: list[ExportRequest] = []
        self.num_open = self._num_lent = 0

    def begin(self, request: ExportRequest) -> None:
        """Answers at once, or in `pump` if the encoding has to come to the host first."""
        tiers, encoding_id = self._tiers, request.encoding_id
        host, pool = tiers.host, tiers.pool
        if host is None or pool is None:
            request.answer(lambda: Refused("the worker has no host memory for encodings"))
            return
        on_device, on_host = self._device.get_ready(encoding_id), host.get(encoding_id)
        if on_device is not None and not tiers.host_has(on_device):
            on_host = None
        if self._corrections.mix_of(encoding_id) is not None:
            request.answer(lambda: Refused("the worker predicted it; it stays where that is known"))
        elif on_host is not None and on_host.ready:
            request.answer(lambda: self._export(pool, on_host))
        elif tiers.comes_from_peer(encoding_id):  # who may be waiting for us
            request.answer(lambda: Refused("the worker does not have it yet"))
        elif on_host is not None:  # it comes from the device or the disk
            self._waiting.append(request)
        elif on_device is None and not tiers.is_on_disk(encoding_id):
            request.answer(lambda: Refused("the worker does not have it"))
        elif tiers.save_one(self._device, on_device) if on_device else tiers.bring_for_others(encoding_id):
            self._waiting.append(request)
        else:
            request.answer(lambda: Refused("the worker's host memory is full of what is worth more"))

    def pump(self) -> None:
        """After copies have landed."""
        if not self._waiting:
            return
        host, pool = self._tiers.host, self._tiers.pool
        assert host is not None
        assert pool is not None
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            held = host.get(request.encoding_id)
            if held is None:
                request.answer(lambda: Refused("the worker could not bring it to its host memory"))
            elif held.ready:
                request.answer(partial(self._export, pool, held))
            elif not request.reply.cancelled():
                self._waiting.append(request)

    def end(self, export: Export) -> None:
        assert self._tiers.host is not None
        self.num_open -= 1
        self._tiers.host.unpin(export.entry)

    def _export(self, pool: HostPool, entry: Entry) -> Export:
        assert self._tiers.host is not None
        self._tiers.host.pin(entry)
        self.num_open += 1
        self._num_lent += 1

        def read(begin: int, end: int) -> Rows:
            return chunk_of(pool.read(entry.runs(begin, end)))

        num_tokens, window = entry.num_tokens, self._tiers.direct.window
        slots = tuple(entry.runs(0, num_tokens))
        return Export(self._num_lent, entry.key, num_tokens, pool.bytes_per_token, read, slots, window, entry)
