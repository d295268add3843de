"""Plans through a FlashAttention backend, and backends picked from libraries of several kinds, here of straw."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from flash_checks import check_plan, check_varlen, random_case
from torch import Tensor

from laban.kernels import flash_backends
from laban.kernels.flash import FlashPlan, attend_flash
from laban.kernels.flash_backends import REFERENCE, FlashBackend, pick_flash, varlen_reference, works
from laban.kernels.view_attention import merge, partial_attention_reference

CPU = torch.device("cpu")
HOPPER, AMPERE = (9, 0), (8, 0)


@pytest.mark.parametrize("seed", range(40))
def test_plans_compute_the_definition(seed: int) -> None:
    torch.manual_seed(seed)
    case, num_slots = random_case(seed, CPU, torch.float32, 16)
    check_plan(REFERENCE, case, num_slots, group=1 + seed % 3)


def test_without_a_backend_of_its_own_a_plan_goes_tile_by_tile() -> None:
    own = pick_flash(CPU, torch.float32, 16)
    assert own == FlashBackend("torch-cpu-flash", None)
    case, num_slots = random_case(3, CPU, torch.float32, 16)
    check_plan(own, case, num_slots, group=2)


def test_one_call_for_the_runs_and_one_for_the_tiles() -> None:
    calls: list[tuple[list[int], list[int], int, int, bool]] = []

    def varlen(*given: Any) -> tuple[Tensor, Tensor]:
        calls.append((given[3].tolist(), given[4].tolist(), *given[5:8]))
        return varlen_reference(*given)

    for seed in range(12):
        case, num_slots = random_case(seed, CPU, torch.float32, 16)
        calls.clear()
        check_plan(FlashBackend("counted", varlen), case, num_slots, group=1)
        plan = case.plan()
        assert len(calls) == bool(plan.causal) + bool(plan.stacked)
        for cu_q, cu_k, max_q, max_k, _ in calls:
            assert max_q == max(b - a for a, b in pairwise(cu_q))
            assert max_k == max(b - a for a, b in pairwise(cu_k))


def test_long_runs_go_to_what_is_there_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laban.kernels.flash.MIN_RUN_TOKENS", 8)
    lengths = []

    def causal_run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        lengths.append(q.shape[0])
        cu = torch.tensor([0, q.shape[0]], dtype=torch.int32)
        return varlen_reference(q, k, v, cu, cu, q.shape[0], q.shape[0], True, scale)

    for seed in range(12):
        case, num_slots = random_case(seed, CPU, torch.float32, 16)
        lengths.clear()
        check_plan(FlashBackend("runs", varlen_reference, causal_run), case, num_slots, group=2)
        runs = [len(block) for block in case.blocks if len(block) > 1]
        assert lengths == (runs if max(runs, default=0) >= 8 else [])


def test_indices_that_follow_one_another_are_not_gathered() -> None:
    case, _ = random_case(0, CPU, torch.float32, 16)
    case.blocks, case.row_reads = [list(range(10)), list(range(10, 30))], {}
    case.tiles = [([(0, 0)], list(range(40, 90))), ([(1, 0)], list(range(90, 100)))]
    packed = FlashPlan.of(case.plan())
    assert packed.causal is not None
    assert packed.stacked is not None
    assert packed.causal.queries == packed.causal.keys == slice(0, 30)
    assert (packed.stacked.queries, packed.stacked.keys) == (slice(0, 30), slice(40, 100))
    case.tiles[1] = ([(1, 0)], list(range(95, 105)))
    packed = FlashPlan.of(case.plan())
    assert packed.stacked is not None
    assert torch.equal(packed.stacked.keys, torch.tensor([*range(40, 90), *range(95, 105)]))  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_is_the_definition(causal: bool) -> None:
    lengths = [(5, 5), (1, 1), (70, 70)] if causal else [(5, 9), (2, 0), (3, 1), (1, 130)]
    check_varlen(REFERENCE, CPU, torch.float32, 16, lengths, causal)
    q, k, v = torch.randn(4, 2, 8), torch.randn(4, 2, 8), torch.randn(4, 2, 8)
    cu = torch.tensor([0, 4], dtype=torch.int32)
    out, lse = varlen_reference(q, k, v, cu, cu, 4, 4, causal, 0.5)
    found = partial_attention_reference(*(x.transpose(0, 1) for x in (q, k, v)), causal, 0.5)
    torch.testing.assert_close((out, lse), (found[0].transpose(0, 1), found[1].T))


# --- libraries of straw: the reference behind the signatures of the real ones ---


def answer(cu_q: Tensor, out: Tensor, lse: Tensor, empty: float = float("inf")) -> tuple[Tensor, Tensor]:
    """As the libraries do: log-sum-exp [heads, total_q], and for rows with no key often +inf."""
    return out, lse.T.contiguous().nan_to_num(neginf=empty)


def flash_3(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, softmax_scale=None,
            causal=False, num_splits=1, return_attn_probs=False):  # fmt: skip
    given = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale
    out, lse = answer(cu_seqlens_q, *varlen_reference(q, k, v, *given))
    return (out, lse) if return_attn_probs else out


def flash_3_by_another_flag(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None,
                            causal=False, return_softmax_lse=False):  # fmt: skip
    return flash_3(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, None, softmax_scale, causal,
                   return_attn_probs=return_softmax_lse)  # fmt: skip


def flash_3_always_a_tuple(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None,
                           causal=False):  # fmt: skip
    return flash_3_by_another_flag(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale,
                                   causal, True)  # fmt: skip


def flash_2(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
            causal=False, window_size=(-1, -1), return_attn_probs=False):  # fmt: skip
    assert dropout_p == 0
    return *flash_3(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, None, softmax_scale, causal,
                    return_attn_probs=return_attn_probs), None  # fmt: skip


class AuxRequest(NamedTuple):
    lse: bool = False


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None, scale=None):
    out, lse = answer(
        cu_seq_q, *varlen_reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal, scale)
    )
    return (out, lse) if return_aux and return_aux.lse else out


def torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
               window_size=(-1, -1)):  # fmt: skip
    return torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0), return_aux, scale)


def torch_2_13(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
               window_size=(-1, -1), enable_gqa=False):  # fmt: skip
    assert enable_gqa
    return torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0), return_aux, scale)


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no kernel image is available")


def without_lse(*args: Any, **kwargs: Any) -> Any:
    """Its answer is no pair, but falls apart into one."""
    return flash_3(*args, **kwargs)


def by_token(*args: Any, **kwargs: Any) -> Any:
    out, lse = flash_3_always_a_tuple(*args, **kwargs)
    return out, lse.T.contiguous()


def garbage_in_empty_rows(*args: Any, **kwargs: Any) -> Any:
    out, lse = flash_3_always_a_tuple(*args, **kwargs)
    return out.masked_fill(torch.isinf(lse[0])[:, None, None], torch.nan), lse


Installer = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Installer:
    """A card of a capability, with modules: flash_attn_interface, flash_attn, torch's varlen."""

    def installed(capability: tuple[int, int], interface: Any = None, flash: Any = None, varlen: Any = None) -> None:
        monkeypatch.setattr(flash_backends, "_capability", lambda device: capability)
        for name, function, value in (
            ("flash_attn_interface", "flash_attn_varlen_func", interface),
            ("flash_attn", "flash_attn_varlen_func", flash),
            ("torch.nn.attention.varlen", "varlen_attn", varlen),
        ):
            module = ModuleType(name)
            if value is not None:
                setattr(module, function, value)
            module.AuxRequest = AuxRequest  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, module if value else None)

    return installed


