"""The leaves of the schema: names, texts, selectors, expressions, patterns; each with a validator that says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from laban.actors.grammars import choices_problem
from laban.cluster.workflow import fidelity, shorthands
from laban.cluster.workflow.constraints import response_schema_problem
from laban.cluster.workflow.expressions import ExpressionProblem, parse_expression
from laban.cluster.workflow.names import MAX_TEXT, NAME, NAME_RULE, name_problem
from laban.cluster.workflow.patterns import pattern_problem
from laban.cluster.workflow.selectors import MAX_CHARS, SelectorError, parse_selector
from laban.cluster.workflow.tool_schemas import check_schema

MAX_STEPS = 1_000
MAX_FAN_OUT = 10_000
MAX_ROUNDS = 1_000

Role = Literal["system", "user", "assistant"]


def _name(value: str) -> str:
    problem = name_problem(value)
    if problem:
        raise PydanticCustomError("name", "{problem}", {"problem": problem})
    return value


def _selector(value: str) -> str:
    try:
        parse_selector(value)
    except SelectorError as error:
        raise PydanticCustomError("selector", "{problem}", {"problem": str(error)}) from None
    return value


def spelled(shorthand: Callable[[Any], Any]) -> BeforeValidator:
    def spell(value: Any) -> Any:
        try:
            return shorthand(value)
        except shorthands.ShorthandProblem as problem:
            raise PydanticCustomError("shorthand", "{problem}", {"problem": str(problem)}) from None

    return BeforeValidator(spell)


def _expression(value: str) -> str:
    try:
        parse_expression(value)
    except ExpressionProblem as problem:
        raise PydanticCustomError("expression", "not an expression: {problem}", {"problem": str(problem)}) from None
    return value


def _argument(value: Any) -> Any:
    return _expression(value) if isinstance(value, str) else value


def _pattern(value: str) -> str:
    problem = pattern_problem(value)
    if problem:
        raise PydanticCustomError("pattern", "not a regular expression: {why}", {"why": problem})
    return value


def _json_schema(value: dict[str, Any]) -> dict[str, Any]:
    problem = check_schema(value)
    if problem:
        raise PydanticCustomError("json_schema", "not a JSON schema to be served: {problem}", {"problem": problem})
    return value


def _response_schema(value: dict[str, Any]) -> dict[str, Any]:
    problem = response_schema_problem(value)
    if problem:
        raise PydanticCustomError("json_schema", "not a JSON schema to be served: {problem}", {"problem": problem})
    return value


def _choices(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        return _expression(value)
    problem, place = choices_problem(value)
    if problem:
        raise PydanticCustomError("choices", "{problem}", {"problem": f"{place} {problem}".strip()})
    return list(value)


def _pointer(value: str) -> str:
    if value and not value.startswith("/"):
        raise PydanticCustomError("pointer", "not a JSON pointer: it starts with /, as /risk/level does")
    return value


def _label(value: str) -> str:
    if NAME.fullmatch(value) is None:
        raise PydanticCustomError("name", "{problem}", {"problem": f"not a name: {NAME_RULE}"})
    return value


Name = Annotated[str, AfterValidator(_name)]  # of what reads may name
Label = Annotated[str, AfterValidator(_label)]  # of what they may not
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Asked = fidelity.Asked
Tolerance = Annotated[float, Field(ge=0, le=fidelity.MAX_TOLERANCE, allow_inf_nan=False)]  # nats a token
RecomputeShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
SelectorText = Annotated[str, Field(max_length=MAX_CHARS), AfterValidator(_selector)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
WorkflowName = Annotated[str, Field(min_length=1, max_length=1_000)]
ExpressionText = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(_expression)]
Argument = Annotated[Any, AfterValidator(_argument)]  # a text is an expression, all else stands for itself
JsonSchema = Annotated[dict[str, Any], AfterValidator(_json_schema)]
ResponseSchema = Annotated[dict[str, Any], AfterValidator(_response_schema)]
Choices = Annotated[Any, AfterValidator(_choices)]  # a text is an expression
Pattern = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(_pattern)]
Pointer = Annotated[str, Field(max_length=1_000), AfterValidator(_pointer)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
