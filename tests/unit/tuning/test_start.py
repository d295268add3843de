"""Training that starts from an adapter: it is what that adapter is, and what cannot be trained on is refused first."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import ATTENTION_ONLY, merged_model, save_adapter, save_model
from engine_reference import Interpreter, random_model
from lesson_cases import random_lesson, said_logits

from laban.actors.adapter_folder import CONFIG
from laban.actors.errors import InvalidInput, LabanError, NotFound, UnsupportedModel
from laban.actors.tuning.plan import TunePlan
from laban.actors.tuning.start import read_start
from laban.actors.tuning.training import Learner, train

PLAN = TunePlan(rank=4, alpha=8, dropout=0.0, learning_rate=1e-2, epochs=2, batch=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def learner(plan: TunePlan = PLAN, **options: Any) -> Learner:
    return Learner(random_model("llama").requires_grad_(False), plan, 4, **options)


def test_the_first_loss_is_that_of_the_adapter_as_it_was_trained(model: Path, tmp_path: Path) -> None:
    draw = random.Random()
    lessons, other = [random_lesson(draw) for _ in range(4)], random_lesson(draw)
    trained = learner()
    train(trained, lessons, [other], tmp_path, lambda said: None)
    start = read_start(tmp_path / "adapter", model)
    own = learner(replace(PLAN, seed=5, **start.options()), start=start)
    assert own.step == 0
    assert list(own.weights) == list(trained.weights)
    new, expected, plain = own.loss([other]), trained.loss([other]), learner().loss([other])
    torch.testing.assert_close(new, expected)
    assert abs((plain - expected).item()) > 1e-3  # what was learned is seen
    before = {name: weight.detach().clone() for name, weight in own.weights.items()}
    own.learn(lessons[:2])
    assert any(not torch.equal(weight, before[name]) for name, weight in own.weights.items())


def test_a_start_is_what_peft_makes_of_the_folder(model: Path, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", targets=ATTENTION_ONLY, lora_alpha=6)
    start = read_start(folder, model)
    assert (start.rank, start.alpha, set(start.targets)) == (4, 6.0, set(ATTENTION_ONLY))
    lesson = random_lesson(random.Random())
    measured = learner(replace(PLAN, **start.options()), start=start).measured(lesson)
    oracle, plain = Interpreter(merged_model(folder)), Interpreter(random_model("llama"))
    with torch.no_grad():
        exact, level = said_logits(plain, lesson.exact)[0], said_logits(oracle, lesson.level)[0]
    exact, level = exact.log_softmax(-1), level.log_softmax(-1)
    torch.testing.assert_close(measured.kl, (exact.exp() * (exact - level)).sum(-1), atol=1e-3, rtol=1e-3)


def test_a_checkpoint_comes_before_the_start(model: Path, tmp_path: Path) -> None:
    start = read_start(save_adapter(tmp_path / "adapter", targets=ATTENTION_ONLY), model)
    plan = replace(PLAN, **start.options())
    first = learner(plan, start=start)
    first.learn([random_lesson(random.Random(1))])
    first.save(tmp_path)
    again = learner(plan, start=start)
    assert again.load(tmp_path)
    assert again.step == 1
    for name, weight in first.weights.items():
        torch.testing.assert_close(again.weights[name], weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 8}, "--rank: the adapter that is started from has 4"),
        ({"alpha": 4.5}, "--alpha: the adapter that is started from has 8"),
        ({"targets": ("q_proj",)}, "--targets: the adapter that is started from has .*v_proj"),
    ],
)
def test_a_plan_of_another_adapter_is_refused(model: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    start = read_start(save_adapter(tmp_path, targets=ATTENTION_ONLY), model)
    start.check(PLAN)
    with pytest.raises(InvalidInput, match=said):
        learner(replace(PLAN, **change), start=start)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"use_rslora": True}, UnsupportedModel, "rank-stabilized"),
        ({"use_dora": True}, UnsupportedModel, "DoRA"),
        ({"rank_pattern": {"q_proj": 2}}, UnsupportedModel, "ranks from 2 to 4"),
        ({"layers_to_transform": [0]}, UnsupportedModel, "leaves out model.layers.1"),
        ({"shape": {"hidden_size": 128}}, InvalidInput, "another model"),
    ],
)
def test_what_would_not_be_trained_on_as_it_is_is_refused(
    model: Path, tmp_path: Path, settings: dict[str, Any], error: type[LabanError], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        read_start(save_adapter(tmp_path, **settings), model)
    assert caught.value.field == "--from"


def test_a_folder_without_an_adapter_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="--from"):
        read_start(tmp_path / "none", model)
    folder = save_adapter(tmp_path / "cut")
    (folder / CONFIG).write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(UnsupportedModel, match=r"--from.*only LoRA"):
        read_start(folder, model)
