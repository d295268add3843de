"""How fast this worker is, measured as it goes: what encoding and loading are expected to take."""

from __future__ import annotations

from dataclasses import fields

from laban.actors.calls import WorkerRates

WEIGHT = 0.2
# An iteration that encodes fewer says more about its fixed cost.
MIN_TOKENS_ON_CARD, MIN_TOKENS_ON_CPU = 256, 64
MIN_COPY_BYTES = 1 << 20

FIELDS = tuple(field.name for field in fields(WorkerRates))
# Until there is something measured.
DEFAULTS_ON_CARD = WorkerRates(30_000.0, 0.010, 25e9, 2e9, 2e9)
DEFAULTS_ON_CPU = WorkerRates(500.0, 0.050, 4e9, 1e9, 0.5e9)


class MeasuredRates:
    """Moving averages. `known` are the measured ones; `expected` those last adopted, with defaults for the rest."""

    def __init__(self, on_card: bool, link_bytes_per_s: float | None) -> None:
        self._defaults = DEFAULTS_ON_CARD if on_card else DEFAULTS_ON_CPU
        self._min_tokens = MIN_TOKENS_ON_CARD if on_card else MIN_TOKENS_ON_CPU
        self._limit = link_bytes_per_s
        self._measured: dict[str, float] = {}
        self._values: dict[str, float] = {}
        self._expected: WorkerRates | None = None

    def took(self, num_tokens: int, decodes_only: bool, seconds: float) -> None:
        """An iteration that computed `num_tokens`."""
        if seconds <= 0:
            return
        if decodes_only:
            self._add("iteration_s", seconds)
        elif num_tokens >= self._min_tokens:
            self._add("encode_tokens_per_s", num_tokens / seconds)

    def loaded(self, num_bytes: int, seconds: float) -> None:
        """From host memory to the device."""
        self.copied("host", num_bytes, seconds)

    def adopt(self, known: WorkerRates) -> None:
        """What is expected from now on: what was measured, in a worker of several shards by the first one. What is
        measured in between changes nothing, so that all decide alike."""
        values = {name: value for name in FIELDS if (value := getattr(known, name))}
        if values != self._values:
            self._values, self._expected = values, None

    def copied(self, kind: str, num_bytes: int, seconds: float) -> None:
        """`kind` is host, disk, peer or a transport."""
        if num_bytes >= MIN_COPY_BYTES and seconds > 0:
            self._add(f"{kind}_bytes_per_s", num_bytes / seconds)

    @property
    def known(self) -> WorkerRates:
        return WorkerRates(**self._measured)

    @property
    def expected(self) -> WorkerRates:
        if self._expected is None:
            self._expected = self._with_defaults()
        return self._expected

    def _with_defaults(self) -> WorkerRates:
        host = self._defaults.host_bytes_per_s
        assumed = {"host_bytes_per_s": min(host, self._limit or host)}
        return WorkerRates(
            **{name: self._values.get(name, assumed.get(name, getattr(self._defaults, name))) for name in FIELDS}
        )

    def _add(self, name: str, value: float) -> None:
        before = self._measured.get(name)
        self._measured[name] = value if before is None else before + WEIGHT * (value - before)
