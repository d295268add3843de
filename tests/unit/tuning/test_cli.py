"""`laban tune` before anything is started: what is wrong with the data, the options, the workflow or the folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adapter_folders import save_adapter, save_model
from api_fakes import STATUS

from laban.actors.errors import FailedPrecondition, InvalidInput, NotFound
from laban.cluster.cli import main
from laban.cluster.cli.arguments import EXAMPLES, parse
from laban.cluster.cli.tune import TRACES, Tuning
from laban.cluster.records import ClusterStatus, ModelStatus
from laban.cluster.tuning.card import card

YAML = """
version: 1
name: relay
inputs: {task: {}}
messages: {task: "{{ task }}"}
steps: [{step: draft, read: [task]}]
"""
FACTS: Any = SimpleNamespace(fingerprint="f1", name="tiny", folder=Path("tiny"), max_context=500)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # main's handlers are not pytest's
    (tmp_path / "flow.yaml").write_text(YAML)
    (tmp_path / "data.jsonl").write_text('{"task": "a"}\n{"task": "b"}\n')


def tuning(*more: str, yaml: str = YAML) -> Tuning:
    arguments = parse(["tune", "flow.yaml", "--data", "data.jsonl", "--out", "out", *more])
    request = {"workflow": yaml.encode(), "source_name": "flow.yaml", "files": {}, "inputs": {}, "overrides": {}}
    return Tuning(request | {"fidelity": arguments.fidelity, "seed": arguments.seed}, arguments)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["tune", "--help"])
    out = capsys.readouterr().out
    assert EXAMPLES["tune"].splitlines()[0].strip() in out
    assert "gradients flow through" in out


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"task": "a"}\n{"task": 5}\n', "data.jsonl:2: task"),
        ('{"task": "a"}\nnonsense\n', "data.jsonl:2: is not JSON"),
        ('{"task": "a"}\n', "expected one more at least"),
        ('{"task": "a"}\n[1]\n', "data.jsonl:2: expected an object"),
    ],
)
def test_data_that_is_wrong_is_named_by_line_and_field(
    data: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data.jsonl").write_text(data)
    assert main(["tune", "flow.yaml", "--data", "data.jsonl", "--out", "out"]) != 0
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--rank", "0"), "--rank: expected 1 to 512"),
        (("--targets", "lm_head"), "--targets: expected some of q_proj"),
        (("--fidelity", "exact"), "--fidelity: nothing would have to be learned"),
        (("--held-out", "1"), "--held-out: expected a share"),
        (("--processes", "0"), "--processes: expected at least one"),
        (("--dtype", "int4"), "--dtype: expected one of auto"),
    ],
)
def test_options_that_make_no_sense(option: tuple[str, str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        tuning(*option)


def test_a_workflow_that_names_an_adapter_or_another_model_is_refused() -> None:
    with pytest.raises(InvalidInput, match="names an adapter"):
        tuning(yaml=YAML + "adapter: old\n")
    with pytest.raises(InvalidInput, match="calls another model than tiny"):
        tuning(yaml=YAML + "model: other\n").open(FACTS, None)


def test_a_folder_is_of_one_call() -> None:
    tuning().open(FACTS, None)
    tuning().open(FACTS, None)
    tuning("--rank", "16").open(FACTS, None)  # nothing was trained yet: what was recorded serves
    Path("out/checkpoint.pt").touch()
    with pytest.raises(FailedPrecondition, match=r"another rank \(16, now 8\).*checkpoint.pt to train anew"):
        tuning("--rank", "8").open(FACTS, None)
    Path("data.jsonl").write_text('{"task": "a"}\n{"task": "c"}\n')
    with pytest.raises(FailedPrecondition, match="another data"):
        tuning().open(FACTS, None)


def test_an_adapter_to_start_from_settles_its_options_and_is_of_the_folder(tmp_path: Path) -> None:
    facts: Any = SimpleNamespace(fingerprint="f1", name="tiny", folder=save_model(tmp_path / "model"), max_context=500)
    one, other = (str(save_adapter(tmp_path / f"{seed}", targets=("q_proj", "v_proj"), seed=seed)) for seed in (1, 2))
    with pytest.raises(InvalidInput, match=r"--rank: the adapter that is started from has 4: .*8"):
        tuning("--from", one, "--rank", "8").open(facts, None)
    with pytest.raises(NotFound, match="--from"):
        tuning("--from", "nowhere").open(facts, None)
    assert not Path("out").exists()
    made = tuning("--from", one, "--epochs", "9", "--targets", "v_proj,q_proj")
    made.open(facts, None)
    assert (made.plan.rank, made.plan.alpha, made.plan.epochs) == (4, 8.0, 9)
    assert made.start is not None
    Path("out/checkpoint.pt").touch()
    for start in ((), ("--from", other)):
        again = tuning(*start, "--epochs", "9", "--rank", "4", "--alpha", "8", "--targets", "v_proj,q_proj")
        with pytest.raises(FailedPrecondition, match=f"another start \\({made.start.fingerprint}, now "):
            again.open(facts, None)
    tuning("--from", one, "--epochs", "9", "--targets", "v_proj,q_proj").open(facts, None)


def test_what_was_recorded_is_known_again_but_for_a_line_that_was_cut_off() -> None:
    plan = tuning()
    plan.open(FACTS, None)
    step = {"address": "draft", "text": "x", "token_ids": [1], "state": "succeeded", "error": ""}
    (plan.folder / TRACES).write_text(json.dumps([1, {"task": "a"}, [step]]) + '\n[2, {"task": "b"}, [{"addr')
    assert list(plan.known()) == [1]
    assert plan.known()[1].recorded[0].token_ids == (1,)
    assert not plan.is_recorded()


def test_training_without_its_packages_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from laban.actors.tuning.distributed import check_installed

    check_installed()
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(FailedPrecondition, match=r"PEFT is not installed.*pip install '\.\[server,tune\]'"):
        check_installed()


def test_the_card_says_what_it_is_made_of_and_what_it_does() -> None:
    step = {"step": "", "num_tokens": 9, "kl_before": 0.5, "kl_after": 0.1, "p95_before": 1.0, "p95_after": 0.2}
    step |= {"agreement_before": 0.5, "agreement_after": 0.9}
    scores = {"steps": [step], "num_inputs": 3, "ratio": 0.2, "ratio_interval": [0.1, 0.3]}
    text = card("relay", FACTS, "direct", "d4", 20, {"rank": 64, "targets": ["q_proj", "v_proj"]}, scores)
    for said in ("base_model: tiny", "fingerprint f1", "hash d4", "rank 64, targets q_proj+v_proj", "0.200 (95 % int"):
        assert said in text
    assert "started from" not in text
    text = card("relay", FACTS, "direct", "d4", 20, {"rank": 64}, scores, start="tuned (fingerprint s5)")
    assert "- started from the adapter tuned (fingerprint s5)" in text
    assert "| all | 9 | 0.5000 | 0.1000 | 1.0000 | 0.2000 | 50.0% | 90.0% |" in text


def told(*models: ModelStatus) -> ClusterStatus:
    return replace(STATUS, model=models[0].name, models=models)


def test_a_server_of_another_model_is_told_before_anything_is_recorded() -> None:
    plan = tuning()
    plan.open(FACTS, None)
    plan.check_served(told(ModelStatus("served", 500, 1, 1, "f1"), ModelStatus("other", 500, 1, 1, "f2")), "host:1")
    plan.check_served(told(ModelStatus("served", 500, 1, 1)), "host:1")  # an older one, which does not say
    with pytest.raises(FailedPrecondition, match=r"as other \(fingerprint f2\) than tiny \(f1\)") as caught:
        plan.check_served(told(ModelStatus("other", 500, 1, 1, "f2"), ModelStatus("served", 500, 1, 1, "f1")), "host:1")
    assert (caught.value.field, caught.value.value) == ("--address", "host:1")


def test_of_several_models_that_count_that_the_workflow_calls() -> None:
    plan = tuning(yaml=YAML + "model: mine\n")
    plan.open(FACTS, "mine")
    plan.check_served(told(ModelStatus("other", 500, 1, 1, "f2"), ModelStatus("mine", 500, 1, 1, "f1")), "host:1")
    with pytest.raises(FailedPrecondition, match="serves no model mine, expected tiny under that name"):
        plan.check_served(told(ModelStatus("tiny", 500, 1, 1, "f1")), "host:1")
