"""Random well-formed workflows: steps, loops and blocks that read what stands before them.

Their expressions can always be evaluated, so that a run of one fails only by a vote without its quorum or by a loop
that may.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

AGENTS = ["ann", "bob", "cleo"]
MESSAGES = ["m1", "m2", "d", "d[1]"]
FIDELITY = st.sampled_from([None, None, "exact", "blended", "direct"])
VALUES: list[Any] = [
    {},
    ["word", "score"],
    {"word": {"one_of": ["ok", "bad"]}, "score": {"type": "number"}},
    {"word": r"word: (\w+)", "score": {"regex": r"\d+", "type": "integer", "all": True}},
    {"word": {"required": True}, "score": {"pointer": "/score", "default": 3}},
    {"score": {"type": "integer"}, "word": {"expression": "'ok' if score is none else text"}},
]
TRIES: list[dict[str, Any]] = [
    {},
    {"on_error": "skip"},
    {"on_error": "message", "retries": 2, "timeout_s": 1.5},
    {"retries": {"max": 1, "delay_s": 0.5}},
]
INNER = {
    "version": 1, "name": "inner", "inputs": {"t": {"default": "x"}}, "messages": {"m": "mine", "n": "{{ t }}"},
    "steps": [{"step": "a", "read": ["m"]}, {"loop": {"max": 2}, "steps": [{"step": "b", "read": ["n", "a"]}]}],
    "outputs": {"o": "b"},
}  # fmt: skip


class _Writer:
    """Writes a workflow; `known` are the steps so far, each with the loop that it is in."""

    def __init__(self, draw: st.DrawFn, control: bool) -> None:
        self._draw = draw
        self._control = control
        self.known: list[tuple[dict[str, Any], str | None]] = []
        self._num_loops = 0
        self.uses_inner = False

    def pick(self, options: list[Any]) -> Any:
        return self._draw(st.sampled_from(options))

    def often(self) -> bool:
        return self._draw(st.booleans())

    def entries(self, most: int, loop: str | None, depth: int) -> list[dict[str, Any]]:
        kinds = ["step", "step", "step"] + (["when"] if depth else []) + (["loop"] if depth and loop is None else [])
        number = self._draw(st.integers(1, most))
        return [self._entry(self.pick(kinds if self._control else ["step"]), loop, depth) for _ in range(number)]

    def _entry(self, kind: str, loop: str | None, depth: int) -> dict[str, Any]:
        if kind == "when":
            entry = {"when": self.condition(loop, {}), "steps": self.entries(2, loop, depth - 1)}
            return entry | ({"otherwise": self.entries(2, loop, depth - 1)} if self.often() else {})
        return self._loop(depth) if kind == "loop" else self._step(loop)

    def _loop(self, depth: int) -> dict[str, Any]:
        self._num_loops += 1
        name = f"l{self._num_loops}"
        when = {"when": self.condition(None, {})} if self.often() else {}
        begin = len(self.known)
        steps = self.entries(3, name, depth - 1)
        inside = [step for step, loop in self.known[begin:] if loop == name]
        if "workflow" not in inside[0] and self.often():  # what comes later in a round is read in the next one
            dims = ["all", "previous"] if "for_each" in inside[-1] else ["previous"]
            inside[0]["read"].append(f"{inside[-1]['step']}[{','.join(dims)}]")
        head: dict[str, Any] = {"name": name, "max": self._draw(st.integers(1, 3))}
        if self.often():
            head |= {"until": self.condition(name, {}), "on_max": self.pick(["continue", "continue", "fail"])}
        return {"loop": head, **when, "steps": steps}

    def _step(self, loop: str | None) -> dict[str, Any]:
        name = f"s{len(self.known)}"
        step: dict[str, Any] = {"step": name}
        reads: list[Any] = [self.pick(MESSAGES) for _ in range(self._draw(st.integers(0, 3)))]
        self._fan_out(step, reads)
        waits = False
        if loop is None and self.often():
            step["rounds"] = self._draw(st.integers(1, 4))
        if "rounds" in step or (loop is not None and self.often()):
            who = [self.pick(["all", "self", "others"])] if "for_each" in step else []
            reads.append(f"{name}[{','.join([*who, self.pick(['all', 'previous'])])}]")
        for _ in range(self._draw(st.integers(0, 3)) if self.known else 0):
            reads.append(self._read(loop, step))
            waits = waits or "previous" not in str(reads[-1])
        if self._control and self.often():
            step["when"] = self.condition(loop, step)
        if self._control:
            step |= self.pick(TRIES)
            values = self.pick(VALUES)
            step |= {"values": values} if values else {}
        if self._control and self.known and self.pick([False, False, False, True]):
            self._run_inner(step, loop)
        else:
            step["read"] = reads
            self._produce(step, loop)
            self._vote(step, loop)
        if waits and "read" in step and "rounds" not in step and self.often():
            step["join"] = self.pick(["all", "any", {"at_least": 1}, {"at_least": 1, "rest": "cancel"}])
        self.known.append((step, loop))
        return step

    def _fan_out(self, step: dict[str, Any], reads: list[Any]) -> None:
        wide = [other["step"] for other, _ in self.known if "for_each" in other]
        batches = [{"batch": base, "size": size} for base in ("d", *wide) for size in (1, 2, 7)]
        fan_out = self.pick([None, None, "agents", ["bob", "ann"], 1, 3, "docs", self.pick(batches)])
        if fan_out is not None:
            step["for_each"] = fan_out
            step |= self.pick([{}, {"max_parallel": 1}, {"max_parallel": 2}])
        if fan_out == "docs":
            reads.append("d[item]")
        elif isinstance(fan_out, dict):
            reads.append(f"{fan_out['batch']}[batch]")
        if fan_out != "agents" and not isinstance(fan_out, list) and self.often():
            step["agent"] = self.pick(AGENTS)

    def _produce(self, step: dict[str, Any], loop: str | None) -> None:
        if self.often():
            step["external"] = {}
            if self._control and self.often():
                given = self.condition(loop, step)
                step["external"] = {"tool": "t", "args": {"a": given, "b": 3, "c": {"d": ["x", None]}}, "lease_s": 5}
        elif self.often():
            temperature = self.pick([0, 0.5, 2])
            step["sampling"] = {"max_tokens": self._draw(st.integers(1, 9)), "temperature": temperature}

    def _run_inner(self, step: dict[str, Any], loop: str | None) -> None:
        self.uses_inner = True
        step |= {"workflow": "inner", "inputs": {"t": "'y'"}}
        for key in ("timeout_s", "retries", "values"):  # its text may be anything
            step.pop(key, None)
        if self.often():
            step["messages"] = {"m": self._selector(loop)[0]}

    def _vote(self, step: dict[str, Any], loop: str | None) -> None:
        candidates = [other["step"] for other, its in self.known if "for_each" in other and its is None]
        if loop is None and candidates and self.often():
            step["vote"] = self.pick(candidates)

    def _selector(self, loop: str | None) -> tuple[str, bool, dict[str, Any]]:
        """A read of a step before, whether it is of several, and which step."""
        other, its = self.pick(self.known)
        member, round_ = "", ""
        if "for_each" in other:
            first = "cleo" if other["for_each"] == "agents" else "bob" if isinstance(other["for_each"], list) else "1"
            member = self.pick(["all", first])
        if "rounds" in other or its is not None:
            inside = its is not None and its == loop
            round_ = self.pick(["", "all", "1", *(["current", "previous"] if inside else ["last"])])
        arguments = [argument for argument in (member, round_) if argument]
        several = member == "all" or round_ == "all"
        return other["step"] + (f"[{', '.join(arguments)}]" if arguments else ""), several, other

    def _read(self, loop: str | None, reader: dict[str, Any]) -> str | dict[str, Any]:
        selector, several, other = self._selector(loop)
        voters = [step["step"] for step, _ in self.known if step.get("vote") == other["step"]]
        if voters and self.often():
            return f"{other['step']}[winner({self.pick(voters)})]"
        more: dict[str, Any] = {}
        if (
            several
            and self._control
            and "for_each" in other
            and not re.search(r"\[(cleo|bob|1),", selector)
            and self.often()
        ):
            more["order"] = self.pick(["[2, 'ann', 'x']", f"{selector}.text | length", f"{selector}.failed"])
            if isinstance(other.get("values"), dict) and "all" not in str(other["values"]):
                more["order"] = f"{selector}.score | ranked | take(2)"
        level = self._draw(FIDELITY)
        more |= {} if level is None else {"fidelity": level}
        return {"read": selector, **more} if more else selector

    def condition(self, loop: str | None, reader: dict[str, Any]) -> str:
        """An expression that can be evaluated whatever becomes of the steps that it looks at."""
        options = ['x == "y"', "n > 2", "not (n > 2)", "m1.text | length > 1"]
        options += ["round > 1", "round % 2 == 0"] if loop is not None or "rounds" in reader else []
        options += ["index == 1"] if "for_each" in reader else []
        if self.known:
            selector, several, other = self._selector(loop)
            words = ["text", "code", "failed", *(["word"] if other.get("values") else [])]
            if several:
                options += [f"{selector}.{word} | majority == 'ok'" for word in words]
                options += [f"{selector}.text | length > 2"]
            else:
                options += [f"{selector}.{word} == 'ok'" for word in words] + [f"{selector}.text is none"]
        return str(self.pick(options))


@st.composite
def workflows(draw: st.DrawFn, control: bool = True) -> dict[str, Any]:
    """The dict form of one; without `control` of steps alone, as they were before there were loops and blocks."""
    data: dict[str, Any] = {"version": 1, "name": "random", "messages": {"m1": "one {{ x }}", "m2": {"text": "two"}}}
    data["messages"]["d"] = {"text": "{{ index }}: {{ item }}", "for_each": "docs"}
    items = draw(st.lists(st.sampled_from(["p", 4, True]), min_size=1, max_size=5))
    data["inputs"] = {"x": {"default": "y"}, "n": {"type": "integer", "default": 3}}
    data["inputs"]["docs"] = {"type": "list", "default": items}
    data["agents"] = {name: draw(st.sampled_from([{}, "Be {{ agent }}"])) for name in AGENTS}
    data["fidelity"] = draw(st.sampled_from(["exact", "blended", "direct"]))
    writer = _Writer(draw, control)
    data["steps"] = draw(st.permutations(writer.entries(4, None, 2)))
    data["workflows"] = {"inner": deepcopy(INNER)} if writer.uses_inner else {}
    data["outputs"] = {f"o{number}": step["step"] for number, (step, _) in enumerate(writer.known)}
    return data
