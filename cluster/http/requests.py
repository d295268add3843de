"""A chat completion as it is asked for, checked. What would change the answer and is not served is refused by name."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from laban.actors.calls import Constraint, Sampling
from laban.actors.chat_messages import ChatMessage, ToolCall
from laban.actors.errors import InvalidInput, NotBuilt
from laban.cluster.chats import MOST_TOKENS, ChatAsk
from laban.cluster.http.errors import Refused
from laban.cluster.http.fields import Fields
from laban.cluster.http.tool_formats import ToolFormat
from laban.cluster.http.tools import Tools, read_tools
from laban.cluster.texts import check_name
from laban.cluster.workflow.constraints import constraint_of
from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE, Fidelity, expected, is_served

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_TIMEOUT_S = 86_400.0
ROLES = ("system", "developer", "user", "assistant", "tool")

SERVED = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "top_k", "stop", "seed", "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "laban",
)  # fmt: skip
HARMLESS = (
    "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prediction",
)  # fmt: skip
"""They do not change an answer."""
ALLOWED: dict[str, tuple[object, ...]] = {
    "store": (False,),
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
}
"""With these values they change nothing."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A request for one."""

    ask: ChatAsk
    tools: Tools
    stream: bool = False
    include_usage: bool = False
    timeout_s: float | None = None


def no_such_model(asked: str, served: Iterable[str]) -> Refused:
    why = f"no such model, expected {' or '.join(served)}"
    return Refused(why, field="model", value=asked, http_status=404, code="model_not_found")


def read_completion(
    given: dict[str, Any], *, forms: Mapping[str, ToolFormat | None], fidelity: Fidelity = "exact"
) -> Completion:
    """`forms` are the models that are served, and how each calls tools; `fidelity` is the caller's unless it says
    otherwise.

    Slow for large schemas: call it off the event loop. Raises InvalidInput, NotBuilt and Refused with the field.
    """
    body = Fields(given)
    _refuse_others(body)
    asked = body.text("model")
    if asked not in forms:
        raise no_such_model(asked, forms)
    options = body.inner("stream_options") if body.has("stream_options") else Fields({})
    options.only(("include_usage", "include_obfuscation"))
    tools = read_tools(body, forms[asked])
    level, share, timeout_s = _own(body, fidelity)
    constraint = _response_format(body)
    if constraint is not None and tools.definitions:
        raise InvalidInput("given beside tools, expected one of the two", field="response_format")
    messages = tuple(_message(Fields(item, path)) for path, item in body.items("messages", MAX_MESSAGES))
    ask = ChatAsk(
        messages,
        _sampling(body, constraint or tools.constraint),
        tools.definitions,
        level,
        share,
        tools.opening,
        asked,
    )
    return Completion(ask, tools, body.flag("stream"), options.flag("include_usage"), timeout_s)


def _refuse_others(body: Fields) -> None:
    for name in body.names():
        if name in SERVED or name in HARMLESS:
            continue
        value, allowed = body.get(name), ALLOWED.get(name)
        if allowed is None:
            raise NotBuilt("is not served, expected it to be left out", field=name)
        if isinstance(value, bool) != isinstance(allowed[0], bool) or value not in allowed:
            raise NotBuilt(f"is not served, expected {json.dumps(allowed[0])} or nothing", field=name, value=value)


def _sampling(body: Fields, constraint: Constraint | None) -> Sampling:
    most = body.whole("max_completion_tokens", 1, MOST_TOKENS) or body.whole("max_tokens", 1, MOST_TOKENS)
    temperature = body.number("temperature", 0, 2, 1.0)
    seed = body.whole("seed", -(2**63), 2**64 - 1)
    top = body.whole("top_logprobs", 0, MAX_LOGPROBS)
    wanted = body.flag("logprobs")
    if top is not None and not wanted:
        raise InvalidInput("given without logprobs, expected `logprobs: true`", field="top_logprobs", value=top)
    return Sampling(
        max_tokens=most or 0,
        temperature=temperature,
        top_p=body.number("top_p", 0, 1, 1.0, above=True),
        top_k=body.whole("top_k", 0, 1_000_000) or 0,
        seed=secrets.randbits(63) if seed is None else seed % 2**63,
        stop=_stops(body),
        num_logprobs=(top or 0) if wanted else None,
        constraint=constraint,
        drafting=not body.has("laban") or body.inner("laban").flag("drafting", True),
    )


