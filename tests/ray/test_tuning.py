"""Training on Ray Train: two processes that share the work come to what one comes to."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from adapter_folders import save_model
from engine_reference import random_model
from lesson_cases import random_lesson

from laban.actors.adapter_folder import check_adapter_folder
from laban.actors.errors import InvalidInput
from laban.actors.tuning.distributed import Job, run
from laban.actors.tuning.lessons import write_lessons
from laban.actors.tuning.plan import Said, TunePlan
from laban.actors.tuning.training import Learner, train

pytestmark = pytest.mark.usefixtures("local_ray")

PLAN = TunePlan(rank=4, alpha=8, dropout=0.0, learning_rate=1e-2, epochs=2, batch=3)


def test_two_processes_come_to_what_one_does(tmp_path: Path) -> None:
    draw = random.Random(1)
    lessons, held = [random_lesson(draw) for _ in range(4)], [random_lesson(draw) for _ in range(2)]
    model, folder, alone = save_model(tmp_path / "model"), tmp_path / "out", tmp_path / "alone"
    folder.mkdir()
    alone.mkdir()
    write_lessons(folder / "lessons.jsonl", lessons)
    write_lessons(folder / "held_out.jsonl", held)
    heard: list[Said] = []
    scores = run(Job(str(folder), str(model), PLAN, num_processes=2), heard.append)
    assert [said.step for said in heard if said.doing == "training"] == [1, 2, 3, 4]
    assert len(check_adapter_folder(folder / "adapter", model).ranks) == 12
    own = train(Learner(random_model("llama").requires_grad_(False), PLAN, 4), lessons, held, alone, heard.append)
    assert own is not None
    assert scores["ratio"] == pytest.approx(own.ratio, rel=2e-2)


def test_more_processes_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="expected at most"):
        run(Job(str(tmp_path), str(tmp_path), PLAN, num_processes=1000), lambda said: None)
