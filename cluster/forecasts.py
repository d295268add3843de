"""What a run, a session or a hint says will be read: each asked anew when it has moved, or some time has passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from laban.cluster.leftovers import Left
from laban.cluster.outlook import Reader, RunOutlook
from laban.cluster.prefetching import MAX_READERS, Coming
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import ReadyStep
from laban.kvstore.encodings import EncodingId, EncodingSpec, Placement, View
from laban.kvstore.uses import Use

UNKNOWN_S = 600.0
"""Until the next read of a message in an open session, of which nobody knows anything."""
UNKNOWN_STEPS = 1000
UNKNOWN_LIKELIHOOD = 0.5
MAX_OF_SESSION = 512  # of a session's encodings, the latest
AGAIN_S = 0.1
"""At the soonest, a run that has not moved is looked at again after so long."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Uses are dated; the soonest come first. `again_s`: when to ask again, whatever happens. `over` is what the source
    will not read any more, each told once, and the workers where it did."""

    uses: Mapping[EncodingId, Use]
    coming: Sequence[Coming] = ()
    again_s: float | None = None
    over: Left = field(default_factory=dict)


class Forecast(Protocol):
    @property
    def specs(self) -> Mapping[EncodingId, EncodingSpec]:
        """Of what will be read, and of all that it depends on."""

    def look(self, now_s: float) -> Seen | None:
        """None: nothing will be read any more."""


class RunForecast:
    """Of a workflow, whose id is `source`."""

    def __init__(self, source: str, outlook: RunOutlook, rank: int) -> None:
        self._source, self._outlook, self._rank = source, outlook, rank

    @property
    def specs(self) -> Mapping[EncodingId, EncodingSpec]:
        return self._outlook.specs

    @property
    def unprepared(self) -> Sequence[Run]:
        return self._outlook.unprepared

    def look(self, now_s: float) -> Seen:
        look = self._outlook.look(now_s)
        uses = {each: dated(use, now_s) for each, use in look.uses.items()}
        coming = [self._coming(reader, now_s) for reader in look.readers[:MAX_READERS]]
        again_s = None if look.again_s is None else now_s + max(look.again_s, AGAIN_S)
        return Seen(uses, coming, again_s, look.over)

    def note(self, step: ReadyStep, worker_id: str) -> None:
        self._outlook.note(step, worker_id)

    def end(self) -> Left:
        return self._outlook.end()

    def _coming(self, reader: Reader, now_s: float) -> Coming:
        encodings = [encoding_id for encoding_id, _ in reader.encodings]
        return Coming(
            name=f"{self._source}/{reader.address}",
            at_s=now_s + reader.in_s,
            likelihood=reader.likelihood,
            rank=self._rank,
            namespace=reader.namespace,
            view=reader.spot.view,
            start=reader.spot.stop,
            encodings=encodings,
            specs=self._outlook.specs,
        )


class SessionForecast:
    """Of an open session: its messages, to be read nobody knows when. `encodings` gives theirs, the latest last."""

    def __init__(
        self,
        encodings: Callable[[], Sequence[EncodingId]],
        specs: Callable[[], Mapping[EncodingId, EncodingSpec]],
    ) -> None:
        self._encodings, self._specs = encodings, specs

    @property
    def specs(self) -> Mapping[EncodingId, EncodingSpec]:
        return self._specs()

    def look(self, now_s: float) -> Seen:
        use = Use(UNKNOWN_STEPS, now_s + UNKNOWN_S, UNKNOWN_LIKELIHOOD)
        return Seen(dict.fromkeys(self._encodings()[-MAX_OF_SESSION:], use), again_s=now_s + UNKNOWN_S / 2)


class HintForecast:
    """Of a call that a client has told of, or with `prefetch` unset of what many will read; `uses` are dated. Nothing
    is left of it from `expires_s` on."""

    def __init__(
        self,
        source: str,
        uses: Mapping[EncodingId, Use],
        specs: Sequence[EncodingSpec],
        expires_s: float,
        *,
        prefetch: bool = True,
    ) -> None:
        self.specs = {spec.encoding_id: spec for spec in specs}
        self._seen = Seen(uses, self._coming(source, uses) if prefetch else (), expires_s)
        self._expires_s = expires_s

    def look(self, now_s: float) -> Seen | None:
        return self._seen if now_s < self._expires_s else None

    def _coming(self, source: str, uses: Mapping[EncodingId, Use]) -> Sequence[Coming]:
        """It reads its encodings in their order; at which positions does not matter here."""
        read = [self.specs[encoding_id] for encoding_id in uses]
        if not read:
            return ()
        use = uses[read[0].encoding_id]
        return (
            Coming(
                name=source,
                at_s=use.in_s,
                likelihood=use.likelihood,
                rank=use.rank,
                namespace=read[0].namespace,
                view=View(None, tuple(Placement(spec.encoding_id, spec.start, 0, spec.num_tokens) for spec in read)),
                start=max(spec.stop for spec in read),
                encodings=list(uses),
                specs=self.specs,
            ),
        )


def dated(use: Use, now_s: float) -> Use:
    """On the clock, of one that counts from now; with `-now_s` the other way round."""
    return Use(use.steps, use.in_s + now_s, use.likelihood, use.fixed, use.rank)
