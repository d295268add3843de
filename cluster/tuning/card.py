"""The card of a trained adapter: what it is for, what it was made from, what it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laban.actors.model_folder import ModelFacts


def card(
    workflow: str,
    facts: ModelFacts,
    level: str,
    data_hash: str,
    num_lessons: int,
    options: Mapping[str, Any],
    scores: Mapping[str, Any],
    start: str | None = None,
) -> str:
    """Markdown. `scores` as `plan.Scores` in plain values; `start` is the adapter that was started from."""
    interval = scores["ratio_interval"]
    between = f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {facts.name}",
        "---",
        "",
        f"# {facts.name}: {level} reuse of the workflow `{workflow}`",
        "",
        f"With this adapter a workflow that reads encodings as `{level}` does says what the plain model says under",
        "`exact`. Made by `laban tune`.",
        "",
        f"- base model: {facts.name}, fingerprint {facts.fingerprint}",
        f"- data: {num_lessons} runs to learn from, {scores['num_inputs']} held out; hash {data_hash}",
        f"- options: {', '.join(f'{name} {_shown(value)}' for name, value in options.items())}",
        *([f"- started from the adapter {start}"] if start else []),
        "",
        f"On the inputs held out the mean KL from `exact` is {scores['ratio']:.3f}{between} of what it was.",
        "",
        "| step | tokens | KL before | after | p95 before | after | top-1 before | after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step in scores["steps"]:
        cells = [f"{step[name]:.4f}" for name in ("kl_before", "kl_after", "p95_before", "p95_after")]
        cells += [f"{step[name]:.1%}" for name in ("agreement_before", "agreement_after")]
        lines.append(f"| {step['step'] or 'all'} | {step['num_tokens']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