@pytest.mark.parametrize("function", [flash_3, flash_3_by_another_flag, flash_3_always_a_tuple])
def test_flash_attention_3_of_every_version(install: Installer, function: Any) -> None:
    install(HOPPER, function, flash_2, torch_2_13)
    backend = pick_flash(CPU, torch.bfloat16, 32)
    assert backend.name == "flash-attention-3"
    check_varlen(backend, CPU, torch.bfloat16, 32, [(5, 9), (2, 0), (3, 70)], False)
    install(AMPERE, function, flash_2, torch_2_13)
    assert pick_flash(CPU, torch.bfloat16, 32).name == "flash-attention-2"


@pytest.mark.parametrize("function", [torch_2_10, torch_2_11, torch_2_13])
def test_torch_of_every_version(install: Installer, function: Any) -> None:
    install(HOPPER, varlen=function)
    backend = pick_flash(CPU, torch.float16, 32)
    assert backend.name == "torch-varlen"
    check_varlen(backend, CPU, torch.float16, 32, [(5, 5), (40, 40)], True)
    check_varlen(backend, CPU, torch.float16, 32, [(5, 9), (2, 0), (3, 70)], False)


@pytest.mark.parametrize("function", [broken, without_lse, by_token, garbage_in_empty_rows])
def test_what_does_not_give_the_result_is_not_used(
    install: Installer, function: Any, caplog: pytest.LogCaptureFixture
) -> None:
    install(HOPPER, function, flash_2)
    with caplog.at_level(logging.WARNING):
        assert pick_flash(CPU, torch.bfloat16, 32).name == "flash-attention-2"
    assert "flash-attention-3 is installed but does not work here" in caplog.text


