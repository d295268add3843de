"""What the dispatcher tells and asks of those who keep the tenants' quotas."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from laban.kvstore.encodings import owner_of

NO_LIMITS: Mapping[str, int] = MappingProxyType({})


class Tenants:
    """These have no limits. `cluster.door.Door` keeps those that have."""

    @property
    def kv_bytes(self) -> Mapping[str, int]:
        """That a tenant may have in all tiers of a worker; the same object until that changes."""
        return NO_LIMITS

    def spent(self, tenant: str, num_tokens: int) -> None:
        """A call of the tenant's has ended, or was stopped by who asked for it, that encoded and generated so many."""


NO_TENANTS = Tenants()


def tenant_in(namespace: str, model: str) -> str:
    """
    >>> tenant_in("model/acme#trial", "model")
    'acme'
    """
    return owner_of(namespace).removeprefix(f"{model}/")
