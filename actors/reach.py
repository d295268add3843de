"""By which transports workers can have encodings of each other. Plain values, for the control plane as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Transport = Literal["cma", "nixl", "object_store"]
"""How tokens cross. `cma`, cross-memory attach: the reader copies them out of the other process of its machine
(process_vm_readv). `nixl`: it reads them one-sidedly over RDMA or TCP (NVIDIA's NIXL). `object_store`: the other worker
sends them through Ray. With the first two the other worker does nothing while it is read."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Who can read a worker's host memory, and whose it can read."""

    machine: str = ""  # the same for workers whose processes see each other; "": none does
    transports: tuple[Transport, ...] = ("object_store",)  # that it speaks, the preferred first


def transport_between(reader: Reach, holder: Reach) -> Transport:
    """The first of the reader's that serves between the two; both sides and the router go by it.

    >>> here, there = Reach("m", ("cma", "nixl", "object_store")), Reach("n", ("cma", "nixl", "object_store"))
    >>> transport_between(here, here), transport_between(here, there), transport_between(here, Reach("m"))
    ('cma', 'nixl', 'object_store')
    """
    for transport in reader.transports:
        if transport in holder.transports and (transport != "cma" or reader.machine == holder.machine != ""):
            return transport
    return "object_store"
