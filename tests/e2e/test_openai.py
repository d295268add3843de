"""OpenAI's API of a real server, on the default model: the answers are transformers' own, and its end is clean."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from socket import create_server
from typing import Any

import openai
import pytest
import torch
from command_line import ENDING_S, Cli
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.e2e

TIE = 5e-4  # float32 logits, by another order of operations
WORDS = [
    "river",
    "stone",
    "seven",
    "apple",
    "under",
    "quickly",
    "Paris",
    "minus",
    "green",
    "42",
    "table,",
    "song.",
    "yes?",
    "never",
    "(maybe)",
    "été",
]


@pytest.fixture(scope="module")
def url(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    serving = Cli(tmp_path_factory.mktemp("openai"))
    process = serving.start("serve", "--port", "0", "--http-port", port)
    assert process.stdout is not None
    if " on " not in process.stdout.readline():
        _, error = process.communicate(timeout=ENDING_S)
        pytest.fail(f"the cluster did not start: {error}")
    yield f"http://127.0.0.1:{port}/v1"
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENDING_S) == 0
    assert serving.leftovers() == []


def test_answers_are_those_of_transformers_on_the_templates_prompt(url: str, model_folder: Path) -> None:
    seed = random.randrange(2**32)
    seeded = random.Random(seed)
    reference: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client:
        [model] = [model.id for model in client.models.list()]
        messages: list[Any] = [{"role": "system", "content": "Be brief."}] if seeded.random() < 0.5 else []
        kept = 0
        for turn in range(3):
            why = f"seed {seed}, turn {turn}"
            messages.append({"role": "user", "content": " ".join(seeded.choices(WORDS, k=12))})
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            made = client.chat.completions.create(
                model=model, messages=messages, max_tokens=8, temperature=0, logprobs=True, top_logprobs=1
            )
            assert made.usage is not None, why
            assert made.usage.prompt_tokens == len(prompt), why
            details = made.usage.prompt_tokens_details
            assert details is not None, why
            assert details.cached_tokens is not None, why
            assert details.cached_tokens >= kept, why  # all that the last turn read, and its answer
            [choice] = made.choices
            text = choice.message.content
            said = tokenizer.encode(text, add_special_tokens=False)
            with torch.no_grad():
                logits = reference(torch.tensor([[*prompt, *said]])).logits[0, len(prompt) - 1 : -1]
            chosen = logits.gather(1, torch.tensor(said)[:, None])[:, 0]
            assert float((logits.max(dim=1).values - chosen).max()) < TIE, why
            kept = made.usage.total_tokens
            messages.append({"role": "assistant", "content": text})
        stream = client.chat.completions.create(
            model=model, messages=messages[:-1], max_tokens=8, temperature=0, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == messages[-1]["content"]
        shape = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"],
                 "additionalProperties": False}  # fmt: skip
        typed = client.chat.completions.create(
            model=model,
            messages=messages[:1],
            max_tokens=40,
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": shape}},
        )
        assert typed.choices[0].message.content is not None
        assert '"n"' in typed.choices[0].message.content
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=model, messages=messages, n=2)
