"""Loss and gradients through cached encodings are the reference interpreter's; training goes on where it was."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from adapter_folders import merged_model, save_model
from engine_reference import KINDS, Interpreter, random_model
from lesson_cases import random_lesson, reference_loss, said_logits

from laban.actors.adapter_folder import check_adapter_folder
from laban.actors.errors import FailedPrecondition, InvalidInput
from laban.actors.tuning.lessons import Lesson, read_lessons, write_lessons
from laban.actors.tuning.packed import MAX_MASK, Packed
from laban.actors.tuning.plan import Said, Scores, TunePlan
from laban.actors.tuning.training import Learner, packs, score, train

PLAN = TunePlan(rank=4, alpha=8, dropout=0.0, learning_rate=1e-2, epochs=3, batch=2, checkpoint_every=2)


def learner(plan: TunePlan = PLAN, kind: str = "llama", num_lessons: int = 4) -> Learner:
    """With factors that change what the model says."""
    made = Learner(random_model(kind).requires_grad_(False), plan, num_lessons)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.weights.values():
            weight.normal_(0, 0.1, generator=generator)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("max_mask", [0, MAX_MASK], ids=["blocks", "mask"])
@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_reference_interpreter(kind: str, hard: float, max_mask: int) -> None:
    lesson = random_lesson(random.Random())
    own = learner(TunePlan(rank=4, alpha=8, dropout=0.0, hard=hard), kind)
    own.packed.max_mask = max_mask
    loss = own.loss([lesson])
    loss.backward()  # type: ignore[no-untyped-call]
    other = learner(TunePlan(rank=4, alpha=8, dropout=0.0, hard=hard), kind)
    oracle = Interpreter(other.packed.model)
    with torch.no_grad(), other.peft.disable_adapter():
        taught, _ = said_logits(oracle, lesson.exact)
    logits, tokens = said_logits(oracle, lesson.level)
    expected = reference_loss(taught, logits, tokens, hard)
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.double(), expected, atol=1e-3, rtol=1e-4)
    largest = 0.0
    for name, weight in own.weights.items():
        found, wanted = weight.grad, other.weights[name].grad
        assert found is not None
        assert wanted is not None
        scale = float(wanted.abs().max())
        largest = max(largest, scale)
        torch.testing.assert_close(found, wanted, atol=1e-3 * max(scale, 1e-3), rtol=1e-3)
    assert largest > 1e-2


@pytest.mark.parametrize("max_mask", [0, MAX_MASK], ids=["blocks", "mask"])
@pytest.mark.parametrize("num_lessons", [3, 21])
def test_lessons_in_one_forward_are_as_each_by_itself(max_mask: int, num_lessons: int) -> None:
    draw = random.Random()
    lessons = [random_lesson(draw) for _ in range(num_lessons)]
    together, apart = learner(), learner()
    together.packed.max_mask = max_mask
    apart.loss(lessons[1:2])  # known from before
    loss = together.loss(lessons)
    loss.backward()  # type: ignore[no-untyped-call]
    losses = [apart.loss([lesson]) for lesson in lessons]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, torch.stack(losses).sum(), atol=1e-3, rtol=1e-4)
    for name, weight in together.weights.items():
        torch.testing.assert_close(weight.grad, apart.weights[name].grad, atol=1e-3, rtol=1e-3)


def test_packs_are_small_and_leave_none_out() -> None:
    lessons = [random_lesson(random.Random(seed)) for seed in range(7)]
    tokens = [lesson.exact.num_tokens for lesson in lessons]
    one = tokens[0]
    for room, sizes in ((1, [1] * 7), (3 * one, [3, 3, 1]), (7 * one, [7])):
        found = list(packs(lessons, tokens, room))
        assert [len(pack) for pack in found] == sizes
        assert [lesson for pack in found for lesson in pack] == lessons
    assert list(packs([], [], 1)) == []


def test_gradients_reach_those_who_made_what_is_read() -> None:
    """What the first messages say of themselves is no loss; only through their encodings do their tokens count."""
    lesson = random_lesson(random.Random(3))
    own = learner()
    embedding = own.packed.model.get_input_embeddings()
    embedding.weight.requires_grad_(True)
    own.packed.model.config.tie_word_embeddings = False
    own.loss([lesson]).backward()  # type: ignore[no-untyped-call]
    grad = embedding.weight.grad
    said = {token for node in lesson.level.nodes[-2:] for token in node.tokens}
    read = {token for part in lesson.level.nodes[-1].view for token in lesson.level.nodes[part.message].tokens} - said
    assert grad is not None
    assert read
    assert any(grad[token].abs().max() > 1e-6 for token in read)


def test_a_model_without_its_adapter_is_itself() -> None:
    lesson = random_lesson(random.Random(1))
    own, plain = learner(), Packed(random_model("llama"))
    with torch.no_grad():
        rows = plain.hidden(lesson.exact)
    taught = own.taught(lesson.exact)
    assert any(torch.allclose(taught[0], row, atol=1e-5) for row in rows)
    measured = own.measured(lesson, plain=True)
    oracle = Interpreter(random_model("llama"))
    with torch.no_grad():
        exact, level = (said_logits(oracle, graph)[0].log_softmax(-1) for graph in (lesson.exact, lesson.level))
    torch.testing.assert_close(measured.kl, (exact.exp() * (exact - level)).sum(-1), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_training_goes_on_where_it_was_and_comes_to_the_same(tmp_path: Path) -> None:
    draw = random.Random(5)
    lessons, held = [random_lesson(draw) for _ in range(4)], [random_lesson(draw) for _ in range(2)]
    model = save_model(tmp_path / "model")
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    whole.mkdir()
    parted.mkdir()
    heard: list[Said] = []
    first = train(fresh(), lessons, held, whole, heard.append)
    assert [said.step for said in heard if said.doing == "training"] == [1, 2, 3, 4, 5, 6]

    class Killed(Exception):
        pass

    def dies(said: Said) -> None:
        if said.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(fresh(), lessons, held, parted, dies)
    assert not (parted / "adapter").exists()
    heard.clear()
    second = train(fresh(), lessons, held, parted, heard.append)
    assert heard[0].step == 5  # the fourth was the last to be kept
    assert isinstance(first, Scores)
    assert isinstance(second, Scores)
    assert second.ratio == pytest.approx(first.ratio, rel=1e-3)
    facts = check_adapter_folder(whole / "adapter", model)
    assert set(facts.ranks.values()) == {4}
    # What it scored is what the adapter does, merged by PEFT into the weights.
    oracle, plain = Interpreter(merged_model(whole / "adapter")), Interpreter(random_model("llama"))
    kl = []
    with torch.no_grad():
        for lesson in held:
            exact, level = said_logits(plain, lesson.exact)[0], said_logits(oracle, lesson.level)[0]
            exact, level = exact.log_softmax(-1), level.log_softmax(-1)
            kl.append((exact.exp() * (exact - level)).sum(-1))
    assert first.steps[0].kl_after == pytest.approx(float(torch.cat(kl).mean()), rel=1e-2)


def fresh() -> Learner:
    return Learner(random_model("llama").requires_grad_(False), PLAN, 4)


def test_layers_computed_again_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    lesson, grads = random_lesson(random.Random(4)), []
    for room in (1 << 40, 0):
        monkeypatch.setattr("laban.actors.tuning.training.ACTIVATION_BYTES", room)
        own = learner()
        own.loss([lesson]).backward()  # type: ignore[no-untyped-call]
        assert own.packed.model.is_gradient_checkpointing == (room == 0)
        grads.append([weight.grad for weight in own.weights.values()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_training_makes_the_level_say_what_exact_says() -> None:
    draw = random.Random(2)
    lessons = [random_lesson(draw) for _ in range(2)]
    plan = TunePlan(rank=16, alpha=32, dropout=0.0, learning_rate=1e-2, epochs=40, batch=2, warmup=0.1)
    own = Learner(random_model("llama").requires_grad_(False), plan, 2)
    before = score(own, lessons, lambda doing: None)
    assert before.ratio == pytest.approx(1.0)
    losses = [own.learn(own.batch(lessons, step)) for step in range(own.num_steps)]
    after = score(own, lessons, lambda doing: None)
    assert losses[-1] < 0.5 * losses[0]
    assert after.ratio < 0.5


def test_the_pace_rises_and_falls() -> None:
    own = Learner(random_model("llama"), TunePlan(rank=1, epochs=10, batch=2, warmup=0.2), 4)
    paces = [own.pace(step) for step in range(own.num_steps)]
    assert paces[:4] == [0.25, 0.5, 0.75, 1.0]
    assert paces[4] == 1.0
    assert all(a > b for a, b in itertools.pairwise(paces[4:]))
    assert 0 < paces[-1] < 0.02


def test_every_epoch_goes_through_all_in_an_order_of_its_own() -> None:
    own = Learner(random_model("llama"), TunePlan(rank=1, epochs=3, batch=2), 5)
    lessons = [random_lesson(random.Random(seed)) for seed in range(5)]
    epochs = [[id(each) for step in range(3) for each in own.batch(lessons, 3 * e + step)] for e in range(3)]
    assert all(sorted(epoch) == sorted(map(id, lessons)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_loss_that_is_no_number_ends_it() -> None:
    own = learner()
    with torch.no_grad():
        next(iter(own.weights.values())).fill_(torch.inf)
    with pytest.raises(FailedPrecondition, match="lower --learning-rate"):
        own.learn([random_lesson(random.Random(1))])


@pytest.mark.parametrize(
    ("change", "said"),
    [({"rank": 0}, "--rank"), ({"hard": 2.0}, "--hard"), ({"targets": ("lm_head",)}, "--targets")],
)
def test_options_out_of_bounds(change: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        TunePlan(**change).check()  # type: ignore[arg-type]


def test_lessons_are_written_and_read(tmp_path: Path) -> None:
    lessons: list[Lesson] = [random_lesson(random.Random(seed)) for seed in range(3)]
    write_lessons(tmp_path / "lessons.jsonl", lessons)
    assert read_lessons(tmp_path / "lessons.jsonl") == lessons
