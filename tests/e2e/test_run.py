"""Workflows from the command line to the model and back."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from command_line import LONG, QUESTION, Cli, document, write

EXAMPLES = Path(__file__).parents[2] / "examples"
DEBATE = EXAMPLES / "parallel_debate.yaml"

pytestmark = pytest.mark.e2e


def test_run_starts_a_cluster_of_its_own_and_ends_it(cli: Cli, model_folder: Path) -> None:
    done = cli("run", str(DEBATE), "--json", "--set", "answer.max_tokens=12")
    assert done.returncode == 0, done.stderr
    record = document(done.stdout)
    assert record["state"] == "succeeded"
    assert [step["address"] for step in record["steps"]] == [
        f"answer[{agent},{number}]" for number in (1, 2, 3) for agent in ("ann", "bob", "cleo")
    ]
    for step in record["steps"]:
        assert step["state"] == "succeeded"
        assert step["fidelity"] == "direct"
        assert 1 <= len(step["token_ids"]) <= step["tokens_generated"] <= 12
        assert step["tokens_reused"] <= step["tokens_read"]
        assert 0 < step["ttft_ms"] <= step["wall_ms"]
    later = [step for step in record["steps"] if not step["address"].endswith(",1]")]
    assert all(step["tokens_reused"] == step["tokens_read"] for step in later)
    assert record["ttft_ms_sum"] == pytest.approx(sum(step["ttft_ms"] for step in record["steps"]), abs=0.1)
    assert record["outputs"]["answers"]
    assert cli.leftovers() == []


def test_interrupt_ends_everything(cli: Cli, model_folder: Path) -> None:
    process = cli.start("run", write(cli, LONG))
    assert process.stderr is not None
    for line in process.stderr:
        if "answer: running" in line:
            break
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert error.splitlines()[-1] == "laban: interrupted"
    assert "Traceback" not in error
    assert cli.leftovers() == []


@pytest.mark.parametrize("name", ["tree_of_thoughts", "branch_solve_merge", "retrieval"])
def test_examples(cli: Cli, address: str, name: str) -> None:
    shorten = ["--set", "final.max_tokens=8"] if name == "tree_of_thoughts" else []
    done = cli("run", str(EXAMPLES / f"{name}.yaml"), "--address", address, "--json", *shorten)
    assert done.returncode == 0, done.stderr
    record = document(done.stdout)
    assert record["state"] == "succeeded"
    assert all(record["outputs"].values())
    assert sum(step["tokens_reused"] for step in record["steps"]) > 0


def test_exact_is_what_transformers_generates(cli: Cli, address: str, model_folder: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    done = cli("run", write(cli, QUESTION), "--address", address, "--json")
    [step] = document(done.stdout)["steps"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    messages = [{"role": "user", "content": "Name three colours of the rainbow."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    ids = prompt if isinstance(prompt, torch.Tensor) else prompt["input_ids"]
    out = model.generate(ids, max_new_tokens=16, do_sample=False, output_scores=True, return_dict_in_generate=True)
    expected = out.sequences[0, ids.shape[1] :].tolist()
    assert step["tokens_read"] + len(tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)) == len(
        ids[0]
    )
    for number, token_id in enumerate(step["token_ids"]):
        best, second = torch.topk(out.scores[number][0], 2).values.tolist()
        if best - second < 4e-4:
            break  # too close to call
        assert token_id == expected[number]
    assert step["text"] == tokenizer.decode(step["token_ids"])


def test_inputs_seed_and_overrides(cli: Cli, address: str) -> None:
    flow = write(cli, QUESTION)
    (cli.folder / "question.txt").write_text("Say one word.")
    same = ["run", flow, "--address", address, "--json", "--input", "question=@question.txt", "--seed", "5"]
    hot = ["--set", "answer.temperature=1.5", "--set", "answer.max_tokens=6"]
    one, again = (document(cli(*same, *hot).stdout)["steps"][0] for _ in range(2))
    assert one["token_ids"] == again["token_ids"]
    assert len(one["token_ids"]) <= 6
    others = [document(cli(*same[:-1], str(seed), *hot).stdout)["steps"][0]["token_ids"] for seed in (6, 7)]
    assert any(other != one["token_ids"] for other in others)


def test_tables_and_plain_lines(cli: Cli, address: str) -> None:
    done = cli("run", write(cli, QUESTION), "--address", address)
    assert done.returncode == 0
    assert re.search(
        r"step .* state .* fidelity .* read .* reused .* encoded .* generated .* TTFT .* time", done.stdout
    )
    assert re.search(r"sum .* 1 step ", done.stdout)
    assert "\x1b[" not in done.stdout + done.stderr
    assert "answer: running on worker-0" in done.stderr


def test_submit_watch_get_list_status(cli: Cli, address: str) -> None:
    to = ["--address", address]
    flow = write(cli, QUESTION)
    workflow_id = cli("submit", flow, "--key", "once", *to).stdout.strip()
    assert cli("submit", flow, "--key", "once", *to).stdout.strip() == workflow_id
    other = cli("submit", flow, "--key", "once", "--seed", "3", *to)
    assert other.returncode == 2
    assert "idempotency_key: was used before, with other content" in other.stderr
    watched = cli("watch", workflow_id, "--json", *to)
    assert watched.returncode == 0
    assert document(watched.stdout) == document(cli("get", workflow_id, "--json", *to).stdout)
    # Once more, from after its end: there is nothing to show but the record.
    assert document(cli("watch", workflow_id, "--after", "1", "--json", *to).stdout)["workflow_id"] == workflow_id
    listed = json.loads(cli("list", "--state", "succeeded", "--json", *to).stdout)["workflows"]
    assert workflow_id in [record["workflow_id"] for record in listed]
    status = json.loads(cli("status", "--json", *to).stdout)
    assert status["ready"] is True
    assert status["workers"][0]["pages"] > 0
    assert "worker-0" in cli("status", *to).stdout


def test_cancel(cli: Cli, address: str) -> None:
    to = ["--address", address]
    workflow_id = cli("submit", write(cli, LONG), *to).stdout.strip()
    assert cli("cancel", workflow_id, *to).stdout == f"{workflow_id}: cancelled\n"
    watched = cli("watch", workflow_id, "--json", *to)
    assert watched.returncode == 1
    assert document(watched.stdout)["state"] == "cancelled"
