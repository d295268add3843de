"""Two models, unlike in architecture and tokenizer, in workflows that run at once: each says what it says alone."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import random_folder
from transformers import AutoModelForCausalLM

from laban.actors.errors import LabanError
from laban.actors.framing import derive_framing
from laban.actors.tokenizer import Tokenizer
from laban.cluster.client import Client
from laban.cluster.config import LabanConfig
from laban.cluster.launch import start_cluster

pytestmark = pytest.mark.usefixtures("local_ray")

NUM_WORKFLOWS = 8
REGRET = 1e-3  # of a greedy token's logit: near ties may go either way
RELAY = """
version: 1
name: relay
inputs: {task: {}}
messages: {task: "{{ task }}"}
agents:
  ann: {prompt: You are Ann., model: large}
  bob: You are Bob.
sampling: {max_tokens: 12}
steps:
- {step: draft, for_each: agents, read: [task]}
- {step: review, agent: bob, read: [task, draft]}
- {step: again, agent: ann, read: ["draft[ann]", task, review, "draft[bob]"]}
- {step: end, agent: bob, read: [review, again, task]}
"""
READS = {
    "draft[ann]": ("large", ["agent:ann", "task"]),
    "draft[bob]": ("small", ["agent:bob", "task"]),
    "review": ("small", ["agent:bob", "task", "draft[ann]", "draft[bob]"]),
    "again": ("large", ["agent:ann", "draft[ann]", "task", "review", "draft[bob]"]),
    "end": ("small", ["agent:bob", "review", "again", "task"]),
}


class Alone:
    """One model, each prompt from its beginning."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._framing = derive_framing(folder, Tokenizer.from_folder(folder))

    def regret(self, name: str, address: str, given: dict[str, str], steps: dict[str, Any]) -> float:
        """By how much a generated token is less likely, at most, than the one that the model alone would say."""
        header, closing = (
            self._framing.header("assistant"),
            self._framing.terminator("assistant", after_stop_token=False),
        )
        prompt = list(self._framing.root("system"))
        for key in READS[address][1]:
            if key in given:
                prompt += self._framing.message("system" if key.startswith("agent:") else "user", given[key])
            elif READS[key][0] == name:  # in the very tokens that it wrote
                made = [*header, *steps[key].token_ids]
                prompt += made if made[-1:] == list(closing) else [*made, *closing]
            else:
                prompt += self._framing.message("assistant", steps[key].text)
        prompt += header
        said = list(steps[address].token_ids)
        with torch.no_grad():
            logits = self._model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].float()
        return float((logits.max(dim=1).values - logits.gather(1, torch.tensor(said)[:, None])[:, 0]).max())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {
        "small": random_folder(base / "s", "llama", marks=("<", ">")),
        "large": random_folder(base / "l", "gemma3", marks=("[", "]"), num_merges=60, seed=1),
    }


def test_two_models_in_workflows_under_load(folders: dict[str, Path]) -> None:
    config = LabanConfig.model_validate(
        {
            "models": {
                "large": {"path": str(folders["large"]), "device_memory": "4MiB", "host_memory": "2MiB"},
                "small": {"path": str(folders["small"]), "device_memory": "8MiB", "workers": 2},
            },
            "default_model": "small",
            "engine": {"device": "cpu", "num_threads": 1},
            "server": {"port": 0},
            "http": {"port": None},
            "metrics": {"port": None},
            "journal": {"url": "none"},
        }
    )
    draw = random.Random(time.time_ns())
    tasks = ["".join(draw.choices("abc defg hij? ", k=draw.randint(20, 120))).strip() for _ in range(NUM_WORKFLOWS)]
    with start_cluster(config) as cluster, Client(cluster.address) as client:
        status = client.status()
        assert [(each.name, each.workers_up) for each in status.models] == [("small", 2), ("large", 1)]
        budgets = {each.model: each.pages * each.page_size * each.bytes_per_token for each in status.workers}
        assert 4 * 0.9 < budgets["large"] / (1 << 20) <= 4
        assert 8 * 0.9 < budgets["small"] / (1 << 20) <= 8
        with pytest.raises(LabanError, match="expected one of small, large") as caught:
            client.submit(RELAY.replace("model: large", "model: huge"), {"task": "x"})
        assert caught.value.status == "INVALID_ARGUMENT"
        ids = [client.submit(RELAY, {"task": task}).workflow_id for task in tasks]
        records = [client.wait(workflow_id) for workflow_id in ids]
    alone = {name: Alone(folder) for name, folder in folders.items()}
    for task, record in zip(tasks, records, strict=True):
        assert record.state == "succeeded", record.error
        steps = {step.address: step for step in record.steps}
        given = {"task": task, "agent:ann": "You are Ann.", "agent:bob": "You are Bob."}
        for address, (model, _) in READS.items():
            assert steps[address].model == model
            regret = alone[model].regret(model, address, given, steps)
            assert regret < REGRET, f"{address} of {task!r}: {regret}"
        assert {steps[address].worker for address in ("draft[ann]", "again")} == {
            each.worker_id for each in status.workers if each.model == "large"
        }
        assert steps["end"].tokens_reused > 0
