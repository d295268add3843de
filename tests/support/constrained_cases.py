"""Constrained texts: small tokenizers, random schemas, and texts that are made of any logits under their masks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from laban.actors.calls import Call, Constraint, Sampling
from laban.actors.engine.constraining import Constraining, Matcher
from laban.actors.errors import InvalidInput
from laban.actors.tokenizer import Tokenizer
from laban.cluster.workflow.constraints import constraint_of
from laban.kvstore.encodings import EMPTY_VIEW

STOP = 0
_WORDS = [
    '{"',
    '": ',
    '", "',
    "true",
    "null",
    '": "',
    '"}',
    ", ",
    "[]",
    "ab",
    "no",
    "yes",
    " w",
    "ay",
    "}}",
    "[[",
    "00",
]


def byte_level_tokenizer(num_bytes: int = 256) -> Tokenizer:
    """Bytes as GPT-2 spells them; in the place of control characters words of several."""
    spelled = {byte: chr(code) for byte, code in _spellings()}
    words = iter(_WORDS)
    vocab = {"<|end|>": STOP}
    for byte in range(1, num_bytes):
        word = next(words, None) if byte < 32 and byte not in (9, 10, 13) else None
        vocab[spelled[byte] if word is None else "".join(spelled[each] for each in word.encode())] = byte
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True)])
    return Tokenizer(backend)


def sentencepiece_tokenizer() -> Tokenizer:
    """As Llama 2 and Mistral have it: pieces with a mark for spaces, and bytes to fall back on."""
    vocab = {"</s>": STOP, "<unk>": 1, "<s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in [*map(chr, range(33, 127)), "▁", *(word.replace(" ", "▁") for word in _WORDS), "▁yes", "é", "日"]:
        vocab.setdefault(piece, len(vocab))
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("</s>", "<unk>", "<s>")])
    return Tokenizer(backend)


def _spellings() -> Iterator[tuple[int, int]]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    yield from ((byte, byte) for byte in shown)
    yield from ((byte, 256 + place) for place, byte in enumerate(hidden))


class Player:
    """Makes texts of random logits, one token after the other, as an engine does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        self.constraining = Constraining(tokenizer, self.vocab_size)

    def matcher(self, constraint: Constraint) -> Matcher:
        sampling = Sampling(1, constraint=constraint, stop_token_ids=(STOP,))
        call = Call("call", "", EMPTY_VIEW, 0, (0,), (), sampling)
        assert self.constraining.holds(call, 0.0)
        ((_, _, error),) = self.constraining.release(["call"])
        if error is not None:
            raise error
        matcher = self.constraining.matcher(call)
        assert matcher is not None
        return matcher

    def allowed(self, matcher: Matcher) -> list[int]:
        words = np.zeros((1, -(-self.vocab_size // 32)), np.int32)
        matcher.fill(words)
        if matcher.problem is not None:
            raise matcher.problem
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: self.vocab_size]
        return [int(token) for token in bits.nonzero()[0]]

    def play(self, constraint: Constraint, draw: random.Random, max_tokens: int = 400) -> str | None:
        """A text; None if `max_tokens` were not enough for one."""
        matcher, tokens = self.matcher(constraint), []
        liked = {token: draw.random() for token in range(self.vocab_size)}
        for index in range(max_tokens):
            allowed = self.allowed(matcher)
            assert allowed, "nothing may follow"
            # Now what these logits like best, now anything: a model may repeat itself, too.
            token = max(allowed, key=liked.__getitem__) if draw.random() < 0.3 else draw.choice(allowed)
            matcher.take(index, token)
            if token == STOP:
                assert matcher.is_over
                return self.text(tokens)
            tokens.append(token)
            if matcher.is_over:
                return self.text(tokens)
        return None

    def text(self, tokens: list[int]) -> str:
        detokenizer = self.tokenizer.detokenizer()
        return "".join(detokenizer.push([token]) for token in tokens) + detokenizer.flush()


@cache
def players() -> tuple[Player, ...]:
    """With tokens of bytes, and of pieces."""
    return Player(byte_level_tokenizer()), Player(sentencepiece_tokenizer())


def check_schema(seed: int, players: Sequence[Player]) -> str:
    """What became of a random schema: it was "refused", or texts that follow it were made of any logits, one of each
    player, unless one was "cut" off."""
    draw = random.Random(seed)
    schema = random_schema(draw)
    try:
        constraint = constraint_of(schema)
        assert constraint is not None
        texts = [player.play(constraint, draw) for player in players]
    except InvalidInput:
        return "refused"
    for text in texts:
        assert text is None or problem_with_text(schema, text) == "", (seed, schema)
    return "cut" if None in texts else "followed"


def constrained(
    *, schema: Mapping[str, Any] | None = None, choices: Sequence[str] | None = None, **sampling: Any
) -> Sampling:
    """For engines of the 128 tokens."""
    values = {"max_tokens": 60, "temperature": 1.0, "stop_token_ids": (STOP,), **sampling}
    return Sampling(constraint=constraint_of(schema, choices), **values)


def problem_with_text(schema: dict[str, Any], text: str) -> str:
    """Why a text is not what the schema asks for, as others judge that; "" if it is."""
    try:
        document = json.loads(text)
    except ValueError as error:
        return f"{text!r} is not JSON: {error}"
    error = next(Draft202012Validator(schema).iter_errors(document), None)
    return "" if error is None else f"{text!r}: {error.message} at {error.json_path}"


PATTERNS = ["^[a-c]{1,4}$", "ab?c", "^(no|yes)$", "[0-9]{2}-[0-9]{2}", "^x", "y$", r"^\w+ \d$"]
FORMATS = ["date", "time", "date-time", "ipv4", "uuid", "email", "duration", "colour"]
UNSERVED = {
    "not": {"type": "null"}, "if": {}, "uniqueItems": True, "contains": {}, "propertyNames": {"maxLength": 3},
    "dependentRequired": {"a": ["b"]}, "unevaluatedProperties": False, "minProperties": 9,
    "dependentSchemas": {"a": {}}, "x-guidance": {"lenient": True},
}  # fmt: skip


def random_schema(draw: random.Random, depth: int = 3) -> dict[str, Any]:
    """A valid JSON schema, most of which can be enforced."""
    if depth == 3 and draw.random() < 0.2:
        inner = random_schema(draw, 2)
        return {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [inner, _recursive(draw)]}}}
    kinds = [_string, _string, _number, _number, _enumerated, _simple]
    if depth:
        kinds += [_object, _object, _object, _array, _array, _alternatives]
    schema = draw.choice(kinds)(draw, depth)
    if draw.random() < 0.03:
        keyword = draw.choice(list(UNSERVED))
        schema[keyword] = UNSERVED[keyword]
    if draw.random() < 0.1:
        schema |= {"title": "a title", "description": "what it is", "default": None, "examples": [1], "x-mine": {}}
    return schema


