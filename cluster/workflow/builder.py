"""Workflows in plain Python: produces the dict form, with nothing but the standard library.

    debate = (
        Workflow("debate")
        .input("question", default="What weighs more, a kilo of lead or of feathers?")
        .agent("ann", "You are Ann.")
        .agent("bob", "You are Bob.")
        .message("question", "{{ question }}")
        .step("answer", read=["question", "answer[others,previous]"], for_each="agents", rounds=3)
        .output("answers", "answer[all,last]")
    )

What the pieces mean is the workflow language's documentation; whether they fit together is said when the
workflow is linted or submitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Self

Readable = str | Mapping[str, Any]


def read(
    selector: str,
    *,
    fidelity: str | None = None,
    recompute_share: float | None = None,
    order: str | None = None,
    begin: int | None = None,
    end: int | None = None,
) -> dict[str, Any]:
    """One entry of a step's reads with more than its selector."""
    given = _given(read=selector, fidelity=fidelity, recompute_share=recompute_share)
    return given | _given(order=order, begin=begin, end=end)


class Steps:
    """Collects steps; each method adds to them and returns the same object. What a loop or a block is made of."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []

    def step(
        self,
        step: str,
        *,
        read: Sequence[Readable] = (),
        agent: str | None = None,
        when: str | None = None,
        for_each: str | int | Sequence[str] | Mapping[str, Any] | None = None,
        max_parallel: int | None = None,
        rounds: int | None = None,
        timeout_s: float | None = None,
        retries: int | Mapping[str, Any] | None = None,
        on_error: str | None = None,
        join: str | Mapping[str, Any] | None = None,
        external: Mapping[str, Any] | None = None,
        workflow: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        messages: Mapping[str, str] | None = None,
        output: str | None = None,
        values: Sequence[str] | Mapping[str, Any] | None = None,
        vote: str | Mapping[str, Any] | None = None,
        role: str | None = None,
        name: str | None = None,
        prefill: str | None = None,
        response_schema: Mapping[str, Any] | None = None,
        choices: Sequence[str] | str | None = None,
        fidelity: str | None = None,
        recompute_share: float | None = None,
        model: str | None = None,
        adapter: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        private: bool | None = None,
    ) -> Self:
        """A step; steps may be added in any order."""
        fields: dict[str, Any] = {"agent": agent, "when": when, "for_each": for_each, "max_parallel": max_parallel}
        fields |= {"rounds": rounds, "timeout_s": timeout_s, "retries": retries, "on_error": on_error, "join": join}
        fields |= {"external": external, "workflow": workflow, "inputs": inputs, "messages": messages}
        fields |= {"output": output, "values": values, "vote": vote, "role": role, "name": name, "prefill": prefill}
        fields |= {"response_schema": response_schema, "choices": choices}
        fields |= {"fidelity": fidelity, "recompute_share": recompute_share, "model": model}
        fields |= {"adapter": adapter, "sampling": sampling, "private": private}
        self._steps.append(_plain({"step": step, "read": list(read), **_given(**fields)}))
        return self

    def loop(
        self,
        steps: Steps,
        *,
        max: int,
        until: str | None = None,
        on_max: str | None = None,
        name: str | None = None,
        when: str | None = None,
    ) -> Self:
        """Steps repeated together, at most `max` times, until an expression holds."""
        loop = _given(name=name, until=until, max=max, on_max=on_max)
        self._steps.append({"loop": loop, **_given(when=when), "steps": deepcopy(steps._steps)})
        return self

    def when(self, condition: str, steps: Steps, otherwise: Steps | None = None) -> Self:
        """Steps that run only if an expression holds, and those that run only if it does not."""
        entry = {"when": condition, "steps": deepcopy(steps._steps)}
        if otherwise is not None:
            entry["otherwise"] = deepcopy(otherwise._steps)
        self._steps.append(entry)
        return self


class Workflow(Steps):
    """Collects a workflow; each method adds a part and returns the same object. `to_dict` gives the dict form."""

    def __init__(
        self,
        name: str,
        *,
        description: str = "",
        fidelity: str | None = None,
        recompute_share: float | None = None,
        model: str | None = None,
        adapter: str | None = None,
        version: int = 1,
    ) -> None:
        super().__init__()
        self._data: dict[str, Any] = {"version": version, "name": name}
        self._data |= _given(description=description or None, fidelity=fidelity, recompute_share=recompute_share)
        self._data |= _given(model=model, adapter=adapter)

    def sampling(self, **values: Any) -> Self:
        """Sampling defaults of the whole workflow."""
        self._data["sampling"] = _given(**values)
        return self

    def input(self, name: str, type: str = "string", *, default: Any = None, description: str = "") -> Self:
        """A value given when the workflow is run; without a default it must be."""
        return self._add("inputs", name, _given(type=type, default=default, description=description or None))

    def agent(
        self,
        name: str,
        prompt: str | None = None,
        *,
        role: str | None = None,
        private: bool | None = None,
        model: str | None = None,
        adapter: str | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> Self:
        """A role with its prompt."""
        fields = _given(prompt=prompt, role=role, private=private, model=model, adapter=adapter, sampling=sampling)
        return self._add("agents", name, fields)

    def message(
        self,
        key: str,
        text: str,
        *,
        for_each: str | None = None,
        role: str | None = None,
        name: str | None = None,
        private: bool | None = None,
    ) -> Self:
        """A fixed message that steps read as `key`, or one for each item of the list `for_each`; `name`: its line."""
        return self._add("messages", key, _given(text=text, for_each=for_each, role=role, name=name, private=private))

    def output(
        self, name: str, read: str, *, join: str | Mapping[str, Any] | None = None, separator: str | None = None
    ) -> Self:
        """A named result."""
        return self._add("outputs", name, _given(read=read, join=join, separator=separator))

    def workflow(self, name: str, workflow: Workflow | Mapping[str, Any]) -> Self:
        """Another workflow, for steps to run by its name."""
        return self._add("workflows", name, workflow.to_dict() if isinstance(workflow, Workflow) else dict(workflow))

    def to_dict(self) -> dict[str, Any]:
        """The dict form, a copy."""
        return {**deepcopy(self._data), "steps": deepcopy(self._steps)}

    def _add(self, section: str, name: str, entry: dict[str, Any]) -> Self:
        entries = self._data.setdefault(section, {})
        if name in entries:
            raise ValueError(f"{section}.{name} is given twice")
        entries[name] = entry
        return self


def _given(**values: Any) -> dict[str, Any]:
    return {key: _plain(value) for key, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    """Tuples and mappings of any kind as lists and dicts."""
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return value
