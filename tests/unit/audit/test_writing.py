"""Fidelities written into YAML: all else stays, character by character, or nothing is written."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from laban.actors.errors import FailedPrecondition
from laban.cluster.audit.advice import Advice
from laban.cluster.audit.writing import set_fidelities
from laban.cluster.cli.arguments import parse
from laban.cluster.cli.audit import AuditPlan, write_back
from laban.cluster.workflow.fidelity import Degree
from laban.cluster.workflow.yamltree import load

DIRECT, EXACT = Degree("direct"), Degree("exact")

TEXT = """\
# at the top
version: 1
steps:
  # about the first
  - step: one   # its name
    read: [a, "b[all]", {read: c, fidelity: exact}]

  - {step: two, read: [one]}   # in one line
  - step: three
    fidelity: blended  # as it was
    read:
      - one
      - read: two[1]
        end: 4
"""


def test_comments_and_layout_stay() -> None:
    degrees = {
        ("steps", 0): DIRECT, ("steps", 0, "read", 1): EXACT, ("steps", 0, "read", 2): Degree("blended", 0.3),
        ("steps", 1): Degree("blended", 0.5),
        ("steps", 2): EXACT, ("steps", 2, "read", 0): Degree("blended", 0.5), ("steps", 2, "read", 1): DIRECT,
    }  # fmt: skip
    assert (
        set_fidelities(TEXT, degrees)
        == """\
# at the top
version: 1
steps:
  # about the first
  - step: one   # its name
    fidelity: direct
    read: [a, {read: "b[all]", fidelity: exact}, {recompute_share: 0.3, read: c, fidelity: blended}]

  - {fidelity: blended, recompute_share: 0.5, step: two, read: [one]}   # in one line
  - step: three
    fidelity: exact  # as it was
    read:
      - {read: one, fidelity: blended, recompute_share: 0.5}
      - read: two[1]
        fidelity: direct
        end: 4
"""
    )


def test_a_read_says_no_level_that_its_step_says() -> None:
    text = """\
steps:
  - {step: y, read: [{read: b, fidelity: exact}, {read: "a[all]", fidelity: exact}, {fidelity: exact, read: x, end: 3}]}
  - step: z
    read:
      - read: b
        fidelity: exact  # in lines
"""
    reads = [("steps", 0, "read", 0), ("steps", 0, "read", 1), ("steps", 0, "read", 2), ("steps", 1, "read", 0)]
    degrees = dict.fromkeys([("steps", 0), ("steps", 1), *reads], DIRECT)
    assert (
        set_fidelities(text, degrees, reads)
        == """\
steps:
  - {fidelity: direct, step: y, read: [b, "a[all]", {read: x, end: 3}]}
  - step: z
    fidelity: direct
    read:
      - read: b
        fidelity: direct  # in lines
"""
    )


def test_what_an_audit_chose_is_written_once() -> None:
    text = """\
version: 1
name: f
messages: {a: one, b: two}
steps:
- {step: x, read: [a, b]}
- {step: y, read: [{read: a, fidelity: exact}, {read: b, fidelity: blended, recompute_share: 0.5}, x]}
- {step: z, read: [a, x]}
"""
    request = dict.fromkeys(("fidelity", "seed"), None) | {"files": {}, "inputs": {}, "overrides": {}}
    plan = AuditPlan(request | {"workflow": text.encode(), "source_name": "f.yaml"}, parse(["audit", "f.yaml"]))
    changed = write_back(plan, [Advice("y", "direct"), Advice("z", "direct", (1,))])
    assert changed == (
        text.replace(
            "{step: y, read: [{read: a, fidelity: exact}, {read: b, fidelity: blended, recompute_share: 0.5}, x]}",
            "{fidelity: direct, step: y, read: [a, b, x]}",
        ).replace("[a, x]", "[a, {read: x, fidelity: direct}]")
    )
    again = AuditPlan(request | {"workflow": changed.encode(), "source_name": "f.yaml"}, parse(["audit", "f.yaml"]))
    assert write_back(again, [Advice("y", "direct"), Advice("z", "direct", (1,))]) is None


def test_an_alias_is_left_to_its_author() -> None:
    text = "steps:\n  - step: one\n    read: &r [a, b]\n  - step: two\n    read: *r\n"
    with pytest.raises(FailedPrecondition, match="by hand"):
        set_fidelities(text, {("steps", 1, "read", 0): DIRECT})


COMMENT = re.compile(r"# (?:one|about it: \d|flow|named|stated|why|not a comment)\r?$", re.MULTILINE)


def document(rng: random.Random) -> str:
    """Steps and reads in every style, with comments, blank lines and odd names between them."""
    names = ["a", "b-c", "answer[others,previous]", "x: y", "# no comment", "it's", 'say "so"', "é", "12", "yes no"]
    out = ["version: 1  # one", ""] if rng.random() < 0.5 else ["version: 1"]
    out.append("steps:")
    pad = " " * rng.choice([0, 2])
    for number in range(rng.randint(1, 4)):
        quoted = [
            rng.choice(["'%s'", '"%s"']) % n.replace("'", "''").replace('"', "q") for n in rng.choices(names, k=3)
        ]
        quoted = [q.replace("''", "'") if q[0] == '"' else q for q in quoted]
        if rng.random() < 0.5:
            out.append(f"{pad}# about it: {number}")
        if rng.random() < 0.3:
            out.append(f"{pad}- {{ step: s{number},read: [{', '.join(quoted)}] }} # flow")
            continue
        out.append(f"{pad}-   step: s{number}" if rng.random() < 0.5 else f"{pad}-   step: 's{number}'  # named")
        if rng.random() < 0.5:
            out.append(f"{pad}    prefill: |\n{pad}      text: here\n{pad}      # not a comment")
        if rng.random() < 0.3:
            out.append(f"{pad}    fidelity: exact # stated")
        out.append(f"{pad}    read:")
        for item in quoted:
            out.append(
                f"{pad}    - {item}" if rng.random() < 0.5 else f"{pad}    - read: {item}  # why\n{pad}      begin: 1"
            )
        if len(out) % 2:
            out.append("")
    newline = rng.choice(["\n", "\r\n"])
    return newline.join("\n".join(out).split("\n")) + rng.choice(["", newline])


@pytest.mark.parametrize("seed", range(150))
def test_random_documents_keep_all_but_what_was_asked_for(seed: int) -> None:
    rng = random.Random(seed)
    text = document(rng)
    before: Any = load(text, "")[0]
    degrees: dict[tuple[str | int, ...], Degree] = {}
    for index, step in enumerate(before["steps"]):
        if rng.random() < 0.6:
            degrees["steps", index] = rng.choice([DIRECT, EXACT, Degree("blended", 0.25)])
        for read in range(len(step["read"])):
            if rng.random() < 0.6:
                degrees["steps", index, "read", read] = rng.choice([DIRECT, Degree("blended", rng.choice([0.3, 1]))])
    changed = set_fidelities(text, degrees)
    after: Any = load(changed, "")[0]
    for path, degree in degrees.items():
        place = after["steps"][path[1]]
        place = place if len(path) == 2 else place["read"][path[3]]
        assert place["fidelity"] == degree.level
        assert degree.level != "blended" or place["recompute_share"] == degree.share
    assert COMMENT.findall(text) == COMMENT.findall(changed)
    assert text.count("\r") == 0 or changed.count("\r") == changed.count("\n")
    assert set_fidelities(changed, degrees) == changed