def _recursive(draw: random.Random) -> dict[str, Any]:
    return {
        "type": "object", "properties": {"next": {"$ref": "#/$defs/a"}, "n": {"type": "boolean"}},
        "required": draw.choice([["n"], ["n", "next"]]), "additionalProperties": False,
    }  # fmt: skip


def _string(draw: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    chance = draw.random()
    if chance < 0.25:
        schema["pattern"] = draw.choice(PATTERNS)
    elif chance < 0.4:
        schema["format"] = draw.choice(FORMATS)
    if draw.random() < 0.5:
        schema["minLength"] = draw.randrange(4)
    if draw.random() < 0.7:
        schema["maxLength"] = draw.randrange(4, 40)
    return schema


def _number(draw: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": draw.choice(["integer", "number"])}
    low = draw.randrange(-100, 100)
    if draw.random() < 0.5:
        schema[draw.choice(["minimum", "exclusiveMinimum"])] = low
    if draw.random() < 0.5:
        schema[draw.choice(["maximum", "exclusiveMaximum"])] = low + draw.choice([2, 7, 200, 0.5])
    if draw.random() < 0.15:
        schema["multipleOf"] = draw.choice([2, 5, 10, 0.5])
    return schema


def _enumerated(draw: random.Random, depth: int) -> dict[str, Any]:
    values = ["a", "ab", 'say "no"', "né", 0, -1.5, True, None, [1, "x"], {"k": [None]}, "", "\n", 10**15]
    return {"const": draw.choice(values)} if draw.random() < 0.3 else {"enum": draw.sample(values, 3)}


def _simple(draw: random.Random, depth: int) -> dict[str, Any]:
    return draw.choice([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"], "maxLength": 5}])


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(["a", "b", "name", "the value", 'quo"te', "é", "x1", "a.b"], draw.randrange(5))
    schema: dict[str, Any] = {"type": "object", "properties": {name: random_schema(draw, depth - 1) for name in names}}
    schema["required"] = [name for name in names if draw.random() < 0.6]
    extra = draw.random()
    if extra < 0.6:
        schema["additionalProperties"] = False
    elif extra < 0.8:
        schema["additionalProperties"] = random_schema(draw, 0)
    if draw.random() < 0.15:
        schema["patternProperties"] = {draw.choice(["^x", "^[a-c]+$"]): random_schema(draw, 0)}
    if draw.random() < 0.2:
        schema["maxProperties"] = draw.randrange(len(names), len(names) + 3)
    if draw.random() < 0.1:
        schema["minProperties"] = draw.randrange(len(names) + 1)
    return schema


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "maxItems": draw.randrange(5)}
    if draw.random() < 0.8:
        schema["items"] = random_schema(draw, depth - 1)
    if draw.random() < 0.3:
        schema["prefixItems"] = [random_schema(draw, 0) for _ in range(draw.randrange(1, 3))]
    if draw.random() < 0.4:
        schema["minItems"] = draw.randrange(schema["maxItems"] + 1)
    return schema


def _alternatives(draw: random.Random, depth: int) -> dict[str, Any]:
    inner = [random_schema(draw, depth - 1) for _ in range(2)]
    return {draw.choice(["anyOf", "anyOf", "oneOf", "allOf"]): inner}
