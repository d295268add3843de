"""What tenants may have in all tiers of a worker together."""

from __future__ import annotations

from collections.abc import Iterable

from laban.actors.engine.tiers import Tiers
from laban.kvstore.store import EncodingStore


class TenantLimits:
    """The device comes first: a tenant may fill all it has there. What is left the host may have, and then the disk.

    So `keep`, called between iterations, takes from the disk and then from the host what the device took meanwhile.
    Over the limit is only what is being copied, for as long as that takes.
    """

    def __init__(self, device: EncodingStore, tiers: Tiers, num_parts: int = 1) -> None:
        """`num_parts` shards have as many parts of each encoding; a limit is for all of them together."""
        self._device, self._tiers, self._num_parts = device, tiers, num_parts
        self._bytes: dict[str, int] = {}

    def take(self, limits: Iterable[tuple[str, int]]) -> None:
        """Namespaces, and bytes. They replace what was said before."""
        self._bytes = {tenant: most // self._num_parts for tenant, most in limits}
        page_bytes = self._device.page_size * self._tiers.needs.bytes_per_token
        self._device.limits = {tenant: most // page_bytes for tenant, most in self._bytes.items()}
        self._share()

    def keep(self) -> None:
        """Take from who has too much."""
        if not self._bytes:
            return
        for tenant in self._bytes:
            self._device.shrink(tenant)
        self._share()
        for tenant in self._bytes:
            self._tiers.shrink_disk(tenant)
            if self._tiers.host is not None:
                self._tiers.host.shrink(tenant)

    def _share(self) -> None:
        """The lower tiers' limits follow what is above them."""
        tiers, disk, host = self._tiers, {}, {}
        per_token = tiers.needs.bytes_per_token
        for tenant, most in self._bytes.items():
            left = max(0, most - self._device.taken(tenant) * self._device.page_size * per_token)
            if tiers.host is not None:
                page_bytes = tiers.host.page_size * per_token
                host[tenant] = left // page_bytes
                left = max(0, left - tiers.host.taken(tenant) * page_bytes)
            disk[tenant] = left
        tiers.limit_disk(disk)
        if tiers.host is not None:
            tiers.host.limits = host
