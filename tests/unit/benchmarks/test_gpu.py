"""The benchmark of a GPU, tried on a CPU on a tiny model: every section, and what its numbers are compared with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from laban.kernels.flash_backends import REFERENCE, varlen_reference

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[3] / "benchmarks"
ENGINE_SECTIONS = "ceilings,plan,dense,cached,agents,panel,itl"


@pytest.fixture(scope="module", autouse=True)
def _benchmarks() -> Iterator[None]:
    """The benchmarks import one another by their names, as they do when they are run."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


@pytest.fixture
def gpu() -> ModuleType:
    return import_module("gpu")


@pytest.fixture
def attention() -> ModuleType:
    return import_module("gpu_attention")


@pytest.fixture
def cases() -> ModuleType:
    return import_module("gpu_cases")


def run(gpu: ModuleType, capsys: pytest.CaptureFixture[str], out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """What it returns, and the document that it prints."""
    failed = gpu.main(["--tiny", "--reps", "1", "--json", "--out", str(out), *options])
    return failed, json.loads(capsys.readouterr().out)


def test_every_section_on_an_engine(gpu: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    failed, document = run(gpu, capsys, tmp_path, "--only", ENGINE_SECTIONS, "--commit", "abc")
    assert failed == 0
    values = {row["name"]: row["value"] for row in document["rows"]}
    assert set(import_module("gpu_peer").FIGURES) <= set(values)
    assert all(value > 0 for value in values.values())
    assert values["panel.encoded.first_tokens"] < values["panel.encoded.end_to_end"]
    assert 0 < values["pages.waste"] < 100
    assert document["commit"] == "abc"
    assert "engine: fused-reference" in document["machine"]
    assert [json.loads(path.read_text()) for path in tmp_path.iterdir()] == [document]


def test_a_section_that_fails_leaves_the_others(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(bench: object) -> list[Any]:
        raise RuntimeError("no")

    monkeypatch.setitem(gpu.SECTIONS, "ceilings", fail)
    failed, document = run(gpu, capsys, tmp_path, "--only", "plan,ceilings")
    assert failed == 1
    assert [row["name"] for row in document["rows"]] == ["plan.build_64x16", "plan.advance_64x16"]


@pytest.mark.parametrize("options", [["--tiny", "--only", "dense,what"], []])
def test_refuses(gpu: ModuleType, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(options)


def test_prints_profiles(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--tiny", "--profile"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("us by the clock") == 3
    assert printed.count("aten::mm") >= 3
    assert "synchronize" in printed


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["16x8x1024", "private_32x5120", "short_16x200x30", "short_16x200x30.ungrouped"])
def test_a_layer_computes_the_definition(attention: ModuleType, cases: ModuleType, name: str, fused: bool) -> None:
    """With the references, and with the kernels: on a card if there is one, else in Triton's interpreter."""
    if fused:
        pytest.importorskip("triton")
    device = torch.device("cuda:0" if fused and torch.cuda.is_available() else "cpu")
    limit = 1e-6 if device.type == "cpu" else 0.0045
    case = next(case for case in cases.CASES if case.name == name)
    case = replace(case, num_calls=3, num_messages=min(case.num_messages, 3), message_tokens=21)
    layer = attention.Layer(case, cases.Heads(4, 2, 32), device, 5, fused=fused)
    layer.run(0)
    expected = layer.expected()
    assert attention.relative_error(layer.out, expected) < limit
    if not case.private:  # moved keys matter
        layer.inv_freq *= 1.1
        assert attention.relative_error(layer.out, layer.expected()) > 0.02


def test_copies_hold_what_the_calls_see(attention: ModuleType, cases: ModuleType) -> None:
    case = cases.Case("", 3, 4, 21)
    layer = attention.Layer(case, cases.Heads(4, 2, 32), torch.device("cpu"), 6, fused=False)
    layer.run(0)
    keys, values = layer.copied(0)
    stops = torch.arange(4) * (case.tokens_read + 1)
    found, _ = varlen_reference(
        layer.rotated[:3], keys, values, torch.arange(4), stops, 1, int(stops[1]), False, layer.scale
    )
    assert attention.relative_error(found, layer.expected()) < 1e-6


def test_measures_a_layer_beside_copies(attention: ModuleType, cases: ModuleType) -> None:
    size = import_module("gpu_model").Size(tiny=True)
    case = next(case for case in cases.CASES if case.name == "64x16x512")
    rows = attention.measure_case(case, size, torch.device("cpu"), 1, 0, REFERENCE, fused=False)
    assert [row.name.removeprefix("attention.64x16x512") for row in rows] == [
        ".error", "", ".attend", ".copied", ".copied.error",
    ]  # fmt: skip
    assert rows[1].target == 60
    assert rows[0].value < 1e-6
    assert rows[4].value < 1e-5


def test_batches_at_full_size_fit_the_plan(attention: ModuleType, cases: ModuleType) -> None:
    heads, draw = cases.Heads(32, 8, 128), np.random.default_rng(0)
    for case in cases.CASES:
        batch = cases.batch_of(case, draw)
        orders = batch.reads[:, 1].reshape(case.num_calls, -1)
        assert len(set(map(tuple, orders))) == case.num_calls  # each in an order of its own
        assert len(set(batch.slots)) == case.num_calls
        assert len(np.unique(orders)) == case.num_messages * (case.num_calls if case.private else 1)
        choice = attention.tile_choice(heads, torch.bfloat16, 132, ungrouped=case.ungrouped)
        kind = attention.LayerKind(torch.ones(64), 1.0, None)
        attention.PlanBuffers(kind, choice, torch.device("cpu")).make(batch)


def test_peers_rows_stand_beside_what_was_measured() -> None:
    report, peer = import_module("report"), import_module("gpu_peer")
    made = report.Report("gpu", rows=[report.Row("itl.shared_1", 6.0, "ms"), report.Row("other", 1.0, "ms")])
    assert [(row.name, row.value, row.unit) for row in peer.peer_rows(made)] == [
        ("vllm_0_26.itl.shared_1", 6.703, "ms"),
        ("vllm_0_26_to_ours.itl.shared_1", 6.703 / 6.0, "x"),
    ]


def test_times_of_steps_that_give_every_call_a_token() -> None:
    played = import_module("gpu_workloads").Played([[10.0, 12.0, 15.0], [11.0, 12.0, 15.0]])
    assert (played.first_ms, played.last_ms, played.gaps_ms) == (11.0, 15.0, [1.0, 3.0])


def test_a_layer_is_planned_as_the_engine_plans_it(attention: ModuleType, cases: ModuleType) -> None:
    model = import_module("gpu_model")
    size = model.Size(tiny=True)
    engine, _ = model.open_engine(size, torch.device("cpu"), 0)
    expected = engine.runner._plans[0].choice
    heads = cases.Heads.of(size)
    assert attention.tile_choice(heads, torch.float32, 1) == expected
