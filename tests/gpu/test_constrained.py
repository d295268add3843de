"""Constrained calls on a card: masks on their way while the forward runs, and draws from what they leave."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("llguidance", reason="constrained calls need llguidance, which is not installed here")
pytest.importorskip("jsonschema", reason="schemas are checked with jsonschema, which is not installed here")

from constrained_cases import STOP, byte_level_tokenizer
from constrained_checks import CHOICES, check_masked_draws, mixed_calls, told
from engine_harness import Driver, make_engine
from sampling_cases import random_rows

from laban.actors.engine.load import make_engine as load_model
from laban.actors.engine.sampler import Masks, sampling_params
from laban.kernels.sampling import sample_rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def play(*, fused: bool) -> list[tuple[object, ...]]:
    engine = make_engine(device="cuda", fused=fused, tokenizer=byte_level_tokenizer(128))
    driver = Driver(engine)
    asked = [([1, 40 + number, 50], each) for number, each in enumerate(mixed_calls())]
    calls = [driver.submit(tokens, sampling=each, terminator=(STOP,)) for tokens, each in asked]
    driver.run()
    for call_id, (_, each) in zip(calls, asked, strict=True):
        if each.constraint is not None and each.constraint.choices:
            assert driver.result(call_id).text in CHOICES
    return [told(driver, call_id) for call_id in calls]


def test_iterations_that_overlap_make_the_same_texts() -> None:
    assert play(fused=True) == play(fused=False)


def test_captured_forwards_make_the_same_texts() -> None:
    """As a worker on a card is loaded: with CUDA graphs."""
    from engine_reference import MAX_CONTEXT, random_model

    from laban.actors.engine.config import EngineConfig

    config = EngineConfig(pool_tokens=4096, dtype="float32", cuda_graphs=True, host_bytes=1 << 24)
    model = random_model("llama").to("cuda")
    identity = {"namespace": "test", "max_context": MAX_CONTEXT}
    engine = load_model(model, byte_level_tokenizer(128), config, torch.device("cuda"), **identity)
    driver = Driver(engine)
    asked = [([1, 40 + number, 50], each) for number, each in enumerate(mixed_calls())]
    calls = [driver.submit(tokens, sampling=each, terminator=(STOP,)) for tokens, each in asked]
    driver.run()
    assert [told(driver, call_id) for call_id in calls] == play(fused=True)
    engine.close()


@pytest.mark.parametrize("seed", range(4))
def test_masked_rows_are_as_on_a_cpu(seed: int) -> None:
    logits, samplings, indices = random_rows(seed, 1000, 24)
    rows = list(range(0, 24, 2))
    words = torch.randint(-(2**31), 2**31, (len(rows), 32), generator=torch.Generator().manual_seed(seed))
    masks = Masks(rows, words.int().numpy())
    here, _ = sample_rows(logits, sampling_params(samplings, indices, logits.device, masks))
    card = torch.device("cuda")
    there, _ = sample_rows(logits.to(card), sampling_params(samplings, indices, card, masks))
    differ = (here != there.cpu()).nonzero()[:, 0].tolist()
    assert len(differ) <= 1, differ  # but where two scores are too close to tell


def test_draws_follow_the_softmax_over_what_is_allowed() -> None:
    check_masked_draws(torch.device("cuda"))
