"""Gates between a load and the forward that reads it: the forward waits on the card, layer group by layer group."""

from __future__ import annotations

from itertools import pairwise

import torch


class LayerGates:
    """One event for each group of layers, at a fixed address, so that a captured forward can wait for it.

    `Copier.start(..., gates=...)` has the load stream record each as its group arrives. A forward passes a gate that
    no load has recorded since. The host must have given the card all of a gated load (`Copy.enqueued`) before it
    launches the forward: a graph waits for what was recorded when it was launched.
    """

    def __init__(self, num_layers: int, num_groups: int, device: torch.device) -> None:
        """Off a card there are groups and no events. Raises RuntimeError if this torch has no external events."""
        num_groups = min(num_groups, num_layers)
        bounds = [num_layers * group // num_groups for group in range(num_groups + 1)]
        self.groups = tuple(range(begin, end) for begin, end in pairwise(bounds))
        self.events: tuple[torch.cuda.Event, ...] = ()
        if device.type == "cuda":
            self.events = tuple(_external_event() for _ in self.groups)
            for event in self.events:  # one never recorded would be left out of a capture
                event.record(torch.cuda.current_stream(device))

    def group_beginning_at(self, layer: int) -> int | None:
        """The group whose first layer that is: where a forward has to wait."""
        return next((number for number, group in enumerate(self.groups) if group.start == layer), None)

    def wait(self, group: int) -> None:
        """Has the current stream wait for that group's keys and values; may be captured. Off a card, nothing."""
        if self.events:
            self.events[group].wait()


def _external_event() -> torch.cuda.Event:
    try:
        return torch.cuda.Event(external=True)  # type: ignore[no-untyped-call]
    except TypeError as error:
        raise RuntimeError(f"torch {torch.__version__} has no external events, by which a graph waits") from error
