from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

from laban.actors.errors import InvalidInput, LabanError, NotFound, UnsupportedModel
from laban.actors.model_folder import check_model_folder
from laban.actors.model_shapes import expected_tensors

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}


def write_weights(file: Path, shapes: Mapping[str, tuple[int, ...]], fill: int = 0) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes([fill]) * end)


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(size.value for size in shape) for name, shape in expected_tensors(config).items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    write_weights(tmp_path / "model.safetensors", shapes_of(CONFIG))
    return tmp_path


def configure(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def rebuild(folder: Path, **changes: Any) -> None:
    """Of that configuration, with its weights."""
    configure(folder, **changes)
    write_weights(folder / "model.safetensors", shapes_of(CONFIG | changes))


def test_facts(folder: Path) -> None:
    facts = check_model_folder(folder)
    assert (facts.architecture, facts.num_layers, facts.num_heads, facts.num_kv_heads, facts.head_dim) == (
        "llama", 2, 4, 2, 4)  # fmt: skip
    assert (facts.max_context, facts.vocab_size, facts.rope, facts.eos_ids) == (64, 32, "default", (2,))
    assert facts.weight_bytes == (folder / "model.safetensors").stat().st_size
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 2, 5]}')
    assert check_model_folder(folder).eos_ids == (5, 2)


def test_default_model(default_folder: Path) -> None:
    facts = check_model_folder(default_folder)
    assert (facts.num_layers, facts.num_heads, facts.num_kv_heads, facts.head_dim) == (30, 9, 3, 64)
    assert facts.max_context == 8192


def test_fingerprint_tells_models_apart(folder: Path) -> None:
    first = check_model_folder(folder).fingerprint
    assert check_model_folder(folder).fingerprint == first
    write_weights(folder / "model.safetensors", shapes_of(CONFIG), fill=1)
    other_weights = check_model_folder(folder).fingerprint
    configure(folder, rope_parameters={"rope_type": "default", "rope_theta": 5.0})
    other_rope = check_model_folder(folder).fingerprint
    (folder / "tokenizer.json").write_text('{"a": 1}')
    assert len({first, other_weights, other_rope, check_model_folder(folder).fingerprint}) == 4


def test_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    shapes = shapes_of(CONFIG)
    homes = {name: f"{'one' if number < 5 else 'two'}.safetensors" for number, name in enumerate(shapes)}
    for file in set(homes.values()):
        write_weights(folder / file, {name: shape for name, shape in shapes.items() if homes[name] == file})
    index = {"weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert check_model_folder(folder).weight_bytes > 0
    (folder / "two.safetensors").unlink()
    with pytest.raises(NotFound, match=r"two\.safetensors"):
        check_model_folder(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        check_model_folder(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFound, match="is a file"):
        check_model_folder(tmp_path / "file")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(NotFound, match=f"no {name}"):
        check_model_folder(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InvalidInput, match=r"model\.safetensors is cut off"):
        check_model_folder(folder)


def test_weights_with_other_trouble(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(InvalidInput, match="too long"):
        check_model_folder(folder)
    write_weights(file, {name: shape for name, shape in shapes_of(CONFIG).items() if ".1." not in name})
    with pytest.raises(InvalidInput, match=r"lack model\.layers\.1\.self_attn.*num_hidden_layers 2"):
        check_model_folder(folder)
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin, expected safetensors"):
        check_model_folder(folder)


def test_an_untied_head_must_be_there(folder: Path) -> None:
    rebuild(folder, tie_word_embeddings=True)
    check_model_folder(folder)
    configure(folder, tie_word_embeddings=False)
    with pytest.raises(InvalidInput, match=r"lack lm_head\.weight.*tie_word_embeddings false"):
        check_model_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_broken_json(folder: Path, name: str) -> None:
    (folder / name).write_text('{"model_type": ')
    with pytest.raises(InvalidInput, match=f"{name} is not valid JSON"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "MLA"),
        ({"model_type": "minicpm3", "kv_lora_rank": 256}, "MLA"),
        ({"model_type": "mamba2"}, "state-space"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention", "full_attention"]}, "state-space"),
        ({"model_type": "gpt2"}, "not served; served are llama"),
        ({"model_type": None}, "not served"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic-NTK"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
        ({"rope_scaling": {"type": "mrope"}}, "mrope"),
        ({"model_type": "gemma3"}, "image encoder"),
        ({"model_type": "gemma2"}, "not served; served are llama"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "later tokens"),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention layers"),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {"rope_type": "dynamic", "factor": 2.0},
                },
            },
            "dynamic-NTK",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
    ],
)
def test_unserved(folder: Path, changes: dict[str, Any], reason: str) -> None:
    configure(folder, **changes)
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        check_model_folder(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "sliding_window": 32},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8},
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 0},
        {"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 6, "rope_scaling": None},
        {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 8},
        {"model_type": "qwen3", "head_dim": 8},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    ],
)
def test_served(folder: Path, changes: dict[str, Any]) -> None:
    rebuild(folder, **changes)
    assert check_model_folder(folder).architecture == changes.get("model_type", "llama")


def test_facts_of_layers_that_differ(folder: Path) -> None:
    by_layer = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    rebuild(folder, model_type="gemma3_text", rope_parameters=by_layer)
    facts = check_model_folder(folder)
    assert (facts.rope, facts.head_dim) == ("default, linear", 256)


@pytest.mark.parametrize("window", [0, -1, "8", True])
def test_windows_are_counts(folder: Path, window: object) -> None:
    configure(folder, model_type="mistral", sliding_window=window)
    with pytest.raises(InvalidInput, match="sliding_window must be a positive whole number"):
        check_model_folder(folder)


@pytest.mark.parametrize("value", [None, 0, -1, "8", True])
def test_counts_are_counts(folder: Path, value: object) -> None:
    configure(folder, max_position_embeddings=value)
    with pytest.raises(LabanError, match="max_position_embeddings must be a positive whole number"):
        check_model_folder(folder)


def test_needs_no_torch() -> None:
    code = (
        "import sys, laban.actors.models, laban.actors.framing, laban.actors.tokenizer;"
        "sys.exit(bool({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
