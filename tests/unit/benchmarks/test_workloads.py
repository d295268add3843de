"""Flattening a workflow for the benchmarks: its instances, what they read, and texts of exact lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_modules import benchmark_modules

from laban.cluster.workflow.parse import parse_dict, parse_yaml
from laban.cluster.workflow.run import Run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def modules() -> Iterator[list[ModuleType]]:
    with benchmark_modules("workloads", "texts") as found:
        yield found


@pytest.fixture(scope="module")
def workloads(modules: list[ModuleType]) -> ModuleType:
    return modules[0]


@pytest.fixture(scope="module")
def texts(modules: list[ModuleType]) -> ModuleType:
    return modules[1]


class WordTokenizer:
    """A token a word, and one a line end."""

    def encode(self, text: str) -> list[int]:
        return [hash(word) for word in text.replace("\n", " | ").split()]


def example(workloads: ModuleType, name: str, **options: int) -> object:
    text = (ROOT / "examples" / f"{name}.yaml").read_text()
    return workloads.flatten(name, parse_yaml(text), **options)


def by_address(workload: object) -> dict[str, object]:
    return {step.address: step for step in workload.steps}  # type: ignore[attr-defined]


def test_a_debate_has_a_step_for_each_agent_and_round_with_its_reads_in_order(workloads: ModuleType) -> None:
    debate = example(workloads, "parallel_debate", num_tokens=370)
    steps = by_address(debate)
    addresses = {step.key: step.address for step in debate.steps}
    assert list(steps) == [f"answer[{agent},{n}]" for n in (1, 2, 3) for agent in ("ann", "bob", "cleo")]
    assert {step.num_tokens for step in debate.steps} == {370}
    bob = steps["answer[bob,3]"]
    assert bob.prompt == bob.reads[0]
    assert "Bob" in debate.messages[bob.reads[0]].text
    assert bob.reads[1].startswith("question")
    assert [addresses[key] for key in bob.reads[2:]] == [
        "answer[bob,1]", "answer[bob,2]", "answer[ann,2]", "answer[cleo,2]",
    ]  # fmt: skip
    assert "Bob" in bob.prefill
    assert [len(wave) for wave in debate.waves()] == [3, 3, 3]


def test_shared_first_orders_by_creation_and_puts_own_instructions_last(workloads: ModuleType) -> None:
    debate = example(workloads, "parallel_debate")
    step = by_address(debate)["answer[cleo,2]"]
    addresses = {s.key: s.address for s in debate.steps}
    order = debate.shared_first(step)
    assert [addresses.get(key, key) for key in order[1:4]] == ["answer[ann,1]", "answer[bob,1]", "answer[cleo,1]"]
    assert order[-1] == step.prompt
    assert sorted(order) == sorted(step.reads)

    readers = example(workloads, "retrieval")
    first, second = (readers.shared_first(by_address(readers)[name]) for name in ("by_date", "by_use"))
    assert first[:-1] == second[:-1]

    thoughts = example(workloads, "tree_of_thoughts")
    assert thoughts.shared_first(by_address(thoughts)["vote[2]"])[-1].startswith("ballot")


def test_every_run_has_new_texts_of_the_same_lengths(workloads: ModuleType, texts: ModuleType) -> None:
    tokenizer = WordTokenizer()
    writer = workloads.Writer(tokenizer)
    rng = random.Random(1)
    for workload in workloads.all_workloads(writer).values():
        one, other = (texts.fresh_run(workload, writer, rng) for _ in range(2))
        for key in workload.messages:
            assert one.heads[key] != other.heads[key]
            assert len(tokenizer.encode(one.text(key))) == len(tokenizer.encode(other.text(key)))
        for step in workload.steps:
            assert one.forced[step.key] != other.forced[step.key]
            assert len(tokenizer.encode(one.forced[step.key])) == step.num_tokens


@pytest.mark.parametrize("arm", [{}, {"shared_first": True}, {"salted": True}])
def test_the_document_of_an_arm_runs_as_the_workload_does(
    workloads: ModuleType, texts: ModuleType, arm: dict[str, bool]
) -> None:
    writer = workloads.Writer(WordTokenizer())
    for workload in workloads.all_workloads(writer).values():
        fresh = texts.fresh_run(workload, writer, random.Random(1))
        run = Run(parse_dict(texts.document(fresh, "exact", **arm)), {})
        firsts = []
        while run.state == "running":
            for ready in run.ready():
                step = next(step for step in workload.steps if step.key == ready.address)
                wanted = fresh.reads(step, arm.get("shared_first", False))
                assert [read.key for read in ready.reads][1:] == list(wanted)[1:]
                assert ready.prefill == step.prefill
                assert ready.sampling.forced_text == fresh.forced[step.key]
                firsts.append(run.messages[ready.reads[0].key].text)
                run.finish(ready.address, "text")
        assert run.state == "succeeded"
        if "salted" in arm:
            assert len(set(firsts)) == len(workload.steps)


def test_the_panel_reads_the_same_messages_in_orders_of_their_own(workloads: ModuleType) -> None:
    writer = workloads.Writer(WordTokenizer())
    panel = workloads.flatten("panel", parse_dict(workloads.panel(writer)))
    orders = [step.reads[1:] for step in panel.steps]
    assert len(orders) == len(set(orders)) == 16
    assert {frozenset(order) for order in orders} == {frozenset(list(panel.messages)[:8])}
    lengths = [len(WordTokenizer().encode(message.text)) for message in panel.messages.values()]
    assert lengths == [*range(256, 371, 16), *[64] * 16]


def test_an_external_step_has_no_flat_form(workloads: ModuleType) -> None:
    workflow = parse_dict({"version": 1, "name": "w", "steps": [{"step": "human", "external": {}}]})
    with pytest.raises(ValueError, match="human"):
        workloads.flatten("w", workflow)
