from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from laban.actors.engine.config import EngineConfig
from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.config import EngineSection, LabanConfig, describe, resolve, variable_of
from laban.cluster.http.section import HttpSection
from laban.cluster.launch import gpus_each
from laban.cluster.metrics_server import settled
from laban.kernels import flash_backends
from laban.kernels.plan_layout import COUNT_BITS


def settle(tmp_path: Path, text: str = "", flags: dict[str, object] | None = None, **environment: str):  # type: ignore[no-untyped-def]
    if text:
        (tmp_path / "laban.yaml").write_text(text)
    return resolve(flags=flags, environment=environment, folder=tmp_path)


def test_later_layers_win(tmp_path: Path) -> None:
    text = "workers: 2\nserver:\n  port: 1\nengine:\n  pool_tokens: 100\n"
    resolved = settle(
        tmp_path, text, {"server.port": 3, "model": None}, LABAN_SERVER_PORT="2", LABAN_ENGINE_POOL_TOKENS="200"
    )
    config = resolved.config
    assert (config.workers, config.server.port, config.engine.pool_tokens, config.model) == (2, 3, 200, None)
    assert resolved.sources["server.port"] == "the command line"
    assert resolved.sources["engine.pool_tokens"] == "the environment"
    assert resolved.sources["workers"].endswith("laban.yaml")
    assert settle(tmp_path, text, None, LABAN_ENGINE_POOL_TOKENS="").config.engine.pool_tokens is None


def test_defaults_need_no_file(tmp_path: Path) -> None:
    resolved = settle(tmp_path, "", None, PATH="/bin")
    assert resolved.config == LabanConfig()
    assert (resolved.file, dict(resolved.sources)) == (None, {})


