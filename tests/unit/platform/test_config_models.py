"""Several models in the configuration: what it says of each, and how memory is shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_reference import random_model
from model_folders import random_folder

from laban.actors.engine.config import EngineConfig
from laban.actors.engine.host_memory import HostBlock
from laban.actors.engine.load import load_engine, num_slots
from laban.actors.errors import Exhausted, InvalidInput
from laban.cluster.config import LabanConfig, describe, resolve
from laban.cluster.config_models import ModelPlan, Settled, check_set_sizes, lacking_node, settle

GIB = 1 << 30


def plans(**models: dict[str, Any]) -> tuple[ModelPlan, ...]:
    return LabanConfig.model_validate({"models": models, "engine": {"num_threads": 1}}).model_plans()


def test_what_a_model_leaves_out_is_as_for_all(tmp_path: Path) -> None:
    file = tmp_path / "laban.yaml"
    file.write_text(
        "models:\n  one:\n  two: {path: /m, workers: 3, shards: 2, dtype: bfloat16, device_memory: 2GiB,"
        " host_memory: 1GiB, disk: 50%}\ndefault_model: two\nworkers: 2\nengine: {dtype: float32, page_size: 32}\n"
        "cache: {disk_bytes: 8GiB}\n"
    )
    found = resolve(file, environment={})
    two, one = found.config.model_plans()
    assert (one.name, one.path, one.workers, one.shards) == ("one", None, 2, 1)
    assert (two.name, two.path, two.workers, two.shards) == ("two", "/m", 3, 2)
    assert (one.engine.dtype, one.engine.pool_bytes, one.engine.host_bytes, one.engine.disk_bytes) == (
        "float32", None, None, 8 * GIB,
    )  # fmt: skip
    assert (two.engine.dtype, two.engine.pool_bytes, two.engine.host_bytes, two.engine.disk_bytes) == (
        "bfloat16", 2 * GIB, GIB, 4 * GIB,
    )  # fmt: skip
    assert one.engine.page_size == two.engine.page_size == 32
    assert one.engine.num_workers == two.engine.num_workers == 5
    file.write_text(describe(found))  # what `laban config` prints says the same
    assert resolve(file, environment={}).config == found.config
    variables = {"LABAN_MODELS": "{a: {}, b: {dtype: bfloat16}}"}
    assert list(resolve(environment=variables, folder=tmp_path / "none").config.models) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {a: {worker: 3}}", r"models\.a\.worker: no such setting; did you mean workers\?.*laban\.yaml"),
        ("models: {a: {workers: 0}}", r"models\.a\.workers: .*greater than 0.*\(got 0\)"),
        ("models: {a: {device_memory: lots}}", r"models\.a\.device_memory: expected bytes, such as 2GiB, or a share"),
        ("models: {a: {device_memory: 150%}}", r"models\.a\.device_memory: expected at most 100%"),
        ("models: {a b: {}}", "not a model's name"),
        ("models: {a: {}}\nmodel: x", "`model` and `models` are both set"),
        ("models: {a: {}}\ndefault_model: b", "default_model is 'b', expected one of a"),
        ("default_model: b", "expected `models` first"),
    ],
)
def test_bad_models_are_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "laban.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=said):
        resolve(folder=tmp_path, environment={})


def parts(found: list[Settled]) -> list[tuple[float, float]]:
    return [(each.num_gpus, round(each.engine.memory_share, 4)) for each in found]


def test_gpus_are_shared_out_by_what_is_stated_and_else_equally() -> None:
    assert parts(settle(plans(a={}, b={}), 2, None)) == [(1.0, 0.9), (1.0, 0.9)]
    assert parts(settle(plans(a={}, b={}), 1, None)) == [(0.5, 0.45), (0.5, 0.45)]
    stated = settle(plans(a={"device_memory": 0.6}, b={"device_memory": "30%"}), 1, None)
    assert parts(stated) == [(0.6666, 0.6), (0.3333, 0.3)]
    assert parts(settle(plans(a={"device_memory": 0.6}, b={}), 1, None)) == [(0.6666, 0.6), (0.3333, 0.3)]
    assert parts(settle(plans(a={"shards": 2}, b={"workers": 2}), 3, None)) == [(1.0, 0.9), (0.5, 0.45)]
    assert settle(plans(a={"device_memory": "3GiB"}, b={}), 2, None)[0].engine.pool_bytes == 3 * GIB
    # Equal parts that go on whole GPUs: three workers on two have halves.
    assert parts(settle(plans(a={"workers": 2}, b={}), 2, None)) == [(0.5, 0.45), (0.5, 0.45)]
    assert [part for part, _ in parts(settle(plans(a={"workers": 5}, b={}), 4, None))] == [0.5, 0.5]
    beside = settle(plans(a={"device_memory": 0.6}, b={"workers": 2}), 2, None)
    assert [part for part, _ in parts(beside)] == [0.6666, 0.5]


@pytest.mark.parametrize(
    ("models", "num_gpus", "said"),
    [
        ({"a": {"device_memory": 0.95}}, 1, "more than engine.memory_share, 0.9"),
        ({"a": {"device_memory": 0.6}, "b": {"device_memory": 0.5}}, 1, "more than the 1 GPUs"),
        ({"a": {"device_memory": 0.6, "workers": 3}}, 2, "more than the 2 GPUs"),  # 1.8 of 1.8, but no two on one
        ({"a": {"device_memory": 0.9}, "b": {}}, 1, "more than the 1 GPUs"),
        ({"a": {"shards": 2}, "b": {"shards": 2}}, 3, "more than the 3 GPUs"),
    ],
)
def test_more_than_the_gpus_have_is_refused(models: dict[str, Any], num_gpus: float, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        settle(plans(**models), num_gpus, None)


def test_memory_of_a_machine_is_shared_out_in_bytes_or_shares() -> None:
    models = {"a": {"device_memory": 0.25, "host_memory": "10%"}, "b": {"device_memory": "2GiB", "host_memory": "1GiB"}}
    a, b = settle(plans(**models), 0, 16 * GIB)
    assert (a.engine.pool_bytes, a.engine.host_bytes) == (4 * GIB, int(1.6 * GIB))
    assert (b.engine.pool_bytes, b.engine.host_bytes) == (2 * GIB, GIB)
    with pytest.raises(InvalidInput, match=r"models: keys and values .* take 8\.8 GiB \(a .*, b .*machine's 8\.0 GiB"):
        settle(
            plans(a={"device_memory": 0.7}, b={"device_memory": "2GiB", "workers": 1, "host_memory": "1GiB"}),
            0,
            8 * GIB,
        )
    with pytest.raises(InvalidInput, match=r"models\.a\.host_memory: a share of the memory of other machines"):
        settle(plans(a={"host_memory": 0.1}), 0, None)


def test_a_pool_of_so_many_bytes_has_as_many_pages() -> None:
    model = random_model("llama").to(torch.float32)
    per_token = 2 * 3 * 2 * 16 * 4  # keys and values, layers, heads, head_dim, bytes
    assert num_slots(model, EngineConfig(pool_bytes=per_token * 100)) == 96
    assert num_slots(model, EngineConfig(pool_bytes=per_token * 100, pool_tokens=32)) == 32
    with pytest.raises(Exhausted):
        num_slots(model, EngineConfig(pool_bytes=per_token * 15))


def test_a_resource_that_no_node_has_is_told_with_its_model() -> None:
    asked = plans(small={}, large={"resource": "big"})
    assert lacking_node(asked, {"CPU": 8.0, "big": 1.0}) is None
    lacking = lacking_node(asked, {"CPU": 8.0})
    assert lacking is not None
    assert (lacking.name, lacking.resource) == ("large", "big")


@pytest.mark.parametrize(
    ("settings", "on_gpu", "said"),
    [
        (
            {"cache": {"host_bytes": "900TiB"}},
            True,
            r"cache\.host_bytes: .*take 900\.0 TiB.*machine's memory, 8\.0 GiB",
        ),
        ({"cache": {"host_bytes": "3GiB"}, "workers": 3}, True, r"cache\.host_bytes: 3 workers.*take 9\.0 GiB"),
        ({"engine": {"pool_bytes": "9GiB"}}, False, r"engine\.pool_bytes: .*'9\.0 GiB'"),
        ({"engine": {"pool_tokens": 9 << 20}}, False, r"engine\.pool_tokens: .* 9\.0 GiB, .*\(got 9437184\)"),
        ({"engine": {"pool_bytes": "5GiB"}, "cache": {"host_bytes": "4GiB"}}, False, r"pool_bytes: .* 9\.0 GiB"),
    ],
)
def test_one_models_caches_beyond_the_machine(settings: dict[str, Any], on_gpu: bool, said: str) -> None:
    (plan,) = LabanConfig.model_validate(settings).model_plans()
    with pytest.raises(InvalidInput, match=said):
        check_set_sizes(plan, 1024, 8 * GIB, on_gpu=on_gpu)
    check_set_sizes(plan, 1024, 1000 << 40, on_gpu=on_gpu)


def test_what_is_not_set_is_not_refused() -> None:
    (plan,) = LabanConfig.model_validate({"workers": 4, "engine": {"pool_tokens": 9 << 20}}).model_plans()
    check_set_sizes(plan, 1024, 2 * GIB, on_gpu=True)


def test_a_worker_looks_at_its_own_machine(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "m", "llama", marks=("<", ">"))
    with pytest.raises(InvalidInput, match=r"cache\.host_bytes: the worker's machine has \d+ bytes"):
        load_engine(folder, EngineConfig(host_bytes=900 << 40))
    with pytest.raises(Exhausted, match=r"engine\.pool_tokens: .* but the machine has"):
        load_engine(folder, EngineConfig(device="cpu", pool_tokens=1 << 50))
    with pytest.raises(Exhausted, match=r"cache\.host_bytes: .*cannot be had"):
        HostBlock(900 << 40, pinned=False)
