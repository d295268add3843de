"""The benchmark of a cache that is too small, tried on a tiny model; its workflows, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from laban.cluster.workflow.parse import parse_dict

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def cache() -> Iterator[ModuleType]:
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield import_module("cache")
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


def test_random_order_counts_what_each_policy_encodes_again(
    cache: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cache.main(["--tiny", "--only", "random", "--json", "--out", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    values = {row["name"]: row["value"] for row in document["rows"]}
    for policy in ("lru", "steps", "cost"):
        assert values[f"random.{policy}.encoded_again"] > 0
    assert values["random.steps.over_lru"] == pytest.approx(
        values["random.steps.encoded_again"] / values["random.lru.encoded_again"]
    )


def test_a_section_that_is_not(cache: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cache.main(["--tiny", "--only", "nosuch"])
    assert "no section nosuch" in capsys.readouterr().err


class Words:
    """A token a word."""

    def encode(self, text: str) -> list[int]:
        return [hash(word) for word in text.split()]


def test_workflows_of_the_ring_share_their_prompts_and_each_agent_reads_the_last_one(cache: ModuleType) -> None:
    nodes, workloads = import_module("cache_nodes"), import_module("workloads")
    writer, load = workloads.Writer(Words()), nodes.QUICK
    flows = [workloads.flatten("x", parse_dict(nodes.workflow(number, load, writer, 1))) for number in range(3)]
    texts = [{message.text for message in flow.messages.values()} for flow in flows]
    for others in (texts[1], texts[2]):
        assert len(texts[0] & others) == load.agents
        assert len(texts[0] - others) == 1  # the task
    for before, step in pairwise(flows[0].steps):
        assert before.key in step.reads
    assert [len(step.reads) for step in flows[0].steps] == [2] + [3] * (load.agents - 1)