def test_description_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    resolved = settle(tmp_path, "workers: 3\nmodel: 'a: b # c'\nengine: {device: 'cuda:1'}\n")
    text = describe(resolved)
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert resolve(again, environment={}).config == resolved.config
    assert all(" # " in line or line.endswith(":") for line in text.splitlines() if line and not line.startswith("#"))
    assert yaml.safe_load(text)["engine"]["page_size"] == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker: 2", "worker: no such setting, in .*did you mean workers"),
        ("engine: {dtyp: float32}", r"engine\.dtyp: no such setting.*did you mean engine\.dtype"),
        ("engine: 5", "engine: expected fields below it"),
        ("workers: 0", r"workers: input should be greater than 0, in .*laban\.yaml \(got 0\)"),
        ("workers: many", r"workers: input should be a valid integer.*\(got 'many'\)"),
        ("engine: {dtype: int8}", r"engine\.dtype: .*'auto', 'float32', 'bfloat16' or 'float16'"),
        ("engine: {attention: flash}", r"engine\.attention: .*'flash-attention-3'.* \(got 'flash'\)"),
        ("engine: {memory_share: 0}", r"engine\.memory_share: .*greater than 0"),
        ("engine: {memory_share: 1.1}", r"engine\.memory_share: .*less than or equal to 1"),
        ("engine: {max_batch_tokens: 0}", r"engine\.max_batch_tokens: .*greater than 0"),
        ("engine: {page_size: 2048}", r"engine\.page_size: .*1024"),
        ("engine: {cuda_graphs: 3}", r"engine\.cuda_graphs: .*boolean"),
        ("server: {port: 70000}", r"server\.port: .*65535"),
        ("cache: {host_bytes: -1}", r"cache\.host_bytes: .*greater than or equal to 0.*\(got -1\)"),
        ("cache: {host_bytes: 4XB}", r"cache\.host_bytes: expected a number of bytes, such as 4GiB.*\(got '4XB'\)"),
        ("cache: {host_bytes: true}", r"cache\.host_bytes: expected a number"),
        ("workers: true", r"workers: expected a number, in .*laban\.yaml \(got true\)"),
        ("models: {a: {workers: yes}}", r"models\.a\.workers: expected a number"),
        ("engine: {max_batch_tokens: yes}", r"engine\.max_batch_tokens: expected a number"),
        ("cache: {host_bytes: 1.5}", r"cache\.host_bytes: .*valid integer.*\(got 1\.5\)"),
        ("cache: {disk_bytes: 0}", r"cache\.disk_bytes: .*greater than 0"),
        ("cache: {disk_bytes: 99999999999TiB}", r"cache\.disk_bytes: .*less than or equal to 1152921504606846976"),
        ("cache: {disk_folder: ''}", r"cache\.disk_folder: .*at least 1 character"),
        ("cache: {disk_folder: kv, host_bytes: 0}", r"cache\.host_bytes is 0 and cache\.disk_folder is set"),
        ("cache: {tenant_share: 0}", r"cache\.tenant_share: .*greater than 0"),
        ("cache: {link_bytes_per_s: fast}", r"cache\.link_bytes_per_s: expected a number of bytes"),
        ("cache: {eviction: 3}", r"cache\.eviction: .*valid string"),
        ("routing: {prefetch: maybe}", r"routing\.prefetch: .*boolean"),
        ("routing: {directory_shards: 257}", r"routing\.directory_shards: .*256"),
        ("cahce: {host_bytes: 1}", r"cahce: no such setting, in .*did you mean cache\?"),
        ("- a", "holds a list"),
        ("a: [", "not valid YAML"),
        ("workers: 2026-13-01", "not valid YAML: .*timestamp.*line 1"),
        ("workers: !!int two", "not valid YAML: .*int.*line 1"),
        ("[" * 5000, "not valid YAML: is nested too deep"),
        ("auth: {tokens_file: a}\nworkers: 2\nauth: {}", r"laban\.yaml, line 3: auth is there twice"),
        ("engine:\n  page_size: 16\n  page_size: 32", "line 3: page_size is there twice"),
        ("models: {a: {path: x}, b: {path: y}, a: {path: z}}", "line 1: a is there twice"),
        ("server: {port: 9464}\nmetrics: {port: 9464}", r"server\.port and metrics\.port are both 9464"),
        ("server: {host: ''}\nhttp: {port: 8470}", r"server\.port and http\.port are both 8470"),
        ("http: {port: 9}\nmetrics: {port: 9, host: '::'}", r"http\.port and metrics\.port are both 9"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        settle(tmp_path, text)


def test_equal_ports_are_one_where_something_listens_on_both(tmp_path: Path) -> None:
    for text in (
        "server: {port: 8471}",  # a port that nobody asked for gives way
        "server: {port: 0}\nhttp: {port: 0}\nmetrics: {port: 0}",
        "http: {port: null}\nmetrics: {port: null}",
        "server: {host: 10.0.0.1, port: 9}\nhttp: {host: 10.0.0.2, port: 9}",
    ):
        settle(tmp_path, text)
    merged = settle(tmp_path, "server: &a {port: 9, host: x}\nhttp: {<<: *a, port: 10}").config  # no key is there twice
    assert (merged.http.host, merged.http.port) == ("x", 10)


def test_a_port_that_nobody_asked_for_gives_way_to_those_of_the_others() -> None:
    http = HttpSection()
    assert settled(http, (8471,)).port not in (8471, 0)
    assert settled(HttpSection(port=None), (8471,)).port is None


def test_bad_environment(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="LABAN_WORKER: no such setting; did you mean LABAN_WORKERS"):
        settle(tmp_path, LABAN_WORKER="2")
    with pytest.raises(InvalidInput, match=r"server\.port: .*in the environment"):
        settle(tmp_path, LABAN_SERVER_PORT="http")


def test_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        resolve(tmp_path / "none.yaml", environment={})
    with pytest.raises(NotFound, match="does not exist"):
        settle(tmp_path, LABAN_CONFIG=str(tmp_path / "none.yaml"))


def test_the_engine_is_told_all_of_its_section(tmp_path: Path) -> None:
    engine = LabanConfig().engine.model_dump(exclude={"shards", "parse_special_tokens"})  # of the control plane
    told = engine | LabanConfig().cache.model_dump() | {"num_workers": LabanConfig().workers, "adapters": ()}
    assert told == asdict(EngineConfig())
    changed: dict[str, object] = {
        "pool_tokens": 320, "pool_bytes": 640, "page_size": 32, "max_batch_tokens": 64, "max_running": 3,
        "max_waiting": 5, "dtype": "float16", "device": "cuda", "num_threads": 2, "memory_share": 0.5,
        "attention": "cudnn", "cuda_graphs": False, "drafting": False, "draft_tokens": 7,
    }  # fmt: skip
    assert changed.keys() == engine.keys()
    variables = {variable_of(f"engine.{name}"): str(value).lower() for name, value in changed.items()}
    assert settle(tmp_path, **variables).config.engine_config() == EngineConfig(**changed)  # type: ignore[arg-type]
    kept: dict[str, object] = {
        "host_bytes": 3, "disk_folder": "/d", "disk_bytes": 5, "eviction": "lru", "tenant_share": 0.5,
        "link_bytes_per_s": 7.0, "transport": "nixl",
    }  # fmt: skip
    assert kept.keys() == LabanConfig().cache.model_dump().keys()
    variables |= {variable_of(f"cache.{name}"): str(value) for name, value in kept.items()}
    assert settle(tmp_path, **variables).config.engine_config() == EngineConfig(**changed, **kept)  # type: ignore[arg-type]


def test_every_attention_that_may_be_named_is_one_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_backends, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(flash_backends, "_function", lambda module, name: lambda **options: None)
    installed = flash_backends._installed(torch.device("cuda"), torch.bfloat16)
    names = {"auto", "reference"} | {backend.name for backend in installed}
    assert set(get_args(EngineSection.model_fields["attention"].annotation)) == names


def test_the_sizes_of_a_batch_fit_the_device() -> None:
    config = LabanConfig().engine_config()
    on_cpu, on_gpu = config.settled("cpu", "bfloat16"), config.settled("cuda", "float32")
    assert (on_cpu.dtype, on_cpu.max_batch_tokens) == ("float32", 512)
    assert (on_gpu.dtype, on_gpu.max_batch_tokens) == ("bfloat16", 8192)
    assert config.settled("cuda", "float16").dtype == "float16"
    own = replace(config, dtype="float32", max_batch_tokens=7)
    assert own.settled("cuda", "float16") == own
    limit = next(item.le for item in EngineSection.model_fields["page_size"].metadata if hasattr(item, "le"))
    assert limit < 1 << COUNT_BITS  # a plan's count of keys in a page


def test_sizes_may_have_units(tmp_path: Path) -> None:
    text = "cache: {host_bytes: 1.5GiB, disk_bytes: 2 TB, link_bytes_per_s: 5e9}"
    cache = settle(tmp_path, text, None).config.cache
    assert (cache.host_bytes, cache.disk_bytes, cache.link_bytes_per_s) == (3 << 29, 2 * 10**12, 5e9)
    cache = settle(tmp_path, text, {"cache.host_bytes": "64mib"}, LABAN_CACHE_DISK_BYTES="4096").config.cache
    assert (cache.host_bytes, cache.disk_bytes) == (64 << 20, 4096)


def test_threads_are_shared_out() -> None:
    one, many = LabanConfig(workers=1).engine_config(), LabanConfig(workers=1000).engine_config()
    assert one.num_threads is not None
    assert one.num_threads >= 1
    assert many.num_threads == 1
    assert LabanConfig.model_validate({"engine": {"num_threads": 7}}).engine_config().num_threads == 7
    assert LabanConfig.model_validate({"engine": {"shards": 64}}).engine_config().num_threads == 1


def test_each_shard_needs_a_gpu_where_there_are_any() -> None:
    config = LabanConfig.model_validate({"workers": 2, "engine": {"shards": 2}})
    assert [gpus_each(config, available) for available in (0.0, 4.0, 9.0)] == [0.0, 1.0, 1.0]
    with pytest.raises(InvalidInput, match=r"engine\.shards: Ray sees 3 GPUs, expected 4: .* \(got 2\)"):
        gpus_each(config, 3.0)
    assert gpus_each(LabanConfig(workers=3), 1.5) == 0.5


def test_configuration_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        LabanConfig().workers = 2  # type: ignore[misc]
