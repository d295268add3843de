"""Templates of texts: a small part of Jinja that cannot run away.

Allowed are variables, `{% if %}`, `{% for %}`, comparisons, whole-number arithmetic, a few filters and
tests. Calls, assignments, imports, macros, slices and attribute access (but `loop.index` and its like) are not, so a
template can neither reach Python nor grow without bound: one rendering has a budget of work and one of
characters.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, nodes, pass_context
from jinja2.filters import do_round
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 4_000_000  # characters
MAX_WORK = 20_000  # iterations of loops, comparisons in them, and thousands of characters filtered
MAX_NODES = 20_000
MAX_DIGITS = 300
_TICK = "_tick"
_RESULT = "_result"
MAX_DEPTH = 64  # of lists in lists
_NOT_FOUND = "a value that was not found; give it a `default`, or ask whether it `is none` first"

_ALLOWED: tuple[type[nodes.Node], ...] = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.For),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.CondExpr, nodes.Filter, nodes.Test),
    *(nodes.Add, nodes.Sub, nodes.Mod, nodes.FloorDiv, nodes.Neg, nodes.List, nodes.Tuple, nodes.Getitem),
)
_LOOP = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length"})
_FILTERS = ["abs", "capitalize", "count", "d", "default", "first", "float", "int", "last", "length", "lower"]
_FILTERS += ["sort", "title", "trim", "upper"]
_OWN_FILTERS = [
    "join",
    "majority",
    "max",
    "mean",
    "min",
    "ranked",
    "reverse",
    "round",
    "string",
    "sum",
    "take",
    "tojson",
]
_TESTS = ["defined", "undefined", "none", "string", "number", "odd", "even", "divisibleby", "in", "true", "false"]
_TESTS += ["boolean", "integer", "float", "eq", "ne", "lt", "le", "gt", "ge"]


class TemplateProblem(ValueError):
    """A template that does not parse, uses what is not allowed, or does not render; the message says which."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "%", "//"})

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined,
            autoescape=False,
            keep_trailing_newline=True,
            cache_size=0,
            finalize=_not_too_long,
        )
        self.globals.clear()
        own: tuple[Callable[..., Any], ...]
        own = (_join, _majority, _max, _mean, _min, _ranked, _reverse, _round, _string, _sum, _take, _tojson)
        self.filters = {name: _charged(self.filters[name]) for name in _FILTERS}
        self.filters |= {name: _charged(function) for name, function in zip(_OWN_FILTERS, own, strict=True)}
        self.tests = {name: self.tests[name] for name in _TESTS}

    def getitem(self, obj: Any, argument: Any) -> Any:
        # Jinja's own falls back to attributes: here `x[...]` is an item or nothing.
        try:
            return obj[argument]
        except (LookupError, TypeError, AttributeError):
            return self.undefined(obj=obj, name=argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        # "%" on text formats it to any width, "+" on text doubles it: arithmetic is for numbers.
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            if left is None or right is None:
                raise TemplateProblem(f"'{operator}' of {_NOT_FOUND}")
            raise TemplateProblem(f"'{operator}' is for numbers; texts follow each other by themselves")
        return super().call_binop(context, operator, left, right)


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, paying for the size of what it is given. Being asked for the context also keeps it from
    being run when a template is compiled."""
    wants = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def run(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        context[_TICK](1 + (len(value) // 1_000 if isinstance(value, str | tuple | list) else 0))
        given = {"environment": context.environment, "eval_context": context.eval_ctx, "context": context}
        before = () if wants is None else (given[wants.name],)
        return function(*before, value, *args, **kwargs)

    return run


def _join(values: Iterable[object], separator: str = "") -> str:
    parts = [str(value) for value in values]
    if sum(map(len, parts)) + len(separator) * len(parts) > MAX_OUTPUT:
        raise TemplateProblem(f"more than {MAX_OUTPUT} characters")
    return separator.join(parts)


def _not_too_long(value: Any) -> Any:
    """What is written out, unless it is a list or mapping too long to be."""
    if isinstance(value, list | tuple | Mapping):
        _measure(value, MAX_OUTPUT, MAX_DEPTH)
    return value


def _measure(value: Any, left: int, depth: int) -> int:
    """The characters left after `value` has been written out, about."""
    if depth == 0:
        raise TemplateProblem(f"lists nested more than {MAX_DEPTH} deep")
    left -= len(value) + 2 if isinstance(value, str) else 8
    if left < 0:
        raise TemplateProblem(f"more than {MAX_OUTPUT} characters")
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            left = _measure(item, left, depth - 1)
    return left


def _tojson(value: Any) -> str:
    plain = _settled(value, MAX_DEPTH)
    _measure(plain, MAX_OUTPUT, MAX_DEPTH)
    return json.dumps(plain, ensure_ascii=False)


def _string(value: Any) -> str:
    return str(_not_too_long(value))


def _reverse(value: Any) -> Any:
    return value[::-1] if isinstance(value, str) else list(value)[::-1]


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _majority(values: Iterable[Any], share: float = 0.0) -> Any:
    """The most common value, the earliest of equals; none if it is not more than `share` of those that are not none."""
    known = _known(values)
    ballots = Counter(map(_hashable, known))
    best = max(known, key=lambda value: ballots[_hashable(value)], default=None)  # max keeps the first of equals
    return best if best is not None and ballots[_hashable(best)] > share * len(known) else None


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return frozenset((key, _hashable(item)) for key, item in value.items()) if isinstance(value, dict) else value


def _mean(values: Iterable[Any]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None


def _sum(values: Iterable[Any]) -> Any:
    return sum(_known(values))


def _max(values: Iterable[Any]) -> Any:
    return max(_known(values), default=None)


def _min(values: Iterable[Any]) -> Any:
    return min(_known(values), default=None)


def _ranked(values: Iterable[Any], lowest_first: bool = False) -> list[int]:
    """The places of the values, from 1, the highest value's first; those of equals in order, none's left out."""
    numbered = [(value, place) for place, value in enumerate(values, 1) if value is not None]
    return [place for _, place in sorted(numbered, key=lambda pair: pair[0], reverse=not lowest_first)]


def _round(value: Any, precision: int = 0, method: Any = "common") -> Any:
    if abs(precision) > MAX_DIGITS:
        raise TemplateProblem(f"'round' is for at most {MAX_DIGITS} digits")
    return do_round(value, precision, method)


def _take(values: Iterable[Any], number: int) -> list[Any]:
    return list(values)[: max(0, number)]


_ENVIRONMENT = _Environment()

# What Jinja and the code it generates raise for templates that are wrong; anything else is our own mistake.
_FAULTS: tuple[type[BaseException], ...] = (
    *(TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, SyntaxError),
    *(RecursionError, MemoryError),
)


def variables_of(text: str) -> frozenset[str]:
    """The variables that a template uses. Raises TemplateProblem if it cannot be one."""
    return _prepare(text)[1] if _is_template(text) else frozenset()


def render(text: str, variables: Mapping[str, object]) -> str:
    """The text with its template filled in. Raises TemplateProblem."""
    if not _is_template(text):
        return text
    template, _ = _prepare(text)
    try:
        pieces: list[str] = []
        size = 0
        for piece in template.generate({**variables, _TICK: _budget()}):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_OUTPUT:
                raise TemplateProblem(f"more than {MAX_OUTPUT} characters")
    except TemplateProblem:
        raise
    except _FAULTS as error:
        raise TemplateProblem(_say(error)) from None
    return "".join(pieces)


def compile_expression(tree: nodes.Expr) -> Callable[[Mapping[str, object]], Any]:
    """What evaluates an expression's tree over its variables. Both raise TemplateProblem."""
    try:
        _check(tree)
        body = [nodes.Assign(nodes.Name(_RESULT, "store"), tree, lineno=1)]
        whole = nodes.Template(body, lineno=1)
        whole.set_environment(_ENVIRONMENT)
        template = _ENVIRONMENT.from_string(whole)
    except TemplateProblem:
        raise
    except _FAULTS as error:
        raise TemplateProblem(_say(error)) from None

    def evaluate(variables: Mapping[str, object]) -> Any:
        context = template.new_context({**variables, _TICK: _budget()})
        try:
            for _ in template.root_render_func(context):
                continue
            result = context.vars[_RESULT]
        except TemplateProblem:
            raise
        except _FAULTS as error:
            raise TemplateProblem(_say(error)) from None
        return _settled(result, MAX_DEPTH)

    return evaluate


def _settled(value: Any, depth: int) -> Any:
    """A plain value: nothing that is still to be iterated, nothing that is not there."""
    if isinstance(value, Undefined):
        raise TemplateProblem("there is no such item")
    if depth == 0:
        raise TemplateProblem(f"lists nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _settled(item, depth - 1) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [_settled(item, depth - 1) for item in value]
    return value


def parse_tree(text: str) -> nodes.Expr:
    """An expression's tree, nothing of it checked yet. Raises TemplateProblem."""
    try:
        parser = Parser(_ENVIRONMENT, text, state="variable")
        tree = parser.parse_expression()
        if not parser.stream.eos:
            raise TemplateProblem(f"'{parser.stream.current.value}' is too many")
    except _FAULTS as error:
        raise TemplateProblem(_say(error)) from None
    return tree


def _budget() -> Callable[[int], str]:
    left = MAX_WORK

    def tick(work: int) -> str:
        nonlocal left
        left -= work
        if left < 0:
            raise TemplateProblem(f"more than {MAX_WORK} rounds of its loops")
        return ""

    return tick


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text or "{#" in text


def _prepare(text: str) -> tuple[Template, frozenset[str]]:
    return _remembered(text) if len(text) <= 20_000 else _compile(text)


def _compile(text: str) -> tuple[Template, frozenset[str]]:
    try:
        tree = _ENVIRONMENT.parse(text)
        _check(tree)
        names = frozenset(find_undeclared_variables(tree))
        for loop in tree.find_all(nodes.For):
            work = nodes.Const(1 + sum(1 for _ in loop.find_all((nodes.Compare, nodes.Test))))
            tick = nodes.Call(nodes.Name(_TICK, "load"), [work], [], None, None)
            loop.body.insert(0, nodes.Output([tick]).set_lineno(loop.lineno))
        tree.set_environment(_ENVIRONMENT)
        return _ENVIRONMENT.from_string(tree), names
    except TemplateProblem:
        raise
    except _FAULTS as error:
        raise TemplateProblem(_say(error)) from None


_remembered = lru_cache(maxsize=256)(_compile)


def _check(tree: nodes.Node) -> None:
    stack: list[nodes.Node] = [tree]
    num_nodes = 0
    while stack:
        node = stack.pop()
        num_nodes += 1
        if num_nodes > MAX_NODES:
            raise TemplateProblem(f"a template of more than {MAX_NODES} parts")
        if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name) and node.node.name == "loop":
            if node.attr not in _LOOP:
                raise TemplateProblem(
                    f"line {node.lineno}: loop.{node.attr} is not served; {', '.join(sorted(_LOOP))} are"
                )
        elif not isinstance(node, _ALLOWED):
            kind = type(node).__name__
            raise TemplateProblem(f"line {node.lineno}: {kind} is not allowed here")
        if isinstance(node, nodes.For) and node.recursive:
            raise TemplateProblem(f"line {node.lineno}: a recursive loop is not allowed here")
        if isinstance(node, nodes.Filter) and node.name not in (*_FILTERS, *_OWN_FILTERS):
            allowed = ", ".join(sorted([*_FILTERS, *_OWN_FILTERS]))
            raise TemplateProblem(f"line {node.lineno}: no filter '{node.name}'; there are {allowed}")
        if isinstance(node, nodes.Test) and node.name not in _TESTS:
            raise TemplateProblem(f"line {node.lineno}: no test '{node.name}'; there are {', '.join(_TESTS)}")
        if isinstance(node, nodes.Name) and node.name.startswith("_"):
            raise TemplateProblem(f"line {node.lineno}: a name cannot start with _")
        stack.extend(node.iter_child_nodes())


def _say(error: BaseException) -> str:
    if isinstance(error, RecursionError | MemoryError):
        return "nested too deeply"
    if isinstance(error, TypeError) and "NoneType" in str(error):
        return f"{error}: {_NOT_FOUND}"
    line = getattr(error, "lineno", None)
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return f"line {line}: {text}" if isinstance(line, int) else text
