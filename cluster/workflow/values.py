"""Typed values found in a step's text: `verdict: ok` on a line, a regular expression's group, a place in JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import re2

from laban.actors.errors import shorten
from laban.cluster.workflow.expressions import ExpressionProblem, parse_expression
from laban.cluster.workflow.patterns import compile_pattern
from laban.cluster.workflow.pointers import point
from laban.cluster.workflow.schema import Value

_FENCE = "```"
_EDGES = " \t\r\n*_`\"'"
SHOWN_TEXT = 200  # characters of one that will not do
MAX_MATCHES = 10_000  # of one value in one text
MAX_SCANNED = 250_000_000  # characters, if each match looked at all of the text
MAX_DIGITS = 300
MAX_EXACT = 2**53  # below it a number is as exact with a fraction as without
MAX_PARSED = 5_000_000  # characters, in search of JSON in a text
_SEPARATORS = re.compile(r"[,;>\s]+")
_WORDS = {"true": True, "yes": True, "false": False, "no": False}


def find_values(
    declared: Mapping[str, Value], text: str, prefill: str = "", typed: Iterable[str] = ()
) -> tuple[dict[str, object], str]:
    """Every declared value, None where nothing is found; and why the text will not do, empty if it does.

    They are looked for in the whole message: `Verdict:` may stand in `prefill` and `ok` in `text`. The `typed` ones are
    properties of the object that `text` is as JSON, found before the others; None if it was cut off.
    """
    text = text.encode("utf-8", "replace").decode()
    whole = prefill + text
    found = _properties(text, typed)
    for name, value in declared.items():
        try:
            result = _find(name, value, whole, {**found, "text": text})
        except ExpressionProblem as problem:
            return found, f"the value '{name}': {problem}"
        found[name] = value.default if result is None else result
        if result is None and value.required:
            return found, f"the text has no value '{name}' (got {shorten(whole, SHOWN_TEXT)})"
    return found, ""


def _properties(text: str, names: Iterable[str]) -> dict[str, object]:
    names = tuple(names)
    if not names:
        return {}
    try:
        document = _valid(_DECODER.decode(text))
    except (ValueError, RecursionError):
        document = None
    return {name: document.get(name) if isinstance(document, Mapping) else None for name in names}


def code_of(text: str) -> str:
    """What stands in the first fenced block; without one the whole text."""
    _, fence, rest = text.partition(_FENCE)
    if not fence:
        return text
    first, newline, body = rest.partition("\n")
    if not newline:  # all on one line
        return first.partition(_FENCE)[0].strip()
    return body.partition(_FENCE)[0].rstrip("\n")


def _find(name: str, value: Value, text: str, before: Mapping[str, object]) -> object:
    found = _candidates(name, value, text, before)
    if value.one_of is not None:
        words = tuple(value.one_of)
        found = (word for part in found for word in _words_in(str(_string(part)), words))
    items = (item for part in found if (item := _convert(part, value.type)) is not None)
    return list(items) or None if value.all else next(items, None)


def _candidates(name: str, value: Value, text: str, before: Mapping[str, object]) -> Iterable[object]:
    """What the value's rule finds; a rule of words alone looks on its lines, or without any everywhere."""
    if value.expression is not None:
        result = parse_expression(value.expression).evaluate(before, [])
        return [] if result is None else [result]
    if value.pointer is not None:
        found = point(_json_in(text), value.pointer)
        return [] if found is None else [found]
    if value.regex is not None:
        return _matches(value.regex, name, text)
    labelled = _labelled(name, text)
    if value.one_of is not None:
        return labelled or [text]
    return labelled if value.type is not None else map(_as_json, labelled)


def _matches(pattern: str, name: str, text: str) -> Iterator[str]:
    """The group called as the value is, else the first group, else all of each match."""
    compiled = compile_pattern(pattern)
    group = name if name in compiled.groupindex else min(1, compiled.groups)
    found = islice(compiled.finditer(text), _max_matches(text))
    return (match.group(group) for match in found if match.group(group) is not None)


