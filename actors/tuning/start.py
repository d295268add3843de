"""The adapter that training starts from, another one's folder: what must be known of it first. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laban.actors.adapter_folder import check_adapter_folder
from laban.actors.errors import InvalidInput, UnsupportedModel
from laban.actors.model_folder import weight_shapes
from laban.actors.tuning.plan import TunePlan


@dataclass(frozen=True, slots=True)
class Start:
    """An adapter that can be trained on: every layer named by one of `targets` has factors of `rank`."""

    folder: str
    fingerprint: str
    rank: int
    alpha: float
    targets: tuple[str, ...]

    def options(self) -> dict[str, Any]:
        """Those of a `TunePlan` that the adapter settles."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": self.targets}

    def check(self, plan: TunePlan) -> None:
        """Raises InvalidInput for a plan of another adapter, naming the option."""
        for name, own in self.options().items():
            asked = getattr(plan, name)
            if (sorted(asked) if name == "targets" else asked) != (sorted(own) if name == "targets" else own):
                raise InvalidInput(
                    f"the adapter that is started from has {_shown(own)}: leave this out, or start from none",
                    field=f"--{name}", value=_shown(asked),
                )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.folder} (fingerprint {self.fingerprint})"


def read_start(path: str | Path, model_folder: str | Path, *, field: str = "--from") -> Start:
    """The adapter in `path`, once it is one of the model in `model_folder` that training goes on with as it is.

    Raises what `check_adapter_folder` raises, and UnsupportedModel for one that can be served and that no `TunePlan`
    says: rank-stabilized, of ranks that differ, or of some of the layers of a name alone. All name `field`.
    """
    facts = check_adapter_folder(path, model_folder, field=field)
    folder = str(facts.folder)
    if facts.by_root_of_rank:
        why = "the adapter is rank-stabilized (use_rslora), which is not trained on: expected a scale of alpha / rank"
        raise UnsupportedModel(why, field=field, value=folder)
    ranks = sorted(set(facts.ranks.values()))
    if len(ranks) > 1:
        why = f"the adapter has ranks from {ranks[0]} to {ranks[-1]}, expected one rank in all layers to train on"
        raise UnsupportedModel(why, field=field, value=folder)
    targets = tuple(dict.fromkeys(module.rpartition(".")[2] for module in facts.ranks))
    modules = [name.removesuffix(".weight") for name in weight_shapes(model_folder) if name.endswith(".weight")]
    for module in modules:
        if module.rpartition(".")[2] in targets and module not in facts.ranks:
            why = f"the adapter leaves out {module}, expected one with all layers of that name to train on"
            raise UnsupportedModel(why, field=field, value=folder)
    return Start(folder, facts.fingerprint, ranks[0], facts.alpha, targets)


def _shown(value: float | Sequence[str]) -> str:
    return f"{value:g}" if isinstance(value, int | float) else ",".join(value)
