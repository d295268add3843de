"""An adapter's folder: what is wrong with one is said before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import save_adapter, save_model
from safetensors.torch import load_file, save_file

from laban.actors.adapter_folder import CONFIG, TARGETS, WEIGHTS, check_adapter_folder
from laban.actors.errors import InvalidInput, LabanError, NotFound, UnsupportedModel


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("adapters")
    return save_model(base / "model"), save_adapter(base / "adapter")


def test_a_good_one(folders: tuple[Path, Path]) -> None:
    model, adapter = folders
    facts = check_adapter_folder(adapter, model)
    assert len(facts.ranks) == 3 * 7
    assert set(facts.ranks.values()) == {4}
    assert facts.scale(4) == 2.0
    assert check_adapter_folder(adapter, model).fingerprint == facts.fingerprint


def test_the_fingerprint_is_of_what_it_computes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, adapter = folders
    known = check_adapter_folder(adapter, model).fingerprint
    assert check_adapter_folder(_changed(adapter, tmp_path / "a", lora_alpha=9), model).fingerprint != known
    other = save_adapter(tmp_path / "b", seed=5)
    assert check_adapter_folder(other, model).fingerprint != known
    assert check_adapter_folder(_changed(adapter, tmp_path / "c", revision="x"), model).fingerprint == known


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"peft_type": "LOHA"}, UnsupportedModel, "only LoRA is served"),
        ({"use_dora": True}, UnsupportedModel, "DoRA is not served"),
        ({"bias": "all"}, UnsupportedModel, "expected none"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedModel, "whole modules"),
        ({"lora_alpha": "much"}, InvalidInput, "must be a number"),
    ],
)
def test_a_configuration_that_is_not_served(
    folders: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], kind: type[LabanError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        check_adapter_folder(_changed(folders[1], tmp_path / "a", **change), folders[0], field="adapters.mine")
    assert caught.value.field == "adapters.mine"


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda x: x.update({"base_model.model.lm_head.lora_A.weight": x.pop(NAME)}), UnsupportedModel, "this layer"),
        (lambda x: x.update({"other": torch.ones(2)}), UnsupportedModel, "no low-rank factor"),
        (lambda x: x.pop(NAME), InvalidInput, "is missing"),
        (lambda x: x.update({NAME: torch.ones(4, 63)}), InvalidInput, r"expected \[rank, 64\]"),
        (
            lambda x: x.update({NAME.replace("layers.0", "layers.9"): torch.ones(4, 64)}),
            InvalidInput,
            "no such layer",
        ),
        (lambda x: x.clear(), InvalidInput, "holds no low-rank factor"),
    ],
)
def test_weights_that_are_not_this_models(
    folders: tuple[Path, Path], tmp_path: Path, change: Change, kind: type[LabanError], said: str
) -> None:
    model, adapter = folders
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    folder = _changed(adapter, tmp_path / "a")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(kind, match=said):
        check_adapter_folder(folder, model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": 8}, "r is 8, but lora_A and lora_B have rank 4"),
        ({"rank_pattern": {"q_proj": 2}}, r"rank_pattern\.q_proj is 2, but .* rank 4 .*q_proj"),
        ({"rank_pattern": {"layers.1.mlp.(up|down)_proj": 9}}, r"is 9, .*layers\.1\.mlp"),
        ({"rank_pattern": {"(": 4}}, "not a regular expression"),
        ({"target_modules": ["q_proj"]}, "target_modules leaves out a layer that has lora_A and lora_B"),
        ({"target_modules": r".*\.(q|k)_proj"}, "target_modules leaves out"),
        ({"target_modules": [*TARGETS, "embed_tokens"]}, "names a layer that has no lora_A and lora_B .*embed_tokens"),
        ({"layers_to_transform": [0, 1]}, r"layers_to_transform leaves out .*layers\.2"),
    ],
)
def test_a_configuration_that_is_not_of_its_weights(
    folders: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        check_adapter_folder(_changed(folders[1], tmp_path / "a", **change), folders[0])


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"},
        {"target_modules": [*TARGETS, "of_another_architecture"]},
        {"target_modules": None},
        {"r": None},
        {"r": 9, "rank_pattern": {r".*_proj": 4}},
        {"layers_to_transform": [0, 1, 2]},
    ],
)
def test_a_configuration_that_says_the_same_otherwise(
    folders: tuple[Path, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    check_adapter_folder(_changed(folders[1], tmp_path / "a", **change), folders[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6}},
        {"layers_to_transform": [1], "targets": ("q_proj", "down_proj")},
        {"layers_to_transform": 2},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.[01]\.self_attn\.[qv]_proj"},
        {"exclude_modules": ["k_proj"], "use_rslora": True},
    ],
)
def test_whatever_peft_saves_agrees(tmp_path: Path, settings: dict[str, Any]) -> None:
    check_adapter_folder(save_adapter(tmp_path / "a", **settings), save_model(tmp_path / "m"))


def test_files_that_are_not_there_or_cut_off(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, adapter = folders
    with pytest.raises(NotFound, match="does not exist"):
        check_adapter_folder(tmp_path / "no", model)
    folder = _changed(adapter, tmp_path / "a")
    (folder / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(InvalidInput, match="cut off"):
        check_adapter_folder(folder, model)
    (folder / WEIGHTS).unlink()
    with pytest.raises(NotFound, match=WEIGHTS):
        check_adapter_folder(folder, model)


def _changed(adapter: Path, folder: Path, **changes: object) -> Path:
    folder.mkdir()
    config = json.loads((adapter / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))
    (folder / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes())
    return folder