def _max_matches(text: str) -> int:
    """Each match may cost a look at all of the text."""
    return min(MAX_MATCHES, max(1, MAX_SCANNED // (1 + len(text))))


def _as_json(found: object) -> object:
    """`true`, `false` and numbers as such: as a text, `false` would hold."""
    if not isinstance(found, str):
        return found
    if found.lower() in ("true", "false"):
        return found.lower() == "true"
    try:
        number = json.loads(found) if len(found) <= MAX_DIGITS else None
    except (ValueError, RecursionError):
        return found
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    return number if is_number else found


def _labelled(name: str, text: str) -> list[object]:
    """The member `name` of the JSON object in the text, else what follows the name and a colon on each line.

    Before the name may stand what models like to put there: a bullet, a number, `My` or `Final`.
    """
    document = _json_in(text) if "{" in text else None
    if isinstance(document, Mapping):
        members = [member for key, member in document.items() if key == name]
        members += [member for key, member in document.items() if key.lower() == name.lower()]
        if members:
            return members[:1]
    spelled = re2.escape(name).replace("_", "[_ -]")
    lead = r"[\W\d]*(?:(?:my|the|your|our|final|overall)\W+)*"
    lines = compile_pattern(rf"(?im)^{lead}{spelled}\W*?\s*[:=](.*)$").finditer(text)
    found = [match.group(1).strip(_EDGES).rstrip(".,;").strip(_EDGES) for match in islice(lines, _max_matches(text))]
    return [text for text in found if text]


@lru_cache(maxsize=1024)
def _pattern_of_words(words: tuple[str, ...]) -> Any:
    longest_first = sorted(words, key=len, reverse=True)
    return compile_pattern(r"(?i)(?:^|\W)(" + "|".join(map(re2.escape, longest_first)) + r")(?:$|\W)")


def _words_in(text: str, words: tuple[str, ...]) -> Iterator[str]:
    """Those of `words` that stand in the text, in order, as they are declared."""
    pattern, folded = _pattern_of_words(words), {word.casefold(): word for word in reversed(words)}
    data, at = text.encode(), 0  # a text would be encoded anew by every search
    for _ in range(_max_matches(text)):
        match = pattern.search(data, at)
        if match is None:
            return
        found = match.group(1).decode()
        if found in words or found.casefold() in folded:
            yield found if found in words else folded[found.casefold()]
        at = match.end(1)  # what ends one word may begin the next


@lru_cache(maxsize=2)  # several values look into the same text
def _json_in(text: str) -> object:
    """The text as JSON; else its fenced block; else the first object or list in it that parses. None if none does."""
    for candidate in (text, code_of(text)):
        try:
            return _valid(_DECODER.decode(candidate))
        except (ValueError, RecursionError):
            continue
    left = MAX_PARSED
    at = min((place for place in (text.find("{"), text.find("[")) if place >= 0), default=-1)
    while at >= 0 and left >= 0:
        try:
            return _valid(_DECODER.raw_decode(text, at)[0])
        except (ValueError, RecursionError):
            left -= len(text) - at  # it may have read to the end
            at = min((place for place in (text.find("{", at + 1), text.find("[", at + 1)) if place >= 0), default=-1)
    return None


def _float(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


# JSON has neither infinity nor NaN, and numbers of thousands of digits are nobody's values.
_DECODER = json.JSONDecoder(
    parse_constant=lambda _: None,
    parse_float=_float,
    parse_int=lambda digits: int(digits) if len(digits) <= MAX_DIGITS else None,
)


def _valid(document: object) -> object:
    """The document without halves of characters, which JSON can escape and UTF-8 cannot hold."""
    text = json.dumps(document, ensure_ascii=False)
    return document if text.isascii() else json.loads(text.encode("utf-8", "replace"))


def _convert(found: object, kind: str | None) -> object:
    """`found` as a value of `kind`; None if it is not one."""
    if kind is None or found is None:
        return found
    return _CONVERSIONS[kind](found)


def _string(found: object) -> str:
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


# A hyphen or a printed minus; digits, by thousands or not, with a fraction or none, or a fraction alone.
_NUMBER_IN_TEXT = r"[-+\x{2212}]?(?:(?:\d{1,3}(?:,\d{3})+\b|\d+)(?:\.\d+)?|\B\.\d+)(?:[eE][-+]?\d{1,3})?"


def _number(found: object) -> int | float | None:
    """A number, or the first one in a text: models write `8/10`, `about 8`, `.5` and `1,250`. A whole one has no
    fraction, as in JSON."""
    if isinstance(found, bool):
        return None
    if isinstance(found, int | float):
        return found if math.isfinite(found) else None
    match = compile_pattern(_NUMBER_IN_TEXT).search(found) if isinstance(found, str) else None
    if match is None or len(match.group(0)) > MAX_DIGITS:
        return None
    digits = match.group(0).replace(",", "").replace("\u2212", "-")
    number = float(digits)
    if digits.lstrip("+-").isdigit() and abs(number) <= MAX_EXACT:
        return int(digits)
    return number if math.isfinite(number) else None


def _integer(found: object) -> int | None:
    number = _number(found)
    return None if number is None or number != int(number) else int(number)


def _boolean(found: object) -> bool | None:
    if isinstance(found, bool):
        return found
    match = compile_pattern(r"(?i)\b(true|yes|false|no)\b").search(found) if isinstance(found, str) else None
    return None if match is None else _WORDS[match.group(1).lower()]


def _list(found: object) -> list[object] | None:
    """A JSON list, or what stands between commas, semicolons, `>` and spaces; whole numbers as such."""
    if isinstance(found, list):
        return found
    if not isinstance(found, str):
        return None
    document = _json_in(found) if "[" in found else None
    if isinstance(document, list):
        return document
    parts = [part.strip(_EDGES + ".()[]") for part in _SEPARATORS.split(found, maxsplit=MAX_MATCHES)[:MAX_MATCHES]]
    return [
        int(part) if part.isascii() and part.isdigit() and len(part) < 10 else part for part in parts if part
    ] or None


_CONVERSIONS: Mapping[str, Callable[[object], object]] = {
    "string": _string, "integer": _integer, "number": _number, "boolean": _boolean, "list": _list,
}  # fmt: skip