def _stops(body: Fields) -> tuple[str, ...]:
    given = body.get("stop")
    if given is None or isinstance(given, str):
        found = [("stop", given)] if given is not None else []
    else:
        found = body.items("stop", MAX_STOPS)
    for path, stop in found:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARS:
            raise InvalidInput(f"expected text of 1 to {MAX_STOP_CHARS} characters", field=path, value=stop)
    return tuple(stop for _, stop in found)


def _response_format(body: Fields) -> Constraint | None:
    if not body.has("response_format"):
        return None
    fields = body.inner("response_format")
    kind = fields.one_of("type", ("text", "json_object", "json_schema"))
    fields.only(("type", "json_schema"))
    if kind == "text":
        return None
    if kind == "json_object":
        return constraint_of({"type": "object"})
    inner = fields.inner("json_schema")
    inner.only(("name", "description", "schema", "strict"))
    if not isinstance(inner.get("schema"), dict):
        raise InvalidInput("expected a JSON schema", field=inner.path("schema"), value=inner.get("schema"))
    try:
        return constraint_of(inner.get("schema"))
    except InvalidInput as error:
        raise InvalidInput(error.message, field=inner.path("schema")) from None


def _own(body: Fields, fidelity: Fidelity) -> tuple[Fidelity, float, float | None]:
    """What Laban adds: how messages are reused, and how long it may take."""
    if not body.has("laban"):
        return fidelity, RECOMPUTE_SHARE, None
    fields = body.inner("laban")
    fields.only(("fidelity", "recompute_share", "timeout_s", "drafting"))
    word = fields.text("fidelity", fidelity)
    if not is_served(word):
        raise InvalidInput(f"expected {expected()}", field="laban.fidelity", value=word)
    share = fields.number("recompute_share", 0, 1, RECOMPUTE_SHARE, above=True)
    timeout_s = fields.number("timeout_s", 0, MAX_TIMEOUT_S, MAX_TIMEOUT_S, above=True)
    return word, share, timeout_s if fields.has("timeout_s") else None


def _message(fields: Fields) -> ChatMessage:
    role = fields.one_of("role", ROLES)
    fields.only(
        ("role", "content", "name")
        + (("tool_calls", "refusal", "annotations") if role == "assistant" else ())
        + (("tool_call_id",) if role == "tool" else ())
    )
    calls = tuple(_tool_call(Fields(item, path)) for path, item in fields.items("tool_calls", MAX_PARTS))
    if role == "assistant" and fields.has("refusal") and not fields.has("content"):
        text = fields.text("refusal")  # as OpenAI's own answers have it: this is what was said
    else:
        text = _content(fields, optional=bool(calls))
    name = check_name(fields.text("name", ""), fields.path("name")) or None
    if role == "tool":
        return ChatMessage(role, text, name, tool_call_id=fields.text("tool_call_id"))
    return ChatMessage("system" if role == "developer" else role, text, name, calls)


def _content(fields: Fields, *, optional: bool) -> str:
    if not isinstance(fields.get("content"), list):
        return fields.text("content", "" if optional else None)
    texts = []
    for path, item in fields.items("content", MAX_PARTS):
        part = Fields(item, path)
        part.one_of("type", ("text",))
        part.only(("type", "text"))
        texts.append(part.text("text"))
    return "\n".join(texts)


def _tool_call(fields: Fields) -> ToolCall:
    fields.only(("id", "type", "function", "index"))
    fields.one_of("type", ("function",), "function")
    inner = fields.inner("function")
    inner.only(("name", "arguments"))
    return ToolCall(fields.text("id"), inner.text("name"), inner.text("arguments", "{}"))
