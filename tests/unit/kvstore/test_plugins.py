"""Classes named as package.module:Class, and what is said of those that cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from laban.kvstore.plugins import load, make

MODULE = """
class Good:
    def key(self, item, now_s):
        return (0.0,)

class NoKey:
    pass

class Demanding:
    def __init__(self, weight):
        self.weight = weight
    def key(self, item, now_s):
        return (0.0,)

number = 3
"""


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_under_test.py").write_text(MODULE)
    (tmp_path / "broken_under_test.py").write_text("raise RuntimeError('not today')")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("plugin_under_test", None)


def test_a_class_is_loaded_and_made() -> None:
    found = load("plugin_under_test:Good", "eviction policy")
    assert found.__name__ == "Good"
    assert isinstance(make("plugin_under_test:Good", "eviction policy"), found)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("plugin_under_test.Good", r"expected package\.module:Class"),
        (":Good", r"expected package\.module:Class"),
        ("plugin_under_test:", r"expected package\.module:Class"),
        ("not_there_at_all:Good", "cannot import 'not_there_at_all': ModuleNotFoundError"),
        ("broken_under_test:Good", "cannot import 'broken_under_test': RuntimeError: not today"),
        ("plugin_under_test:Missing", "no such class in 'plugin_under_test'"),
        ("plugin_under_test:number", "number is a int, expected a class"),
        ("plugin_under_test:NoKey", "NoKey has no method 'key'"),
    ],
)
def test_what_is_wrong_is_said(path: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load(path, "eviction policy")
    assert "eviction policy" in str(caught.value)
    assert path in str(caught.value)


def test_a_class_that_wants_arguments_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="cannot be made: TypeError"):
        make("plugin_under_test:Demanding", "routing policy")
