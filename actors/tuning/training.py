"""Trains an adapter so that a workflow's steps say under a level that reuses encodings what they said under `exact`.

One process, or one of several that share the work: each takes its part of every batch, and gradients are added up.
The first writes checkpoints, from which the same call goes on.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from laban.actors.engine.load import keep_freed_memory
from laban.actors.errors import FailedPrecondition, InvalidInput
from laban.actors.tuning.lessons import Graph, Lesson, joined
from laban.actors.tuning.losses import Measured, divergence, measure, said_hidden
from laban.actors.tuning.packed import Packed
from laban.actors.tuning.plan import INSTALL, Said, Scores, StepScore, TunePlan
from laban.actors.tuning.start import Start

CHECKPOINT = "checkpoint.pt"
NUM_RESAMPLES = 1000
TEACHER_BYTES = 2 << 30
ACTIVATION_BYTES = 2 << 30  # on a CPU
PACK_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Lessons that are as small together are one forward. A card waits for its launches in small ones: 16,384 tokens of a
model of 135 M parameters keep an H100 busy for 0.16 s, and take 0.47 s to be launched."""

Tell = Callable[[Said], None]


class Learner:
    """A model with an adapter, and what trains it. `rank` of `size` processes. Lessons are told by identity."""

    def __init__(
        self, model: PreTrainedModel, plan: TunePlan, num_lessons: int, *, start: Start | None = None, rank: int = 0,
        size: int = 1,
    ) -> None:  # fmt: skip
        """`model` gets the adapter, a new one or that of `start`, and its attention is replaced.

        Raises FailedPrecondition without PEFT, InvalidInput for a `plan` of another adapter than `start`.
        """
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise FailedPrecondition(f"PEFT is not installed, and trains the adapter: {INSTALL}") from None
        if start is not None:
            start.check(plan)
        self.plan, self.rank, self.size = plan, rank, size
        torch.manual_seed(plan.seed)  # every process begins with the same factors
        alpha: Any = plan.alpha  # declared as a whole number; any will do
        config = LoraConfig(
            r=plan.rank, lora_alpha=alpha, lora_dropout=plan.dropout, target_modules=list(plan.targets),
            bias="none", task_type="CAUSAL_LM",
        )  # fmt: skip
        self.packed = Packed(model)
        self.peft: Any = get_peft_model(model, config)
        if start is not None:
            self._take(start)
        self._is_mixed = model.device.type == "cuda" and model.dtype == torch.bfloat16
        if self._is_mixed:  # else PEFT copies all that factors are applied to into float32, a third of the time
            layers: list[Any] = [each for each in self.peft.modules() if hasattr(each, "cast_input_dtype_enabled")]
            for layer in layers:
                layer.cast_input_dtype_enabled = False
        self._taught: dict[int, Tensor] = {}
        self._num_kept_bytes = 0
        self._recomputes = False
        self.weights: dict[str, nn.Parameter] = {n: p for n, p in self.peft.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
        )
        self.num_steps = plan.num_steps(num_lessons)
        self.num_warm = round(plan.warmup * self.num_steps)
        self.step = 0
        torch.manual_seed(plan.seed + rank)  # of dropout

    def _take(self, start: Start) -> None:
        """Its factors, all of them."""
        from peft import load_peft_weights, set_peft_model_state_dict

        weights = load_peft_weights(start.folder, device="cpu")
        found: Any = set_peft_model_state_dict(self.peft, weights)
        lacking = [name for name in found.missing_keys if ".lora_" in name]
        if odd := [*lacking, *found.unexpected_keys]:
            raise InvalidInput(f"the adapter {start} is not of this model: {odd[0]}", field="--from")

    def teacher(self, lessons: Sequence[Lesson]) -> Tensor:
        """What the plain model has under `exact` before each token said: [num_said, hidden_size]. Kept on the host for
        the next epoch, as far as there is room."""
        device = self.packed.model.device
        new = [lesson for lesson in lessons if id(lesson) not in self._taught]
        found: dict[int, Tensor] = {}
        for pack in packs(new, [lesson.exact.num_tokens for lesson in new], PACK_TOKENS[device.type]):
            taught = self.taught(joined(lesson.exact for lesson in pack))
            parts = torch.split(taught, [lesson.exact.num_said for lesson in pack])
            found |= {id(lesson): part for lesson, part in zip(pack, parts, strict=True)}
            if self._num_kept_bytes < TEACHER_BYTES:
                self._taught |= {id(lesson): found[id(lesson)].to("cpu", copy=True) for lesson in pack}
                self._num_kept_bytes += taught.numel() * taught.itemsize
        keys = [id(lesson) for lesson in lessons]
        return torch.cat([found[key] if key in found else self._taught[key].to(device) for key in keys])

    def taught(self, graph: Graph) -> Tensor:
        """What the plain model has before the tokens that `graph` says: [num_said, hidden_size]."""
        self.peft.eval()
        with torch.no_grad(), self.peft.disable_adapter():
            return said_hidden(self.packed, graph)[0]

    def loss(self, lessons: Sequence[Lesson]) -> Tensor:
        """The sum over the tokens said, with a gradient for the adapter, in one forward."""
        taught, level = self.teacher(lessons), joined(lesson.level for lesson in lessons)
        self.peft.train()
        self._recompute(level)
        with self._mixed():
            hidden, tokens = said_hidden(self.packed, level)
        return divergence(self.packed, taught, hidden, tokens, self.plan.hard)

    def _mixed(self) -> torch.autocast:
        """On a card float32 factors are computed with in the model's bfloat16, as they are when they serve."""
        model = self.packed.model
        return torch.autocast(model.device.type, model.dtype, enabled=self._is_mixed)

    def _recompute(self, graph: Graph) -> None:
        """Layers are computed again for the gradient where the activations of all of them would not fit."""
        model: Any = self.packed.model
        config, device = model.config, model.device
        per_token = model.dtype.itemsize * (16 * config.hidden_size + 4 * config.intermediate_size)
        room = _free_bytes(device) * 3 // 4 if device.type == "cuda" else ACTIVATION_BYTES
        recomputes = graph.num_tokens * config.num_hidden_layers * per_token > room
        if recomputes == self._recomputes:
            return
        self._recomputes = recomputes
        if recomputes:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()

    def learn(self, lessons: Sequence[Lesson]) -> float:
        """A step of the optimizer on a batch, of which this process takes its part. The mean loss, nats a token."""
        num_tokens = sum(lesson.level.num_said for lesson in lessons)
        total = torch.zeros((), device=self.packed.model.device)
        self.optimizer.zero_grad(set_to_none=False)
        own = lessons[self.rank :: self.size]
        limit = PACK_TOKENS[self.packed.model.device.type]
        for pack in packs(own, [lesson.level.num_tokens for lesson in own], limit):
            loss = self.loss(pack) / num_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._add_up(total)
        if not math.isfinite(total.item()):
            raise FailedPrecondition(f"the loss is {total.item()} at step {self.step}: lower --learning-rate")
        nn.utils.clip_grad_norm_(self.weights.values(), self.plan.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * self.pace(self.step)
        self.optimizer.step()
        self.step += 1
        return float(total)

    def pace(self, step: int) -> float:
        """The learning rate's share at a step: rises evenly while it warms up, then falls with a cosine to 0."""
        if step < self.num_warm:
            return (step + 1) / self.num_warm
        return 0.5 * (1 + math.cos(math.pi * (step - self.num_warm) / max(1, self.num_steps - self.num_warm)))

    def batch(self, lessons: Sequence[Lesson], step: int) -> list[Lesson]:
        """Of a step: every epoch goes through all in an order of its own."""
        in_epoch = -(-len(lessons) // self.plan.batch)
        order = list(lessons)
        random.Random(f"{self.plan.seed}/{step // in_epoch}").shuffle(order)
        begin = step % in_epoch * self.plan.batch
        return order[begin : begin + self.plan.batch]

    def measured(self, lesson: Lesson, *, plain: bool = False) -> Measured:
        """What the level says, with the adapter or by the plain model, against what that says under `exact`."""
        taught = self.teacher([lesson])
        if plain:
            return measure(self.packed, taught, self.taught(lesson.level))
        self.peft.eval()
        with torch.no_grad(), self._mixed():
            hidden, _ = said_hidden(self.packed, lesson.level)
        return measure(self.packed, taught, hidden)

    def _add_up(self, total: Tensor) -> None:
        """Gradients, and the loss, of all processes."""
        if self.size == 1:
            return
        for parameter in self.weights.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([total.reshape(1), *(p.grad.float().flatten() for p in self.weights.values())])  # type: ignore[union-attr]
        torch.distributed.all_reduce(flat)
        total.copy_(flat[0])
        at = 1
        for parameter in self.weights.values():
            assert parameter.grad is not None
            parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()

    # Checkpoints

    def save(self, folder: Path) -> None:
        """All that is needed to go on, in the place of what was there."""
        state = {
            "step": self.step,
            "weights": {name: weight.detach().cpu() for name, weight in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        partial = folder / f".{CHECKPOINT}"
        torch.save(state, partial)
        os.replace(partial, folder / CHECKPOINT)

    def load(self, folder: Path) -> bool:
        """Goes on where `save` was, if it was. Dropout's noise is not what it would have been."""
        if not (folder / CHECKPOINT).is_file():
            return False
        state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return True

    def write_adapter(self, folder: Path) -> None:
        """In PEFT's format, in the place of what was there."""
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        self.peft.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _free_bytes(device: torch.device) -> int:
    """Of a card, with what this process holds of it and does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def packs(lessons: Sequence[Lesson], sizes: Sequence[int], limit: int) -> Iterator[list[Lesson]]:
    """All of them in order, those together that have at most `limit` tokens together."""
    pack: list[Lesson] = []
    num_tokens = 0
    for lesson, own in zip(lessons, sizes, strict=True):
        if pack and num_tokens + own > limit:
            yield pack
            pack, num_tokens = [], 0
        pack.append(lesson)
        num_tokens += own
    if pack:
        yield pack


def train(
    learner: Learner, lessons: Sequence[Lesson], held_out: Sequence[Lesson], folder: Path, tell: Tell
) -> Scores | None:
    """From the last checkpoint in `folder`, or from the beginning, to the end. The first process writes there, into
    `adapter` the adapter, and gives the scores."""
    if not lessons:
        raise InvalidInput("no lesson is left to learn from")
    learner.load(folder)
    first, loss = learner.rank == 0, 0.0
    while learner.step < learner.num_steps:
        loss = learner.learn(learner.batch(lessons, learner.step))
        tell(Said("training", learner.step, learner.num_steps, loss))
        if first and learner.step % learner.plan.checkpoint_every == 0:
            learner.save(folder)
    if not first:
        return None
    learner.save(folder)
    learner.write_adapter(folder / "adapter")
    scores = score(learner, held_out, lambda doing: tell(Said(doing, learner.step, learner.num_steps, loss)))
    (folder / "scores.json").write_text(json.dumps(asdict(scores), indent=1) + "\n")
    return scores


def score(learner: Learner, held_out: Sequence[Lesson], tell: Callable[[str], None]) -> Scores:
    """The level on held-out lessons, of the plain model and with the adapter, both against the plain model's exact."""
    found = []
    for number, lesson in enumerate(held_out, 1):
        tell(f"comparing on held-out input {number} of {len(held_out)}")
        found.append((lesson, learner.measured(lesson, plain=True), learner.measured(lesson)))
    names = list(dict.fromkeys(said.step for lesson in held_out for said in lesson.level.said))
    sums = [(float(before.kl.sum()), float(after.kl.sum())) for _, before, after in found]
    steps = tuple(_score(name, found) for name in (["", *names] if found else []))
    return Scores(steps, len(held_out), _ratio(sums), _interval(sums))


def _score(step: str, found: Sequence[tuple[Lesson, Measured, Measured]]) -> StepScore:
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for lesson, before, after in found:
        of = torch.tensor([said.step == step or not step for said in lesson.level.said for _ in range(said.num_tokens)])
        kept.append((before.kl[of], after.kl[of], before.agrees[of].float(), after.agrees[of].float()))
    kl_before, kl_after, agrees_before, agrees_after = (torch.cat(each) for each in zip(*kept, strict=True))
    return StepScore(
        step,
        len(kl_before),
        float(kl_before.mean()),
        float(kl_after.mean()),
        float(kl_before.quantile(0.95)),
        float(kl_after.quantile(0.95)),
        float(agrees_before.mean()),
        float(agrees_after.mean()),
    )


def _ratio(sums: Sequence[tuple[float, float]]) -> float:
    before, after = (sum(each) for each in zip(*sums, strict=True)) if sums else (0.0, 0.0)
    return after / before if before else 0.0


def _interval(sums: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    if len(sums) < 2:
        return None
    draw = random.Random(0)
    ratios = sorted(_ratio(draw.choices(sums, k=len(sums))) for _ in range(NUM_RESAMPLES))
    return ratios[round(0.025 * NUM_RESAMPLES)], ratios[round(0.975 * NUM_RESAMPLES) - 1]


def load_model(folder: str | Path, dtype: str, device: torch.device) -> PreTrainedModel:
    """The plain model to train beside. `dtype` auto: float32 on a CPU, bfloat16 on a card; factors are float32."""
    if device.type == "cpu":
        keep_freed_memory()
    chosen = ("bfloat16" if device.type == "cuda" else "float32") if dtype == "auto" else dtype
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, chosen), attn_implementation="sdpa", local_files_only=True
    )
    model.requires_grad_(False)
    model.to(device)  # type: ignore[arg-type]
    return model
