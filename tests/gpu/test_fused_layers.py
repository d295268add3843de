"""A fused stack of layers on a card: as the model's own, and under capture."""

from __future__ import annotations

import pytest
import torch
from engine_reference import KINDS, random_model
from stack_checks import hidden_of_both, with_fused_norms

from laban.kernels.fused_layers import FusedStack

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
pytest.importorskip("triton")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tokens", [1, 40])
def test_a_stack_computes_what_the_model_does(kind: str, num_tokens: int) -> None:
    model = with_fused_norms(random_model(kind).cuda())
    stack = FusedStack.of(model.base_model)
    assert stack is not None
    found, expected = hidden_of_both(model, stack, num_tokens)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_layers", [1, 40])
def test_models_are_known_however_they_round(kind: str, dtype: torch.dtype, num_layers: int) -> None:
    model = with_fused_norms(random_model(kind, num_hidden_layers=num_layers, layer_types=None).to(dtype).cuda())
    assert FusedStack.of(model.base_model) is not None


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@torch.inference_mode()
def test_captured_in_a_graph(kind: str) -> None:
    """Replayed on other tokens, it gives what it gives eagerly, bit for bit."""
    model = with_fused_norms(random_model(kind).bfloat16().cuda())
    stack = FusedStack.of(model.base_model)
    assert stack is not None
    ids, positions = torch.arange(8, device="cuda"), torch.arange(8, device="cuda") + 30
    window = torch.tensor(5, device="cuda")
    stack.forward(ids, positions, check_window=window)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = stack.forward(ids, positions, check_window=window)
    ids += 50
    positions += 7
    graph.replay()
    assert torch.equal(found, stack.forward(ids, positions, check_window=window))
