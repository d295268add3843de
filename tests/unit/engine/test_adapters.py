"""An engine with adapters computes what PEFT's merged models do, mixed in one batch; never is one's another's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapter_folders import ATTENTION_ONLY, merged_model, save_adapter, save_model
from engine_harness import TOLERANCE, Driver, assert_same_encoding, force, logprobs, make_engine, place_recorded
from engine_reference import Interpreter, random_model

from laban.actors.adapter_folder import TARGETS
from laban.actors.calls import Advice, Prefetch
from laban.actors.engine.adapters import Adapters, load_adapter
from laban.actors.engine.sharding import shard_model
from laban.kvstore.encodings import EMPTY_VIEW, View, make_spec, with_adapter
from laban.kvstore.spaces import Space, moved

KINDS = ("llama", "qwen2", "qwen3", "gemma3", "mistral-window")


class World:
    """An engine with the adapters `one` (every layer) and `two` (attention alone, of another rank), and the
    interpreters of the three models."""

    def __init__(self, folder: Path, kind: str, fused: bool, **config: int) -> None:
        model = save_model(folder / "model", kind)
        one = save_adapter(folder / "one", kind, seed=1)
        two = save_adapter(folder / "two", kind, targets=ATTENTION_ONLY, seed=2, r=7, lora_alpha=5, use_rslora=True)
        loaded = [load_adapter(each, model) for each in (one, two)]
        self.namespaces = ["test", *(with_adapter("test", each.fingerprint) for each in loaded)]
        self.driver = Driver(make_engine(kind, fused=fused, adapters=Adapters(loaded), **config))
        models = [random_model(kind), merged_model(one, kind), merged_model(two, kind)]
        self.oracles = [Interpreter(each) for each in models]


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(128, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_mixes_adapters_is_each_merged_model_alone(kind: str, fused: bool, tmp_path: Path) -> None:
    world = World(tmp_path, kind, fused, max_batch_tokens=64)
    driver, calls, expected = world.driver, [], []
    text, said = tokens(50, 1), tokens(6, 2)
    for shift, (namespace, oracle) in enumerate(zip(world.namespaces, world.oracles, strict=True)):
        a = driver.prefill(text, namespace=namespace)
        b = driver.prefill(tokens(9, 3), EMPTY_VIEW, 4, namespace=namespace)
        recorded = [oracle.encode(text, 0, []), oracle.encode(tokens(9, 3), 4, [])]
        assert_same_encoding(driver, oracle, a, recorded[0])
        view = driver.place(driver.place(EMPTY_VIEW, b, 3 + shift), a, 40 + shift, 10, 45)
        calls.append(driver.submit([1, 2], view, 90, force(said), (5,), namespace=namespace))
        seen = [place_recorded(recorded[1], 3 + shift), place_recorded(recorded[0], 40 + shift, 10, 45)]
        expected.append(oracle.encode([1, 2, *said, 5], 90, seen))
    driver.run()
    found = [logprobs(driver.result(call)) for call in calls]
    for own, recorded in zip(found, expected, strict=True):
        torch.testing.assert_close(own, recorded.logits[1:7].log_softmax(-1), atol=TOLERANCE, rtol=0)
    assert (found[0] - found[1]).abs().max() > 100 * TOLERANCE
    assert (found[1] - found[2]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("fused", [False, True])
def test_what_one_adapter_encoded_is_nothing_to_another(fused: bool, tmp_path: Path) -> None:
    """The plain model's keys and values are poisoned, and the first adapter's; the second's calls do not notice."""
    world = World(tmp_path, "llama", fused)
    driver, text = world.driver, tokens(40, 1)
    for namespace in world.namespaces[:2]:
        spec = driver.prefill(text, namespace=namespace)
        entry = driver.engine.store.get(spec.encoding_id)
        assert entry is not None
        slots = [first + i for first, length in entry.runs(0, entry.num_tokens) for i in range(length)]
        driver.engine.runner.k_pool[:, slots] = driver.engine.runner.v_pool[:, slots] = float("nan")
    known: dict[str, str] = {}
    home = driver.specs[moved(spec.encoding_id, Space(world.namespaces[2]), driver.specs, known)]
    assert home.encoding_id != spec.encoding_id
    call = driver.submit([1], View(home.encoding_id), sampling=force([3, 4]), namespace=world.namespaces[2])
    driver.run()
    assert driver.result(call).tokens_reused == 0
    expected = world.oracles[2].encode([*text, 1, 3, 4], 0, []).logits[40:42].log_softmax(-1)
    torch.testing.assert_close(logprobs(driver.result(call)), expected, atol=TOLERANCE, rtol=0)


def test_a_call_that_would_read_anothers_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, "llama", False)
    driver = world.driver
    spec = driver.prefill(tokens(5, 1))
    mixed = driver.submit([1], driver.chain(spec), sampling=force([3]), namespace=world.namespaces[1])
    unknown = driver.submit([1], sampling=force([3]), namespace=with_adapter("test", "feed"))
    driver.run()
    assert (driver.failure(mixed).status, driver.failure(unknown).status) == ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
    assert "several adapters" in driver.failure(mixed).message
    assert "no such adapter" in driver.failure(unknown).message


def test_a_prefetch_of_an_adapter_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    world = World(tmp_path, "llama", False)
    spec = make_spec(with_adapter("test", "feed"), [1, 2], 0, EMPTY_VIEW, {})
    world.driver.engine.advise(Advice(prefetches=(Prefetch(spec.encoding_id, (spec,)),)))
    world.driver.run()
    assert spec.encoding_id not in world.driver.engine.store


def test_an_adapters_tokens_are_no_anchors_of_anothers() -> None:
    from laban.kvstore.anchors import tokens_of
    from laban.kvstore.surroundings import Digests

    plain, other = (make_spec(name, [1, 2], 0, EMPTY_VIEW, {}) for name in ("m/t", with_adapter("m/t", "5f")))
    digests = Digests()
    assert tokens_of(plain, digests) != tokens_of(other, digests)
    assert tokens_of(plain, digests)[0] == tokens_of(other, digests)[0]  # one tenant's share


def test_the_targets_of_all_served_kinds_are_these() -> None:
    linear = {
        name.rpartition(".")[2]
        for kind in KINDS
        for name, module in random_model(kind).base_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert linear == set(TARGETS)


@pytest.mark.parametrize("rank", [0, 3])
@torch.no_grad()
def test_a_shard_has_its_slice_of_the_factors(rank: int, tmp_path: Path) -> None:
    """Of four, two of which share a KV head: the slice of the merged weights is the slice with its slice's product."""
    shape = {"num_attention_heads": 8, "num_key_value_heads": 2}
    model = save_model(tmp_path / "model", **shape)
    folder = save_adapter(tmp_path / "adapter", shape=shape)
    group: Any = SimpleNamespace(rank=rank, size=4, device=torch.device("cpu"))
    plain, whole = random_model("llama", **shape), merged_model(folder, **shape)
    for each in (plain, whole):
        shard_model(each, group)
    adapters = Adapters([load_adapter(folder, model)])
    adapters.attach(plain, group)
    adapters._rows.set([0, 0, -1])
    bare = random_model("llama", **shape)
    shard_model(bare, group)
    for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        layers = [model.base_model.layers[1].get_submodule(name) for model in (plain, whole, bare)]
        served, expected, without = (getattr(layer, "linear", layer) for layer in layers)
        x = torch.randn(3, expected.in_features)
        torch.testing.assert_close(served(x)[:2], expected(x)[:2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(served(x)[2], without(x)[2], atol=1e-4, rtol=1e-4)
