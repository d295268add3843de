"""How one kernel follows another on a card: it may be set up before the one before it has ended.

Between small kernels most of the time is spent ending one and starting the next. On a card that can (Hopper and later)
our kernels are launched while the one before still runs, and wait for its results on the card; they let the next one
in as soon as they have all begun. Nothing that an earlier kernel wrote is touched before the wait.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def following(device: torch.device) -> dict[str, bool]:
    """The keyword arguments of a launch of one of our kernels, which take EARLY."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return {"EARLY": False}
    return {"EARLY": True, "launch_pdl": True}
