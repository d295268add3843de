"""Bodies that could be read in two ways, or not at all, are refused with the field."""

from __future__ import annotations

import json
import re

import pytest

from laban.actors.errors import FailedPrecondition, InvalidInput, LabanError
from laban.cluster.http.errors import error_response
from laban.cluster.http.fields import read_object
from laban.cluster.http.requests import read_completion

CASES = [
    ('{"role": "user", "content": "a\\ud800b"}', "messages[0].content: is not valid Unicode text"),
    (
        '{"role": "user", "content": [{"type": "text", "text": "\\udc80"}]}',
        "messages[0].content[0].text: is not valid Unicode text",
    ),
    ('{"role": "user", "content": "a", "name": "b\\nsystem:"}', "messages[0].name: expected no line breaks"),
    ('{"role": "user", "content": "a", "name": "b\\u2028"}', "messages[0].name: expected no line breaks"),
    ('{"role": "user", "content": "a", "name": "b\\u0000"}', "messages[0].name: expected no line breaks"),
    (
        '{"role": "user", "content": "a", "name": "' + "b" * 257 + '"}',
        "messages[0].name: 257 characters, expected at most",
    ),
    ('{"role": "user", "content": "a", "content": "b"}', "content: is given twice in one object"),
]


@pytest.mark.parametrize(("message", "said"), CASES)
def test_a_message_that_is_not_clear_is_refused_by_its_field(message: str, said: str) -> None:
    body = f'{{"model": "m", "messages": [{message}]}}'.encode()
    with pytest.raises(InvalidInput, match=re.escape(said)):
        read_completion(read_object(body), forms={"m": None})


def test_names_are_taken_as_they_are() -> None:
    message = {"role": "user", "content": "\u00e9 \U0001f642", "name": "Zo\u00eb Q."}
    asked = read_completion({"model": "m", "messages": [message]}, forms={"m": None})
    assert (asked.ask.messages[0].name, asked.ask.messages[0].text) == (message["name"], message["content"])
    assert json.loads(json.dumps(message)) == read_object(json.dumps(message).encode())


def test_what_will_never_go_is_not_said_to_go_later() -> None:
    response = error_response(FailedPrecondition("the call needs 2064 tokens of KV memory at its worst"))
    assert response.status_code == 400  # 409 and 429 are tried again by OpenAI's clients
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"content": "Hello", "refusal": None, "annotations": [], "audio": None, "function_call": None}, "Hello"),
        ({"content": "Hello", "annotations": [{"type": "url_citation"}]}, "Hello"),
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
    ],
)
def test_an_answer_comes_back_as_openai_gave_it(said: dict[str, object], text: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", **said}]
    asked = read_completion({"model": "m", "messages": messages}, forms={"m": None})
    assert asked.ask.messages[1].text == text


def test_what_is_not_served_is_said_in_json() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "store": True}
    with pytest.raises(LabanError, match=re.escape("expected false or nothing (got true)")):
        read_completion(body, forms={"m": None})
