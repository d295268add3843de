"""Grants in the configuration: read back as they are, and mistakes named."""

from __future__ import annotations

from pathlib import Path

import pytest

from laban.actors.errors import InvalidInput
from laban.cluster.config import LabanConfig, describe, resolve

TWO = """
auth: {tokens_file: tokens.yaml}
models: {large: {path: /l}, small: {path: /s}}
adapters: {tuned: {path: /a, model: small}}
grants:
  rules: {tenants: [acme, banks], messages: [{text: Be brief.}, {role: user, file: book.txt, name: ann}]}
  tutor: {tenants: all, messages: [{text: "été\\n"}], model: small, adapters: [tuned]}
"""


def settle(folder: Path, text: str) -> LabanConfig:
    (folder / "laban.yaml").write_text(text, encoding="utf-8")
    return resolve(environment={}, folder=folder).config


def test_they_are_read_and_described(tmp_path: Path) -> None:
    config = settle(tmp_path, TWO)
    rules, tutor = config.grants.values()
    assert [message.role for message in rules.messages] == ["system", "user"]
    assert (rules.includes("acme"), rules.includes("clerk"), rules.includes("")) == (True, False, False)
    assert (tutor.includes("clerk"), tutor.includes("")) == (True, True)
    assert tutor.messages[0].text == "été\n"
    assert settle(tmp_path, describe(resolve(environment={}, folder=tmp_path))) == config
    given = {"LABAN_GRANTS": "{r: {tenants: all, messages: [{text: hi}]}}"}
    assert list(resolve(environment=given, folder=tmp_path / "none").config.grants) == ["r"]


@pytest.mark.parametrize(
    ("text", "field", "why"),
    [
        ("grants: {r: {messages: [{text: a}]}}", "grants.r.tenants", "field required"),
        ("grants: {r: {tenants: Acme, messages: [{text: a}]}}", "grants.r.tenants", "expected all, or a list"),
        ("grants: {r: {tenants: [], messages: [{text: a}]}}", "grants.r.tenants", "expected all, or a list"),
        ("grants: {r: {tenants: ['*'], messages: [{text: a}]}}", "grants.r.tenants", "is not a tenant's name"),
        ("grants: {r: {tenants: all, messages: []}}", "grants.r.messages", "list should have at least 1"),
        ("grants: {r: {tenants: all, messages: hi}}", "grants.r.messages", "should be a valid list"),
        ("models: {messages: {path: /m, shrds: 2}}", "models.messages.shrds", "did you mean shards"),
        ("grants: {r: {tenants: all, messages: [{}]}}", "grants.r.messages.0", "either text or file"),
        ("grants: {r: {tenants: all, messages: [{txt: a}]}}", "grants.r.messages.0.txt", "did you mean text"),
        ("grants: {r: {tenants: all, mesages: []}}", "grants.r.mesages", "did you mean messages"),
        ("grants: {r: {tenants: all, messages: [{role: tool, text: a}]}}", "grants.r.messages.0.role", "'system'"),
        ("grants: {'a|b': {tenants: all, messages: [{text: a}]}}", "grants.a|b", "not a grant's name"),
        ("grants: {r: {tenants: [acme], messages: [{text: a}]}}", "", "only with auth.tokens_file"),
        ("grants: {r: {tenants: all, messages: [{text: a}], model: m}}", "", "expected none where `models`"),
        ("grants: {r: {tenants: all, messages: [{text: a}], adapters: [m]}}", "", "the model has no adapters"),
        (TWO.replace("model: small, adapters", "adapters"), "", "the model has no adapters"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, text: str, field: str, why: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        settle(tmp_path, text)
    assert why in str(raised.value)
    assert raised.value.field == field