def test_a_name_is_taken_or_refused(install: Installer) -> None:
    install(HOPPER, flash_3, flash_2)
    assert pick_flash(CPU, torch.bfloat16, 32, "flash-attention-2").name == "flash-attention-2"
    assert pick_flash(CPU, torch.bfloat16, 32, "reference") is REFERENCE
    assert pick_flash(CPU, torch.bfloat16, 32, "torch-cpu-flash").varlen is None
    with pytest.raises(ValueError, match=r"flash-attention-3.*flash-attention-2"):
        pick_flash(CPU, torch.bfloat16, 32, "fused")
    install(HOPPER, broken)
    with pytest.raises(ValueError, match="flash-attention-3"):
        pick_flash(CPU, torch.bfloat16, 32, "flash-attention-3")


def test_float32_has_no_flash_attention(install: Installer) -> None:
    install(HOPPER, flash_3, flash_2, torch_2_13)
    assert pick_flash(CPU, torch.float32, 32).varlen is None
    assert pick_flash(torch.device("cuda"), torch.float32, 32) is REFERENCE


def test_a_row_without_a_key_weighs_nothing_when_merged(install: Installer) -> None:
    install(HOPPER, flash_3)
    backend = pick_flash(CPU, torch.bfloat16, 32)
    assert backend.varlen is not None
    q, k, v = torch.randn(4, 2, 32).bfloat16(), *torch.randn(2, 5, 2, 32).bfloat16()
    cu_q, cu_k = torch.tensor([0, 2, 4], dtype=torch.int32), torch.tensor([0, 5, 5], dtype=torch.int32)
    out, lse = backend.varlen(q, k, v, cu_q, cu_k, 2, 5, False, 0.2)
    merged = merge(out, lse, torch.tensor([0, 1, 0, 1]), 2)
    torch.testing.assert_close(merged, out[:2])


def test_a_probe_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert works(FlashBackend("a", varlen_reference), CPU, torch.bfloat16, 16)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_arguments_are_those_of_attend() -> None:
    """A plan for one layer kind may be used by any number of layers."""
    case, num_slots = random_case(5, CPU, torch.float32, 16)
    flash_plan = FlashPlan.of(case.plan())
    n = len(case.slots)
    q, k, v = torch.randn(n, 4, 16), torch.randn(n, 2, 16), torch.randn(n, 2, 16)
    pool = torch.randn(2, num_slots, 2, 16)
    outs = [attend_flash(REFERENCE, q, k, v, pool[0], pool[1], flash_plan, 0.25) for _ in range(2)]
    assert torch.equal(*outs)
