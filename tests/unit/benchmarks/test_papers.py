"""The papers' benchmark on a tiny random model: KVCOMM as published, and what all arms have alike."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_modules import benchmark_modules
from engine_harness import make_engine


@pytest.fixture(scope="module", autouse=True)
def _benchmarks() -> Iterator[None]:
    """The benchmarks import one another by their names, as they do when they are run."""
    with benchmark_modules("papers"):
        yield


@pytest.fixture
def peer() -> ModuleType:
    return import_module("peer_kvcomm")


@pytest.mark.parametrize("spread", [0.2, 0.5])
def test_a_text_that_the_pool_has_weighs_little_more_than_any_other(peer: ModuleType, spread: float) -> None:
    """Mean differences of keys are some tenths, so that a softmax of temperature 1 is nearly flat."""
    generator = torch.Generator().manual_seed(1)
    anchors = spread * torch.randn(20, 64, 1024, generator=generator) / 2**0.5
    weights = peer.token_weights((anchors - anchors[7]).abs().mean(-1))
    torch.testing.assert_close(weights.sum(0), torch.ones(64))
    assert float(weights[7].min()) > 0.05
    assert float(weights[7].max()) < 0.08
    assert int(weights[:, 0].argmax()) == 7


@pytest.mark.parametrize(("num_tokens", "share"), [(16, 0.6), (256, 0.9)])
def test_an_unrelated_text_is_accepted_where_norms_differ(peer: ModuleType, num_tokens: int, share: float) -> None:
    """The gate asks whether one anchor is nearer than the others, not whether any is near: values of 32 layers of 1,024
    channels that have nothing in common, and anchors whose norms differ by 5 %. The longer the text, the sooner."""
    generator = torch.Generator().manual_seed(2)
    accepted = 0
    for _ in range(300):
        scales = 1 + 0.05 * torch.randn(20, generator=generator)
        distances = (num_tokens * 32 * 1024 * (1 + scales.square())).sqrt()
        accepted += peer.accepts(distances, 0.3)
    assert accepted > share * 300


def test_the_gate_at_its_ends(peer: ModuleType) -> None:
    assert not peer.accepts(torch.zeros(0), 1.0)
    assert not peer.accepts(torch.zeros(1), 1.0)
    assert not peer.accepts(torch.full((20,), 3.0), 0.99)
    assert peer.accepts(torch.tensor([0.0] + [300.0] * 19), 0.01)


def test_what_counts_as_used(peer: ModuleType) -> None:
    near = torch.tensor([0.0, 1.0, 50.0])
    assert peer.nucleus(near) == [0]
    assert peer.nucleus(torch.tensor([0.0, 50.0, 60.0])) == [0, 1, 2]


def test_of_the_oldest_the_least_used_goes(peer: ModuleType) -> None:
    pool = peer.Pool()
    anchors = [peer.Anchor(base) for base in range(peer.MAX_ANCHORS)]
    for anchor in anchors:
        assert pool.add(anchor) is None
    for anchor in anchors[:3]:
        anchor.num_uses = 2
    assert pool.add(peer.Anchor(-1)) is anchors[3]
    assert len(pool.anchors) == peer.MAX_ANCHORS


def table(engine: Any, **changes: Any) -> Any:
    stage, kvcomm, report = (import_module(name) for name in ("paper_stage", "paper_kvcomm", "report"))
    prose = stage.Prose(random.Random(1), engine.info.vocab_size)
    options = {"compared": 3, "scored": True, "repetitions": 1, **changes}
    return kvcomm.Table(engine, prose, stage.Frames.plain(prose), report.Clock(), **options)


def lengths() -> Any:
    return import_module("paper_kvcomm").Lengths(question=40, prefix=20, out=12, agents=3)


def script(of: Any) -> Any:
    workload = import_module("paper_kvcomm").connected(lengths())
    return of._script(workload, {key: 40 if key == "question" else 20 for key in workload.messages})


@pytest.mark.parametrize("fused", [False, True])
def test_every_arm_reads_and_says_the_same(fused: bool) -> None:
    engine = make_engine(pool_tokens=8192, fused=fused)
    stage, peer = import_module("paper_stage"), import_module("peer_kvcomm")
    of = table(engine)
    told = script(of)
    stages = [stage.Stage(engine, arm) for arm in stage.ARMS] + [peer.KvcommStage(engine, stage.Arm("kvcomm"))]
    taken = {each.arm.name: stage.Taken() for each in stages}
    for each in stages:
        each.give(told)
    stage.act(told, stages, taken, scored=True)
    for step in told.workload.steps:
        said = {each.homes[step.key].tokens for each in stages}
        assert said == {told.written(step)}
        assert len(told.said[step.key]) == lengths().out
        starts = {each.homes[step.key].start for each in stages}
        assert starts == {20 + 40 + (int(step.key[-1]) - 1) * len(told.written(step))}
    assert taken["direct"].encoded < taken["blended"].encoded < taken["prefix"].encoded
    assert not taken["prefix"].kl
    assert not taken["prefix_shared_first"].kl
    assert max(taken["corrected"].all_kl) < 1e-5  # nothing is predicted of what is new
    assert max(taken["kvcomm"].all_kl) < 1e-5  # its pools are empty
    assert max(taken["direct"].all_kl) > 1e-4
    assert len(taken["direct"].all_kl) == 3 * 3


def test_anchors_of_one_text_give_back_what_it_was() -> None:
    """All have the same deviations, so that weights do not matter."""
    engine = make_engine(pool_tokens=8192)
    stage, peer = import_module("paper_stage"), import_module("peer_kvcomm")
    told = script(table(engine))
    filled = peer.KvcommStage(engine, stage.Arm("kvcomm"), gamma=0.0)
    for _ in range(3):
        filled.give(told)
        for step in told.workload.steps:
            filled.say(told, step)
        filled.commit()
    assert {key: len(pool.anchors) for key, pool in filled.pools.items()} == {"question": 3, "agent_1": 3, "agent_2": 3}
    using = peer.KvcommStage(engine, stage.Arm("kvcomm_all"), gamma=1.0, pools=filled.pools)
    using.give(told)
    for step in told.workload.steps:
        using.say(told, step)
    assert using.num_reusing == using.num_calls == 3

    def rows(spec: Any) -> tuple[torch.Tensor, torch.Tensor]:
        slots = engine.store.get_ready(spec.encoding_id).slots(spec.num_tokens)
        return engine.runner.k_pool[:, slots], engine.runner.v_pool[:, slots]

    for reader, anchor in (("agent_1", "question"), ("agent_3", "question"), ("agent_3", "agent_1")):
        true = filled.pools[anchor].anchors[0].trues[reader]
        prefix = told.given[f"prefix_{reader[-1]}"]
        same = [s for s in using.specs.values() if s.tolerance and (s.tokens, s.start) == (true.tokens, true.start)]
        (mixed,) = (spec for spec in same if _begins_with(using, spec) == prefix)
        for found, wanted in zip(rows(mixed), rows(true), strict=True):
            torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)
    filled.drop()
    engine.store.check_integrity()


def _begins_with(stage: Any, spec: Any) -> tuple[int, ...]:
    """The tokens that its view begins with."""
    while spec.view.prefix_id is not None:
        spec = stage.specs[spec.view.prefix_id]
    tokens: tuple[int, ...] = spec.tokens
    return tokens


def test_the_papers_workflows() -> None:
    made = import_module("paper_choreography")
    tree = made.tree_of_thoughts(3, 2)
    assert [step.num_tokens for step in tree.steps] == [100] * 3 + [44] * 2 + [256]
    assert tree.steps[3].reads == ("vote", "problem", "propose_1", "propose_2", "propose_3")
    assert tree.shared_first(tree.steps[3]) == ("problem", "propose_1", "propose_2", "propose_3", "vote")
    shuffled = made.tree_of_thoughts(8, 2, shuffled=True)
    assert shuffled.steps[8].reads != shuffled.steps[9].reads
    assert sorted(shuffled.steps[8].reads) == sorted(shuffled.steps[9].reads)
    turns = made.debate_in_turns()
    assert len(turns.steps) == 9
    assert len(turns.steps[-1].reads) == 2 + 8
    debate = made.debate_at_once(3)
    assert [len(wave) for wave in debate.waves()] == [3] * 4
    assert set(debate.steps[-1].reads) == {
        "prompt_2", "problem", "answer_0_2", "answer_1_2", "answer_2_2", "answer_2_0", "answer_2_1",
    }  # fmt: skip


@pytest.mark.slow
def test_measures_all_sections(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    papers = import_module("papers")
    options = ["--tiny", "--repetitions", "1", "--voters", "2", "--json", "--out", str(tmp_path)]
    assert papers.main([*options, "--sections", "new,cost,choreography"]) == 0
    values = {row["name"]: row["value"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert values["new.kvcomm.anchors"] == 3
    assert values["new.kvcomm_all.calls_reusing"] == 1
    assert values["new.direct.encoded"] < values["new.prefix.encoded"]
    assert values["cost.corrected.encoded"] == 3 * 16  # the header alone: all was predicted
    assert values["tot_b2v2.direct.encoded"] < values["tot_b2v2.prefix.encoded"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".svg"}


def test_a_section_that_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        import_module("papers").main(["--tiny", "--sections", "new,what"])
    assert "no section what" in capsys.readouterr().err
