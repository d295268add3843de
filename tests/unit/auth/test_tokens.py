"""The tokens file: what it says, how it is refused, and how `laban token` writes it."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from laban.actors.errors import InvalidInput, LabanError, NotFound
from laban.cluster.cli import main
from laban.cluster.tokens import TokenBook, hash_token, new_token, read_tokens


def write(path: Path, text: str) -> Path:
    """In place of what was there, as a renewed secret comes."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)
    return path


def entry(token: str, name: str = "ci", **more: str) -> str:
    fields = {"name": name, "sha256": hash_token(token), "tenant": "acme", "roles": "[submit]", **more}
    return "  - {" + ", ".join(f"{key}: {value}" for key, value in fields.items()) + "}\n"


def test_a_token_is_found_by_its_hash_alone(tmp_path: Path) -> None:
    mine, other = new_token(), new_token()
    assert mine != other
    book = TokenBook(write(tmp_path / "tokens.yaml", "tokens:\n" + entry(mine)))
    found = book.find(mine)
    assert found is not None
    assert (found.name, found.tenant, found.roles) == ("ci", "acme", {"submit"})
    assert found.may("submit")
    assert found.may("read")
    assert not found.may("admin")
    for unknown in (other, "", mine[:-1], mine + " ", hash_token(mine), "\udcff"):
        assert book.find(unknown) is None


def test_one_that_has_expired_is_unknown(tmp_path: Path) -> None:
    token, now = new_token(), datetime(2026, 5, 1, tzinfo=UTC)
    book = TokenBook(write(tmp_path / "t.yaml", "tokens:\n" + entry(token, expires='"2026-05-01T12:00:00Z"')))
    assert book.find(token, now) is not None
    assert book.find(token, now + timedelta(hours=12)) is None


def test_changes_are_taken_up_and_mistakes_are_not(tmp_path: Path) -> None:
    first, second = new_token(), new_token()
    path = write(tmp_path / "tokens.yaml", "tokens:\n" + entry(first))
    book = TokenBook(path)
    assert not book.refresh()
    write(path, "tokens:\n" + entry(second) + "tenants:\n  acme: {max_workflows: 2}\n")
    assert book.refresh()
    assert book.find(first) is None
    assert book.find(second) is not None
    assert book.quota("acme").max_workflows == 2
    assert book.quota("others").max_workflows is None
    for wrong in ("tokens: [", "tokens:\n" + entry(second, expires="2026-02-30")):
        write(path, wrong)
        with pytest.raises(InvalidInput):
            book.refresh()
    assert book.find(second) is not None
    path.unlink()
    with pytest.raises(NotFound):
        book.refresh()
    assert book.find(second) is not None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("tokens: {a: b}", "tokens"),
        ("tokens:\n  - {name: a}", "tokens.0.sha256"),
        ("tokens:\n" + entry("x", sha256="laban_secret"), "tokens.0.sha256"),
        ("tokens:\n" + entry("x", roles="[write]"), "tokens.0.roles.0"),
        ("tokens:\n" + entry("x", roles="[]"), "tokens.0.roles"),
        ("tokens:\n" + entry("x", tenant="ACME/..."), "tokens.0.tenant"),
        ("tokens:\n" + entry("x", expires="2026-05-01T12:00:00"), "tokens.0.expires"),
        ("tokens:\n" + entry("x") + entry("y"), "tokens.1.name"),
        ("tokens:\n" + entry("x") + entry("x", "other"), "tokens.1.sha256"),
        ("token: []", "token"),
        ("tenants:\n  acme: {requests_per_s: 0}", "tenants.acme.requests_per_s"),
        ("- 1", "the file"),
        ("tenants:\n  acme: {max_workflows: 1}\ntenants: {}", "line 3: a key that is there already"),
        ("tenants:\n  laban_secret: {}\n  laban_secret: {}", "line 3: a key"),
        ("\x00", "YAML"),
        ("tokens:\n" + entry("x", expires="2026-13-01"), "line 2: is not valid YAML"),  # Python's ValueError
        ("tokens: !!int laban_secret", "line 1: is not valid YAML"),
        ("[" * 5000, "YAML"),
    ],
)
def test_a_mistake_is_named_by_its_place_and_nothing_is_quoted(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(text)
    with pytest.raises(LabanError) as raised:
        read_tokens(path)
    assert raised.value.field == "auth.tokens_file"
    assert place in raised.value.message
    assert "laban_secret" not in str(raised.value)


def test_the_command_adds_to_a_file_and_prints_the_token_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "tokens.yaml"
    assert main(["token", "nightly", "--tenant", "acme", "--roles", "submit,read", "--file", str(path)]) == 0
    token = capsys.readouterr().out.strip()
    assert "fidelity" not in path.read_text()
    assert main(["token", "root", "--roles", "admin", "--days", "1", "--fidelity", "direct", "--file", str(path)]) == 0
    assert [entry.fidelity for entry in read_tokens(path).tokens] == ["exact", "direct"]
    said = capsys.readouterr()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in path.read_text()
    book = TokenBook(path)
    found, root = book.find(token), book.find(said.out.strip())
    assert found is not None
    assert (found.tenant, sorted(found.roles)) == ("acme", ["read", "submit"])
    assert root is not None
    assert root.may("submit")
    assert book.find(said.out.strip(), datetime.now(UTC) + timedelta(days=2)) is None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["a b"], "NAME"),
        (["ci", "--tenant", "A"], "--tenant"),
        (["ci", "--roles", "write"], "--roles"),
        (["ci", "--fidelity", "auto"], "--fidelity: expected exact, corrected, blended or direct"),
        (["ci", "--days", "0"], "--days"),
        (["ci", "--days", "nan"], "--days"),
        (["ci", "--file", "/nowhere/tokens.yaml"], "--file"),
    ],
)
def test_a_bad_flag_makes_no_token(flags: list[str], told: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["token", *flags]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""
