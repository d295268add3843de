"""Adapters on a card, several in one batch, in captured forwards: what the merged models compute on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_folders import ATTENTION_ONLY, merged_model, save_adapter, save_model
from engine_harness import Driver, force, logprobs, make_engine, place_recorded
from engine_reference import Interpreter, random_model

from laban.actors.engine.adapters import Adapters, load_adapter
from laban.kvstore.encodings import EMPTY_VIEW, with_adapter

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_a_batch_that_mixes_adapters_is_each_merged_model_alone(kind: str, captured: bool, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", kind)
    one = save_adapter(tmp_path / "one", kind, seed=1)
    two = save_adapter(tmp_path / "two", kind, targets=ATTENTION_ONLY, seed=2, r=7, lora_alpha=5, use_rslora=True)
    loaded = [load_adapter(each, model) for each in (one, two)]
    driver = Driver(make_engine(kind, device="cuda", fused=True, adapters=Adapters(loaded), max_batch_tokens=64))
    if captured:
        driver.engine.runner.capture()  # type: ignore[attr-defined]
    oracles = [Interpreter(each) for each in (random_model(kind), merged_model(one, kind), merged_model(two, kind))]
    namespaces = ["test", *(with_adapter("test", each.fingerprint) for each in loaded)]
    text, said = [(31 * i) % 128 for i in range(50)], [4, 9, 2, 77, 5, 6]
    calls, expected = [], []
    for shift, (namespace, oracle) in enumerate(zip(namespaces, oracles, strict=True)):
        read = driver.prefill(text, namespace=namespace)
        view = driver.place(EMPTY_VIEW, read, 40 + shift, 10, 45)
        calls.append(driver.submit([1, 2], view, 90, force(said), (5,), namespace=namespace))
        seen = [place_recorded(oracle.encode(text, 0, []), 40 + shift, 10, 45)]
        expected.append(oracle.encode([1, 2, *said, 5], 90, seen))
    driver.run()
    found = [logprobs(driver.result(call)) for call in calls]
    for own, recorded in zip(found, expected, strict=True):
        torch.testing.assert_close(own, recorded.logits[1:7].log_softmax(-1), atol=5e-4, rtol=0)
    assert (found[0] - found[1]).abs().max() > 0.01
    assert (found[1] - found[2]).abs().max() > 0.01
