"""How an adapter is trained: plain values. Never imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from laban.actors.adapter_folder import TARGETS
from laban.actors.errors import InvalidInput

INSTALL = "pip install '.[server,tune]'"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class TunePlan:
    """The defaults are the recipe of Prompt Choreography (arXiv 2512.23049), but for the loss: KL, not hard labels.

    `hard` is the weight of the tokens said themselves beside the whole distribution: 1 is imitation alone.
    `batch` lessons make a step of the optimizer. `warmup` is a share of the steps.
    """

    rank: int = 64
    alpha: float = 32.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ATTENTION
    learning_rate: float = 5e-5
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    epochs: int = 4
    batch: int = 4
    hard: float = 0.0
    seed: int = 0
    dtype: str = "auto"
    checkpoint_every: int = 10  # steps

    def check(self) -> None:
        """Raises InvalidInput, naming the option."""
        bounds: dict[str, tuple[float, float]] = {
            "rank": (1, 512), "alpha": (1e-3, 1e4), "dropout": (0, 0.9), "learning_rate": (1e-8, 1), "warmup": (0, 1),
            "epochs": (1, 1000), "batch": (1, 4096), "hard": (0, 1), "checkpoint_every": (1, 1_000_000),
        }  # fmt: skip
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise InvalidInput(f"expected {least:g} to {most:g}", field=_flag(name), value=value)
        if self.dtype not in DTYPES:
            raise InvalidInput(f"expected one of {', '.join(DTYPES)}", field="--dtype", value=self.dtype)
        for target in self.targets:
            if target not in TARGETS:
                raise InvalidInput(f"expected some of {', '.join(TARGETS)}", field="--targets", value=target)
        if not self.targets:
            raise InvalidInput(f"expected some of {', '.join(TARGETS)}", field="--targets")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"targets": list(self.targets)}

    def num_steps(self, num_lessons: int) -> int:
        """Of the optimizer; an epoch's last one may have fewer lessons."""
        return self.epochs * -(-num_lessons // self.batch)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class StepScore:
    """A step's tokens on held-out inputs, or with `step` "" all of them: of the plain model, and with the adapter."""

    step: str
    num_tokens: int
    kl_before: float
    kl_after: float
    p95_before: float
    p95_after: float
    agreement_before: float
    agreement_after: float


@dataclass(frozen=True, slots=True)
class Scores:
    """`kl_interval` is the 95 % interval of kl_after / kl_before, resampling inputs; None for a single one."""

    steps: tuple[StepScore, ...]
    num_inputs: int
    ratio: float
    ratio_interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Said:
    """How far training is. `loss` is of the last step, nats a token; `held_out` of the last look at held-out inputs."""

    doing: str
    step: int
    num_steps: int
    loss: float = 0.0
    held_out: float | None = None
    before: float | None = None
