"""Shards of a model answer as the whole does, in lockstep; one that fails takes its worker along, soon."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from engine_harness import TOLERANCE, Driver, force, make_engine
from engine_reference import KINDS, random_model
from shard_processes import HEADS, compare_dense, fail_on_one, outcomes, play, play_all, run_shards, sharded_engine

from laban.actors.calls import WorkerLoad
from laban.actors.engine.lockstep import ShardsDiverged, Turn, follow
from laban.actors.engine.sharding import local_num_heads, local_num_kv_heads, shard_model
from laban.actors.engine.tick import Tick
from laban.actors.errors import InvalidInput, UnsupportedModel
from laban.actors.shards import heads_per_shard
from laban.kernels import row_attention
from laban.kvstore.arrivals import Standing
from laban.kvstore.encodings import EMPTY_VIEW
from laban.kvstore.store import Entry

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", [2, 4])
def test_shards_answer_as_the_whole_model_does(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_attention, "compiled", None)
    shards = run_shards(size, play_all, KINDS)
    for index, kind in enumerate(KINDS):
        told, generated, reasons = play(Driver(sharded_engine(kind, None)))
        shard_told, *shard_rest = shards[0][index][0]
        for expected, got in zip(told, shard_told, strict=True):
            np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0, err_msg=kind)
        assert tuple(shard_rest) == (generated, reasons), kind
        entries = [answers[index][1] for answers in shards]
        assert entries[0], kind
        assert all(other == entries[0] for other in entries), f"{kind}: the stores of the shards differ"


@pytest.mark.parametrize(
    ("size", "changes", "shares"),
    [
        (2, {"tie_word_embeddings": True, "vocab_size": 126}, [True, True]),
        (
            4,  # a head and an MLP that do not divide, and biases: the last shard's rows are padded, in a copy
            {"tie_word_embeddings": True, "vocab_size": 126, "intermediate_size": 90, "attention_bias": True,
             "mlp_bias": True},
            [True, True, True, False],
        ),
    ],
)  # fmt: skip
def test_biases_and_uneven_slices_and_a_tied_head_that_is_not_copied(
    size: int, changes: dict[str, Any], shares: list[bool]
) -> None:
    answers = run_shards(size, compare_dense, changes)
    assert max(error for error, _ in answers) < TOLERANCE
    assert [shared for _, shared in answers] == shares


def test_pins_come_in_the_order_of_the_view_and_not_of_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process hashes strings in its own way, and pins date what is evicted first."""
    driver = Driver(make_engine())
    view, specs = EMPTY_VIEW, [driver.prefill([number] * 4) for number in range(8)]
    for at, spec in enumerate(specs):
        view = driver.place(view, spec, 4 * at)
    pinned: list[str] = []
    pin = driver.engine.store.pin

    def noting(entry: Entry) -> None:
        pinned.append(entry.key)
        pin(entry)

    monkeypatch.setattr(driver.engine.store, "pin", noting)
    driver.submit([1], view, sampling=force([2]))
    driver.run()
    assert pinned[:8] == [spec.encoding_id for spec in specs]


def test_one_failing_shard_ends_them_all_soon() -> None:
    began = time.monotonic()
    leader, follower = outcomes(2, fail_on_one)
    assert "out of memory, says the test" in str(follower)
    assert isinstance(leader, RuntimeError), leader
    assert time.monotonic() - began < 60


class Alone:
    """A group of which only this shard is there: it keeps `turns` for whoever follows."""

    def __init__(self, turns: list[Turn | None], *, rank: int = 1, size: int = 2) -> None:
        self.rank, self.size, self.device = rank, size, torch.device("cpu")
        self._turns = iter(turns)

    def broadcast_object(self) -> Turn | None:
        return next(self._turns)


NOW = Tick(0.0)


def test_a_shard_in_another_state_than_the_first_ends() -> None:
    quiet = WorkerLoad(num_free_pages=256, num_pages=256)
    follow(make_engine(), Alone([Turn((), None, NOW), Turn((), quiet, NOW), None]))  # type: ignore[arg-type]
    turns = [Turn((), None, NOW), Turn((), WorkerLoad(num_free_pages=255, num_pages=256), NOW)]
    with pytest.raises(ShardsDiverged, match=r"num_free_pages=256.*num_free_pages=255"):
        follow(make_engine(), Alone(turns))  # type: ignore[arg-type]
    # It would wait for ever for the others to say how far what it does not have is.
    loading = Tick(0.0, standings=(Standing(0, 0, 0.0, False, False, False),))
    with pytest.raises(ShardsDiverged, match="shard 1 has 0 encodings on their way, shard 0 has 1"):
        follow(make_engine(), Alone([Turn((), None, loading)]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "expected"),
    [(9, 3, 3, (3, 1)), (8, 2, 4, (2, 1)), (32, 8, 2, (16, 4)), (5, 5, 1, (5, 5))],
)
def test_heads_are_spread_evenly(heads: int, kv_heads: int, size: int, expected: tuple[int, int]) -> None:
    assert heads_per_shard(heads, kv_heads, size) == expected


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "message"),
    [
        (9, 3, 2, r"engine\.shards: must divide the model's 9 query heads \(got 2\)"),
        (12, 3, 2, r"engine\.shards: must divide the model's 3 KV heads or be a multiple of them \(got 2\)"),
    ],
)
def test_heads_that_do_not_divide_are_refused(heads: int, kv_heads: int, size: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        heads_per_shard(heads, kv_heads, size)


def test_a_slice_knows_its_heads_and_a_model_without_a_known_plan_is_refused() -> None:
    model = random_model("llama", **HEADS)
    assert (local_num_heads(model), local_num_kv_heads(model)) == (8, 2)
    group: Any = Alone([], rank=3, size=4)
    shard_model(model, group)
    assert (local_num_heads(model), local_num_kv_heads(model)) == (2, 1)
    attention = model.base_model.layers[0].self_attn
    assert type(attention.q_proj) is type(attention.o_proj.linear) is torch.nn.Linear  # so they can be packed
    whole = random_model("llama", **HEADS).base_model.layers[0].self_attn
    assert torch.equal(attention.k_proj.weight, whole.k_proj.weight[8:])
    assert torch.equal(attention.o_proj.linear.weight, whole.o_proj.weight[:, 48:])
    model = random_model("llama", **HEADS)
    model.config.base_model_tp_plan = {"layers.*.self_attn.q_proj": "sideways"}
    with pytest.raises(UnsupportedModel, match="asks for sideways"):
        shard_model(model, group)
