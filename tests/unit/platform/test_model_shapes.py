"""A configuration that is not of its weights is refused by the keys, before anything is loaded."""

from __future__ import annotations

import json
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import random_folder
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN

from laban.actors import processes
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.load import load_engine
from laban.actors.errors import InvalidInput, Unavailable
from laban.actors.model_folder import check_model_folder, weight_shapes
from laban.actors.model_shapes import ACTIVATIONS, expected_tensors
from laban.actors.processes import WorkerPlan

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
OPTIONAL = ("head_dim", "num_key_value_heads", "tie_word_embeddings", "attention_bias", "mlp_bias")


def drawn_config(draw: random.Random) -> dict[str, Any]:
    heads, dim = draw.choice([2, 4, 6]), draw.choice([8, 16])
    config = {
        "model_type": draw.choice(KINDS),
        "vocab_size": draw.randint(3, 40),
        "hidden_size": heads * draw.choice([4, 8, 20]),
        "intermediate_size": draw.randint(1, 40),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": heads,
        "max_position_embeddings": 64,
        "head_dim": dim,
        "num_key_value_heads": draw.choice([1, 2, heads]),
        "tie_word_embeddings": draw.random() < 0.5,
        "attention_bias": draw.random() < 0.5,
        "mlp_bias": draw.random() < 0.5,
        "pad_token_id": 0,
    }
    return {key: value for key, value in config.items() if key not in OPTIONAL or draw.random() < 0.7}


def test_expected_tensors_are_those_of_transformers() -> None:
    draw = random.Random()
    for _ in range(40):
        config = drawn_config(draw)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        built = {name: tuple(weight.shape) for name, weight in model.named_parameters()}  # a tied one once
        expected = {name: tuple(size.value for size in shape) for name, shape in expected_tensors(config).items()}
        assert expected == built, config


def test_activations_are_those_of_transformers() -> None:
    assert set(ACTIVATIONS) <= set(ACT2FN)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_folder(tmp_path_factory.mktemp("shapes") / "m", request.param, marks=("<", ">"))


def refused_with(folder: Path, tmp_path: Path, **changes: Any) -> str:
    """What is said of `folder` with another configuration."""
    config = json.loads((folder / "config.json").read_text()) | changes
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput) as caught:
        check_model_folder(tmp_path)
    return str(caught.value)


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "intermediate_size", "num_attention_heads", "head_dim",
                                 "num_key_value_heads"])  # fmt: skip
def test_each_size_is_named(folder: Path, tmp_path: Path, key: str) -> None:
    check_model_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    wrong = 3 * config[key]
    said = refused_with(folder, tmp_path, **{key: wrong})
    assert f"{tmp_path}/config.json: " in said
    assert f"{key} {wrong}" in said
    assert ", but the weights have " in said
    assert "model." in said


def test_the_weights_size_is_said(folder: Path, tmp_path: Path) -> None:
    vocab, hidden = weight_shapes(folder)["model.embed_tokens.weight"]
    said = refused_with(folder, tmp_path, hidden_size=96)
    assert f"hidden_size 96, but the weights have {hidden} (model.embed_tokens.weight is [{vocab}, {hidden}])" in said


@pytest.mark.parametrize(("more", "what"), [(1, "num_hidden_layers {}"), (-1, "but the weights have {} layers")])
def test_layers(folder: Path, tmp_path: Path, more: int, what: str) -> None:
    there = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    said = refused_with(folder, tmp_path, num_hidden_layers=there + more)
    assert what.format(there + max(more, 0)) in said


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"attention_bias": True}, "config.json says attention_bias true"),
        ({"hidden_act": "quux", "hidden_activation": "quux"}, "transformers' activations"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be a positive whole number"),
    ],
)
def test_other_keys(folder: Path, tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    assert what in refused_with(folder, tmp_path, **changes)


def test_what_transformers_would_leave_out(folder: Path, tmp_path: Path) -> None:
    """A model saved with biases, said to have none, would be served without them."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, attention_bias=True))
    model.save_pretrained(tmp_path / "biased")
    (tmp_path / "biased" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    check_model_folder(tmp_path / "biased")
    (tmp_path / "copy").mkdir()
    said = refused_with(tmp_path / "biased", tmp_path / "copy", attention_bias=False)
    assert "_proj.bias, but the weights do; expected attention_bias true" in said


def test_what_only_transformers_finds(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"initializer_range": "wide"}
    for file in folder.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InvalidInput, match=r"is its config\.json right\? transformers says .*initializer_range"
    ) as caught:
        load_engine(tmp_path, EngineConfig())
    assert "\n" not in str(caught.value)


class Unpicklable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one}\n{two}")
        self.never = lambda: None


def failing_factory(*arguments: object, **options: object) -> None:
    raise Unpicklable("the cause", "and more")


def test_a_worker_fails_with_what_can_be_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "set_up_logs", lambda *arguments, **options: None)
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)
    worker = processes.WorkerProcess(WorkerPlan("w", str(folder), None, engine_factory=f"{__name__}:failing_factory"))
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            worker.load()
        sent = pickle.loads(pickle.dumps(caught.value))
        assert str(sent) == "worker w could not load its model: Unpicklable: the cause and more"
