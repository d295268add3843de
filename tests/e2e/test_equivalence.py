"""The engine on the default model against transformers on the same folder: prompts, greedy text, chains, offsets."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import Driver, assert_same_encoding, place_recorded
from engine_reference import Interpreter
from transformers import AutoModelForCausalLM, AutoTokenizer

from laban.actors.calls import CallFinished, Sampling
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.load import load_engine
from laban.actors.framing import derive_framing
from laban.actors.tokenizer import Tokenizer
from laban.cluster.messages import Language, MessageBook, Opening
from laban.cluster.views import Entry
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, View, make_spec

pytestmark = pytest.mark.e2e

TOLERANCE = 2e-4
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
    "however",
    "42",
    "table,",
    "song.",
    "yes?",
    "never",
    "(maybe)",
    "été",
]


class Model:
    """The engine, and transformers beside it."""

    def __init__(self, folder: Path) -> None:
        self.driver = Driver(load_engine(folder, EngineConfig(pool_tokens=8192, max_batch_tokens=96)))
        self.hf: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.hf_tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        tokenizer = Tokenizer.from_folder(folder)
        language = Language(derive_framing(folder, tokenizer), tokenizer, "test", self.driver.engine.info.max_context)
        self.book = MessageBook(language, specs=self.driver.specs)

    def logits(self, tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.hf(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        return logits

    def generate(self, turns: list[tuple[str, str]], sampling: Sampling) -> CallFinished:
        """The turns as messages read `exact`, then an assistant's message."""
        entries = [
            Entry(self.book.add_text(f"m{i}", role, text, None, path="")) for i, (role, text) in enumerate(turns)
        ]
        call, _ = self.book.decode(f"call-{random.random()}", "the step", entries, Opening("assistant"), sampling)
        self.driver.events[call.call_id] = []
        self.driver.engine.submit(call)
        self.driver.run()
        return self.driver.result(call.call_id)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    return Model(model_folder)


def some_text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


CONVERSATIONS = [
    [("user", "Name three rivers of Europe.")],
    [("system", "You answer in one word."), ("user", "The capital of France?")],
    [("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Count to five.\n\n")],
    [
        ("system", "Be brief."),
        ("user", some_text(random.Random(1), 150)),
        ("assistant", " ok "),
        ("user", "\nWhy? 日本 🙂"),
    ],
]


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_exact_is_transformers_greedy_on_the_chat_template(model: Model, turns: list[tuple[str, str]]) -> None:
    prompt = model.hf_tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns], add_generation_prompt=True, return_dict=False
    )
    result = model.generate(turns, Sampling(max_tokens=24, num_logprobs=2))
    framed = [*(t for e in chain_of(model, result) for t in e.tokens), *result.encoding.tokens]
    assert framed[: len(prompt)] == prompt  # token for token what the template gives
    generated = list(result.generated)
    expected = model.hf.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=24, do_sample=False
    )[0, len(prompt) :].tolist()
    # The same text, up to the first place where the reference's two best are as good as equal.
    logits = model.logits([*prompt, *expected])[len(prompt) - 1 :]
    for i, token in enumerate(generated):
        best = logits[i].topk(2).values
        if best[0] - best[1] < 2 * TOLERANCE:
            return
        assert token == expected[i], f"token {i}"
        assert result.logprobs[i].logprob == pytest.approx(float(logits[i].log_softmax(-1)[token]), abs=TOLERANCE)
    assert len(generated) >= len([t for t in expected if t not in model.book.language.framing.stop_token_ids])


def chain_of(model: Model, result: CallFinished) -> list[EncodingSpec]:
    chain, at = [], result.encoding.view.prefix_id
    assert result.encoding.exact
    while at is not None:
        chain.append(model.driver.specs[at])
        at = model.driver.specs[at].view.prefix_id
    return chain[::-1]


def test_a_second_call_reuses_what_the_first_one_read_and_wrote(model: Model) -> None:
    turns = [("system", "You count."), ("user", f"Begin. {random.random()}")]
    first = model.generate(turns, Sampling(max_tokens=8))
    again = model.generate(turns, Sampling(max_tokens=8))
    assert again.tokens_reused == again.tokens_read == first.tokens_read
    assert again.generated == first.generated


@pytest.mark.parametrize("cuts", [[], [1, 50, 51], [64, 128]])
def test_a_chain_is_the_prefill_of_the_whole(model: Model, cuts: list[int]) -> None:
    draw = random.Random(len(cuts))
    tokens = [draw.randrange(100, 40_000) for _ in range(160)]
    edges = [0, *cuts, 160]
    view = EMPTY_VIEW
    for begin, end in itertools.pairwise(edges):
        spec = make_spec("test", tokens[begin:end], begin, view, model.driver.specs)
        model.driver.specs[spec.encoding_id] = spec
        view = View(spec.encoding_id)
    forced = [draw.randrange(100, 40_000) for _ in range(4)]
    call = model.driver.submit([7], view, 160, Sampling(4, forced=tuple(forced), num_logprobs=0))
    model.driver.run()
    logprobs = model.logits([*tokens, 7, *forced])[160:164].log_softmax(-1)
    for i, told in enumerate(model.driver.result(call).logprobs):
        assert told.logprob == pytest.approx(float(logprobs[i][forced[i]]), abs=TOLERANCE)


def test_reordered_messages_at_offsets_are_what_the_interpreter_makes_of_them(model: Model, model_folder: Path) -> None:
    oracle = Interpreter(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32))
    draw = random.Random(5)
    texts = [[draw.randrange(100, 40_000) for _ in range(size)] for size in (90, 30, 120)]
    specs = [model.driver.prefill(tokens) for tokens in texts]
    recorded = [oracle.encode(tokens, 0, []) for tokens in texts]
    view = EMPTY_VIEW
    for i, position in ((2, 0), (0, 120), (1, 6000)):
        view = model.driver.place(view, specs[i], position)
    child = model.driver.prefill([5, 6, 7], view, 6030)
    seen = [place_recorded(recorded[2], 0), place_recorded(recorded[0], 120), place_recorded(recorded[1], 6000)]
    assert_same_encoding(model.driver, oracle, child, oracle.encode([5, 6, 7], 6030, seen), tolerance=2e-4 + 6030e-6)
