"""The alert rules parse, name what is exported, fire when they should, and each has a page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql import RECORDED, problems_of

ROOT = Path(__file__).parents[3]
RULES = ROOT / "helm" / "laban" / "alerts" / "laban.rules.yaml"
TESTS = Path(__file__).parent / "laban.rules.test.yaml"
_GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALL: list[dict[str, Any]] = [rule for group in _GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in ALL if "alert" in rule]
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def test_rules_name_what_is_exported_or_recorded() -> None:
    recorded = {rule["record"] for rule in ALL if "record" in rule}
    for rule in ALL:
        assert problems_of(rule["expr"]) == []
        assert set(RECORDED.findall(rule["expr"])) <= recorded
    used = {name for rule in ALERTS for name in RECORDED.findall(rule["expr"])}
    assert used == recorded


def test_every_alert_has_a_section_that_names_it() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text()
    sections = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-"): text
        for title, text in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    }
    for rule in ALERTS:
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert file == "docs/runbooks.md"
        assert rule["alert"] in sections[anchor]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
    named = set(re.findall(r"\bLaban[A-Z]\w+", page))
    assert named == {rule["alert"] for rule in ALERTS}
    assert all("- **See**" in text and "- **Do**" in text for text in sections.values())


def test_every_alert_is_made_to_fire_in_a_test() -> None:
    tests = yaml.safe_load(TESTS.read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in ALERTS}


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True, capture_output=True)


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    done = subprocess.run(["promtool", "test", "rules", str(TESTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
