"""Calls that a message book builds: an exact view is, token for token, the prompt that the template makes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import MAX_CONTEXT, CharFraming, CharTokenizer, decode

from laban.actors.calls import Call, Sampling
from laban.actors.errors import InvalidInput, OutOfRange, UnsupportedModel
from laban.cluster.messages import Language, MessageBook, Opening
from laban.cluster.views import Entry
from laban.kvstore.encodings import flatten

ROLES = ("system", "user", "assistant")


def a_book(framing: CharFraming | None = None) -> MessageBook:
    return MessageBook(Language(framing or CharFraming(), CharTokenizer(), "model/", MAX_CONTEXT))


def prompt_of(call: Call) -> str:
    """Everything the call attends to, then its own tokens, if their positions have neither gap nor overlap."""
    specs = {spec.encoding_id: spec for spec in call.specs}
    text, cursor = "", 0
    for placed in flatten(call.view, specs):
        assert placed.position == cursor
        cursor = placed.stop
        text += decode(specs[placed.encoding_id].tokens[placed.begin : placed.end])
    assert call.start == cursor
    return text + decode(call.tokens)


messages = st.lists(st.tuples(st.sampled_from(ROLES), st.text("abc", max_size=5)), max_size=5)


@settings(max_examples=100, deadline=None)
@given(messages, st.sampled_from(["exact", "direct"]), st.sampled_from(["", "!"]), st.sampled_from(["", "^"]))
def test_root_messages_and_header_are_the_prompt(given_messages, fidelity, first_mark, root):
    framing = CharFraming(first_mark, root)
    book = a_book(framing)
    for index, (role, text) in enumerate(given_messages):
        book.add_text(str(index), role, text, None, path="")
    entries = [Entry(book.messages[str(index)], fidelity) for index in range(len(given_messages))]
    call, _ = book.decode("call", "step", entries, Opening("assistant", "bob", "Well"), Sampling(max_tokens=10))
    expected = "".join(
        decode(framing.message(role, text, first=index == 0)) for index, (role, text) in enumerate(given_messages)
    )
    first = first_mark if not given_messages else ""
    assert prompt_of(call) == f"{root}{expected}{first}[assistant:bob]Well"
    assert decode(call.terminator) == "|"
    assert call.sampling.stop_token_ids == framing.stop_token_ids
    known = set()
    for spec in call.specs:  # each after all that it depends on
        assert {spec.view.prefix_id, *(p.encoding_id for p in spec.view.placements)} - {None} <= known
        known.add(spec.encoding_id)


def test_the_worst_case_must_fit():
    book = a_book()
    message = book.add_text("task", "user", "x" * 100, None, path="messages.task")
    used = 1 + message.home.num_tokens + len("[assistant:]") + len("|")
    fits = Sampling(max_tokens=MAX_CONTEXT - used)
    book.decode("call", "step only", [Entry(message)], Opening("assistant"), fits)
    with pytest.raises(OutOfRange, match=f"step only needs up to {MAX_CONTEXT + 1} "):
        book.decode("c", "step only", [Entry(message)], Opening("assistant"), Sampling(max_tokens=fits.max_tokens + 1))
    forced = Sampling(max_tokens=10 * MAX_CONTEXT, forced=(1, 2, 3))
    book.decode("call", "step only", [Entry(message)], Opening("assistant"), forced)


def test_a_template_without_a_header_is_said():
    class Headless(CharFraming):
        def header(self, role, name=None, *, first=False, prefill=""):
            return ()

        def message(self, role, text, name=None, *, first=False):
            return (1,)

    with pytest.raises(UnsupportedModel, match="no header"):
        a_book(Headless()).decode("call", "step", [], Opening("assistant"), Sampling(max_tokens=1))


def test_an_unknown_role_is_refused():
    with pytest.raises(InvalidInput):
        a_book().add_text("task", "narrator", "x", None, path="messages.task")


def test_forgetting_keeps_ancestors():
    book = a_book()
    for key in ("a", "b"):
        book.add_text(key, "user", key, None, path="")
    entries = [Entry(book.messages["a"]), Entry(book.messages["b"])]
    call, composed = book.prefill("call", "message c", entries, "user", (1, 2))
    specs = {spec.encoding_id: spec for spec in call.specs}
    from laban.kvstore.encodings import make_spec

    book.add_encoded("c", "user", None, make_spec("model/", call.tokens, call.start, composed.view, specs))
    book.keep_only(["c"])
    assert [spec.tokens for spec in book.specs.values()] == [
        spec.tokens for spec in (*call.specs, book.messages["c"].home)
    ]
    book.keep_only([])
    assert not book.specs
