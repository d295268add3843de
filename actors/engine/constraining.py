"""Calls whose text is constrained: their grammars, compiled beside the engine's loop, and what each may go on with.

llguidance reads the tokens as bytes and says, of a text so far, which tokens it may go on with. Here are one compiled
grammar for equal constraints, and for each call its place in it. Of the tokens that end a message it knows nothing:
they are allowed where the text is complete. A text that nothing can be added to ends by itself.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from laban.actors.calls import Call, Constraint
from laban.actors.engine.sampler import Masks
from laban.actors.errors import FailedPrecondition, InvalidInput, LabanError
from laban.actors.grammars import grammar_of
from laban.actors.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from laban.actors.engine.decoding import Decode

log = logging.getLogger(__name__)

MAX_GRAMMARS = 128
"""Compiled and kept; a new one takes milliseconds, one that uses up the library's limits some hundreds."""
_WORD = 32  # bits


class Matcher:
    """How far one call's text has come in its grammar."""

    def __init__(self, matcher: LLMatcher, field: str, stops: Sequence[int]) -> None:
        self._matcher, self._field, self._stops = matcher, field, tuple(stops)
        self._num_taken = 0
        self.is_over = False  # nothing can be added to the text
        self.problem: LabanError | None = None

    def take(self, index: int, token: int) -> None:
        """The call's token `index`. One that was taken before, while the device was busy, is passed over."""
        if index < self._num_taken:
            return
        self._num_taken += 1
        if self.is_over or self.problem is not None or token in self._stops:
            self.is_over = True
        else:
            try:
                with _as_problem(self._field):
                    if not self._matcher.consume_token(token) or self._matcher.is_error():
                        raise self._refusal()
                    self.is_over = self._matcher.is_stopped()
            except LabanError as problem:
                self.problem = problem

    def fill(self, words: np.ndarray) -> None:
        """Sets the bits of the tokens allowed next, in `words` [1, num_words] int32."""
        from llguidance.numpy import fill_next_token_bitmask

        try:
            with _as_problem(self._field):
                fill_next_token_bitmask(self._matcher, words)
                if self._matcher.is_error():
                    raise self._refusal()
                may_end = self._matcher.is_accepting()
        except LabanError as problem:
            self.problem = problem
            words[:] = -1  # any will do: the call ends
            return
        bits = words[0].view(np.uint32)
        for stop in self._stops:
            bit = np.uint32(1 << stop % _WORD)
            bits[stop // _WORD] = bits[stop // _WORD] | bit if may_end else bits[stop // _WORD] & ~bit

    def _refusal(self) -> LabanError:
        return InvalidInput(f"it cannot be followed any further: {_why(self._matcher)}", field=self._field)


@dataclass(frozen=True, slots=True)
class _Held:
    call: Call
    grammar: Future[LLMatcher]
    submitted_at: float


class Constraining:
    """Owns the grammars, and the calls that wait for theirs."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size` is the model's. To read the tokenizer takes some 0.5 s for 50,000 tokens."""
        self._tokens, self._why_not = _read(tokenizer, vocab_size)
        self._num_words = -(-max(vocab_size, tokenizer.vocab_size) // _WORD)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._compiled: OrderedDict[Constraint, Future[LLMatcher]] = OrderedDict()  # the oldest use first
        self._held: dict[str, _Held] = {}
        self._grammars: dict[str, LLMatcher] = {}  # of calls that wait to be admitted

    def __len__(self) -> int:
        return len(self._held)

    def holds(self, call: Call, now_s: float) -> bool:
        """Whether the call has to wait for its grammar. Raises LabanError if it can never have one."""
        constraint = None if call.sampling is None or call.sampling.forced else call.sampling.constraint
        if constraint is None:
            return False
        assert call.sampling is not None
        if self._tokens is None:
            raise FailedPrecondition(self._why_not, field=field_of(constraint))
        if not call.sampling.stop_token_ids:
            raise InvalidInput("a constrained call needs a token that may end it", field="sampling.stop_token_ids")
        if call.call_id in self._held:
            raise InvalidInput("is in use by another call", field="call_id", value=call.call_id)
        if constraint not in self._compiled:
            self._compiled[constraint] = self._thread.submit(self._compile, constraint)
            while len(self._compiled) > MAX_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(constraint)
        self._held[call.call_id] = _Held(call, self._compiled[constraint], now_s)
        return True

    @property
    def ready(self) -> tuple[str, ...]:
        """Calls whose grammars are there."""
        return tuple(call_id for call_id, held in self._held.items() if held.grammar.done())

    def release(self, call_ids: Sequence[str]) -> Iterator[tuple[Call, float, LabanError | None]]:
        """These calls, when they were submitted, and why they cannot run, if so. Another shard has their grammars:
        here they may have to be waited for."""
        for call_id in call_ids:
            held = self._held.pop(call_id, None)
            if held is None:
                continue
            assert held.call.sampling is not None
            constraint = held.call.sampling.constraint
            assert constraint is not None
            error: LabanError | None = None
            try:
                with _as_problem(field_of(constraint)):
                    self._grammars[call_id] = held.grammar.result()
            except LabanError as problem:
                error = problem
                if not isinstance(problem, InvalidInput):  # it may go better next time
                    self._compiled.pop(constraint, None)
            yield held.call, held.submitted_at, error

    def drop(self, call_id: str) -> None:
        self._held.pop(call_id, None)
        self._grammars.pop(call_id, None)

    def matcher(self, call: Call) -> Matcher | None:
        """Of a call that begins; None if it is not constrained."""
        grammar = self._grammars.pop(call.call_id, None)
        if grammar is None:
            return None
        assert call.sampling is not None
        assert call.sampling.constraint is not None
        field = field_of(call.sampling.constraint)
        with _as_problem(field):
            return Matcher(grammar.deep_copy(), field, call.sampling.stop_token_ids)

    def masks(self, decodes: Sequence[Decode]) -> Masks | None:
        """What these may go on with; None if all may with anything. Row i is of `decodes[i]`."""
        asking = [(row, d.matcher) for row, d in enumerate(decodes) if d.matcher is not None and not d.matcher.is_over]
        if not asking:
            return None
        words = np.empty((len(asking), self._num_words), np.int32)
        for place, (_, matcher) in enumerate(asking):
            matcher.fill(words[place : place + 1])
        return Masks([row for row, _ in asking], words)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        from llguidance import LLMatcher

        assert self._tokens is not None
        try:
            matcher = LLMatcher(self._tokens, grammar_of(constraint), log_level=0)
        except ValueError as error:  # no JSON object
            raise InvalidInput(str(error), field=field_of(constraint)) from None
        if not matcher.is_error():
            first = Matcher(matcher, field_of(constraint), ())
            first.fill(np.empty((1, self._num_words), np.int32))
            if first.problem is not None and not matcher.is_error():
                raise first.problem
        if matcher.is_error():
            raise InvalidInput(f"the model cannot be kept to it: {_why(matcher)}", field=field_of(constraint))
        return matcher


@contextmanager
def _as_problem(field: str) -> Iterator[None]:
    """Whatever the library fails with becomes an error of the one call. Its panics are no Exceptions: they would end
    the worker."""
    try:
        yield
    except (LabanError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        log.exception("the library of grammars failed")
        raise LabanError(f"keeping the model to it failed: {type(error).__name__}: {error}", field=field) from error


def field_of(constraint: Constraint) -> str:
    """The name of what asks for it, in requests and in steps."""
    return "response_schema" if constraint.schema else "choices"


def _why(matcher: LLMatcher) -> str:
    return matcher.get_error().partition("<state>")[0].strip() or f"{matcher.stop_reason()}"


def _read(tokenizer: Tokenizer, vocab_size: int) -> tuple[LLTokenizer | None, str]:
    """The tokenizer as the library has it, or why there is none."""
    if find_spec("llguidance") is None:
        return None, "llguidance is not installed where the model runs"
    from llguidance import LLTokenizer

    # Special tokens are part of no text; the library asks for one to end texts with.
    special = next((i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)), 0)
    try:
        return LLTokenizer(_without_spellings(tokenizer.to_json()), max(vocab_size, tokenizer.vocab_size), special), ""
    except ValueError as error:
        return None, f"the model's tokenizer cannot be used for it ({error})"


def _without_spellings(tokenizer: str) -> str:
    """A `tokenizer.json` whose special tokens are spelled as no text is. Where a text can go on in one way only, the
    library reads the tokens off its spelling, and must find letters there, not the special token that they spell."""
    read = json.loads(tokenizer)
    special = {token["content"]: token for token in read.get("added_tokens") or () if token["special"]}
    spelled = {content: f"\ufdd0{token['id']}\ufdd1" for content, token in special.items()}  # of noncharacters
    for content, token in special.items():
        token["content"] = spelled[content]
    model = read["model"]
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {spelled.get(content, content): token_id for content, token_id in vocab.items()}
    else:  # a list of pieces with their scores
        model["vocab"] = [[spelled.get(content, content), score] for content, score in vocab or ()]
    if model.get("unk_token") in spelled:
        model["unk_token"] = spelled[model["unk_token"]]
    return json.dumps(read)
