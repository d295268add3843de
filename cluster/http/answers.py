"""Answers as OpenAI's clients read them: whole, or as the chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from laban.actors.calls import TokenLogprob
from laban.actors.errors import Unavailable
from laban.cluster.http.requests import Completion
from laban.cluster.http.tool_formats import Called, Parsed
from laban.cluster.records import MessageRecord, TokenChunk

Decode = Callable[[Sequence[int]], str]
Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Answer:
    """One of them, as it comes."""

    asked: Completion
    model: str
    decode: Decode  # token ids to text
    prompt_tokens: int = 0
    answer_id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _text: str = ""
    _sent: str = ""

    def completion(self, record: MessageRecord) -> Json:
        parsed = self._parsed(record)
        message: Json = {"role": "assistant", "content": parsed.text, "refusal": None}
        if parsed.calls:
            message |= {"content": parsed.text or None, "tool_calls": [_call(call) for call in parsed.calls]}
        choice = {"index": 0, "message": message, "logprobs": self._logprobs(record)}
        choice["finish_reason"] = _reason(record, parsed)
        head = {"id": self.answer_id, "object": "chat.completion", "created": self.created, "model": self.model}
        return {**head, "choices": [choice], "usage": self.usage(record), "laban": _own(record)}

    def usage(self, record: MessageRecord) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": record.tokens_generated,
            "total_tokens": self.prompt_tokens + record.tokens_generated,
            "prompt_tokens_details": {"cached_tokens": record.tokens_reused},
        }

    def first(self) -> bytes:
        return self._event({"role": "assistant", "content": ""})

    def more(self, chunk: TokenChunk) -> Iterator[bytes]:
        """Events for a chunk: none while its text may be part of a call.

        Raises Unavailable where an attempt after the loss of a worker says other things than were sent.
        """
        self._text = chunk.text if chunk.index == 0 else self._text + chunk.text
        form = self.asked.tools.format
        sure = len(self._text) if form is None else 0 if self.asked.tools.opening else form.certain(self._text)
        yield from self._send(self._text[:sure])

    def last(self, record: MessageRecord) -> Iterator[bytes]:
        """What is left to be said, the reason of the end, and what it took."""
        parsed = self._parsed(record)
        yield from self._send(parsed.text if not parsed.calls else self._rest(parsed.text))
        for index, call in enumerate(parsed.calls):
            yield self._event({"tool_calls": [{"index": index, **_call(call)}]})
        if record.logprobs:
            yield self._event({"content": ""}, logprobs=self._logprobs(record))
        yield self._event({}, reason=_reason(record, parsed))
        if self.asked.include_usage:
            yield _event({**self._head(), "choices": [], "usage": self.usage(record), "laban": _own(record)})
        yield DONE

    def _rest(self, text: str) -> str:
        """Beside calls, text is stripped: what was sent of it stays as it was."""
        return text if text.startswith(self._sent) else self._sent

    def _send(self, text: str) -> Iterator[bytes]:
        if not text.startswith(self._sent[: len(text)]):
            raise Unavailable("a worker was lost, and the answer made anew is another; try again")
        new = text[len(self._sent) :]
        if new:
            self._sent = text
            yield self._event({"content": new})

    def _parsed(self, record: MessageRecord) -> Parsed:
        tools = self.asked.tools
        if tools.format is None:
            return Parsed(record.text)
        parsed = tools.format.parse(tools.opening + record.text, tools.names)
        if not parsed.calls:
            return Parsed(record.text)
        return Parsed(parsed.text, parsed.calls[: tools.most_calls])

    def _logprobs(self, record: MessageRecord) -> Json | None:
        if self.asked.ask.sampling.num_logprobs is None:
            return None
        return {"content": [self._logprob(told) for told in record.logprobs], "refusal": None}

    def _logprob(self, told: TokenLogprob) -> Json:
        top = [self._token(token_id, logprob) for token_id, logprob in told.top]
        return self._token(told.token_id, told.logprob) | {"top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> Json:
        text = self.decode([token_id])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}

    def _event(self, delta: Json, *, reason: str | None = None, logprobs: Json | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _event({**self._head(), "choices": [choice]})

    def _head(self) -> Json:
        object_kind = "chat.completion.chunk"
        return {"id": self.answer_id, "object": object_kind, "created": self.created, "model": self.model}


def _event(data: Json) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def error_event(body: Json) -> bytes:
    """For what goes wrong once a stream has begun."""
    return _event(body)


def _call(call: Called) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _reason(record: MessageRecord, parsed: Parsed) -> str:
    if parsed.calls:
        return "tool_calls"
    return "length" if record.finish_reason == "length" else "stop"


def _own(record: MessageRecord) -> Json:
    """What Laban tells besides."""
    names = (
        "fidelity", "tokens_read", "tokens_reused", "tokens_loaded", "tokens_encoded", "tokens_generated",
        "tokens_drafted", "tokens_accepted", "ttft_ms",
    )  # fmt: skip
    return {name: getattr(record, name) for name in names}
