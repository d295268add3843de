"""What tells a model's layers apart, and that a folder of each served kind is known for what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_harness import make_engine
from engine_reference import DRAWN_KINDS, KINDS, WINDOW, random_model
from transformers import AutoModelForCausalLM

from laban.actors.engine.layers import layer_kinds
from laban.actors.errors import UnsupportedModel
from laban.actors.model_folder import check_model_folder


@pytest.mark.parametrize(
    ("kind", "windows", "indices"),
    [
        ("llama", [None], (0, 0, 0)),
        ("mistral", [None], (0, 0, 0)),
        ("mistral-window", [WINDOW], (0, 0, 0)),
        ("qwen2", [None], (0, 0, 0)),
        ("qwen2-window", [None, WINDOW], (0, 1, 1)),
        ("gemma3", [WINDOW, None], (0, 1, 0)),
    ],
)
def test_windows_of_layers(kind: str, windows: list[int | None], indices: tuple[int, ...]) -> None:
    kinds, found = layer_kinds(random_model(kind))
    assert ([kind.window for kind in kinds], found) == (windows, indices)


def test_frequencies_of_layers() -> None:
    near, far = layer_kinds(random_model("gemma3"))[0]
    steps = torch.arange(0, 24, 2) / 24
    torch.testing.assert_close(near.inv_freq, 1e4**-steps)
    torch.testing.assert_close(far.inv_freq, 1e5**-steps / 8)
    assert not near.turns_like(far)
    (yarn,), _ = layer_kinds(random_model("yarn-rope"))
    assert yarn.attention_scaling == pytest.approx(1.1386, abs=1e-4)  # 0.1 ln 4 + 1


def test_layers_of_another_type_are_refused() -> None:
    model = random_model("qwen2")
    model.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(UnsupportedModel, match="chunked_attention layers are not served"):
        layer_kinds(model)


@pytest.mark.parametrize("kind", [*KINDS, *DRAWN_KINDS])
def test_a_saved_folder_is_served_as_what_it_is(kind: str, tmp_path: Path) -> None:
    model = random_model(kind)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    facts, runner = check_model_folder(tmp_path), make_engine(kind).runner
    assert (facts.num_layers, facts.num_kv_heads, facts.head_dim) == tuple(runner.k_pool.shape[i] for i in (0, 2, 3))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    (kinds, indices), (expected, expected_indices) = layer_kinds(loaded), layer_kinds(model)
    assert indices == expected_indices
    assert all(a.is_like(b) for a, b in zip(kinds, expected, strict=True))
    tokens = torch.arange(60)[None] % 128
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model.eval()(tokens).logits, atol=1e-4, rtol=0)
