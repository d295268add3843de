"""The one schema of a workflow: what the YAML file, the Python builder and the protobuf form all become.

Shorthands (a message that is just its text, a read that is just a selector) are spelled out before
validation (`shorthands.py`), so every model here has one form and every error one plain path. What several fields mean
together (references, cycles, joins) is `graph.py`'s business.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag, model_validator
from pydantic_core import PydanticCustomError

from laban.cluster.workflow import shorthands
from laban.cluster.workflow.constraints import property_names
from laban.cluster.workflow.diagnostics import Marks
from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE
from laban.cluster.workflow.names import MAX_TEXT
from laban.cluster.workflow.schema_types import (
    MAX_FAN_OUT,
    MAX_ROUNDS,
    MAX_STEPS,
    Argument,
    Asked,
    Choices,
    ExpressionText,
    JsonSchema,
    Label,
    ModelName,
    Name,
    Pattern,
    Pointer,
    RecomputeShare,
    ResponseSchema,
    Role,
    SelectorText,
    StopString,
    Text,
    Tolerance,
    WorkflowName,
    spelled,
)


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=False)


class Input(Model):
    """A value given when the workflow is run. Without a default it must be given."""

    type: Literal["string", "integer", "number", "boolean", "list"] = "string"
    default: Any = None
    description: str = Field(default="", max_length=2_000)


class Sampling(Model):
    """How text is generated. What a step leaves out its agent says, then the workflow, then the defaults."""

    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    stop: Annotated[list[StopString], Field(max_length=16), spelled(shorthands.list_of_one)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    drafting: bool | None = None
    forced_text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = None


class Agent(Model):
    """A role: its prompt, which is the first thing its steps read, and its sampling defaults."""

    prompt: Text | None = None
    role: Role = "system"
    private: bool = False
    model: ModelName | None = None  # None: the workflow's
    adapter: Label | None = None  # None: the workflow's; `none`: the plain model
    sampling: Sampling = Sampling()


class Message(Model):
    """A fixed message; its text is a template over the inputs. With `for_each` one for each item of a list input."""

    text: Text
    for_each: Label | None = None
    role: Role = "user"
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    private: bool = False


class Read(Model):
    """One entry of a step's view: what `read` selects, how it may be reused, and which of its tokens."""

    read: SelectorText
    fidelity: Asked | None = None
    tolerance: Tolerance | None = None  # of `auto`, and of `corrected` reads
    recompute_share: RecomputeShare | None = None  # of `blended` reads' tokens
    order: ExpressionText | None = None  # gives members, or one: only these, in its order
    begin: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    end: Annotated[int, Field(ge=1, le=10_000_000)] | None = None

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.end is not None and self.end <= (self.begin or 0):
            raise PydanticCustomError(
                "range", "the token range [{begin}, {end}) is empty", {"begin": self.begin or 0, "end": self.end}
            )
        return self


class Join(Model):
    """How many of the instances that a step waits for must finish before it runs."""

    at_least: Annotated[int, Field(ge=1, le=MAX_FAN_OUT * MAX_ROUNDS)] | None = None  # None: all of them
    rest: Literal["keep", "cancel"] = "keep"  # what becomes of those no longer needed

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.rest == "cancel" and self.at_least is None:
            raise PydanticCustomError("rest", "`rest: cancel` goes with `at_least`: a join on all leaves nothing over")
        return self


class Vote(Model):
    """The step's texts are ballots: each names one member of the step `over` (its number, or its agent's name)."""

    over: SelectorText
    ballot: Literal["first", "last"] = "first"  # which of the members that a text names counts
    quorum: Annotated[int, Field(ge=1, le=MAX_FAN_OUT)] | None = None  # voters that must finish; None: all
    value: Label | None = None  # the voters' value that is the ballot; None: their text


class External(Model):
    """The step's text is given from outside: by a handler of `tool`, or by whoever completes the step by hand."""

    description: str = Field(default="", max_length=2_000)
    tool: Label | None = None  # None: the step's name
    args: dict[Label, Argument] = {}
    input_schema: JsonSchema | None = None  # of the arguments
    output_schema: JsonSchema | None = None  # of the answer
    lease_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 30.0  # a silent handler loses the step


class Retries(Model):
    """How often a failed instance is tried again; each wait is twice the one before."""

    max: Annotated[int, Field(ge=0, le=100)]
    delay_s: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 0.0


class Value(Model):
    """A value found in a step's text: the first group of `regex`, what `pointer` points at in the JSON in the text, or
    what `expression` makes of the values before it; with none of them what follows its name and a colon. None if
    nothing is found."""

    regex: Pattern | None = None
    pointer: Pointer | None = None
    expression: ExpressionText | None = None
    type: Literal["string", "integer", "number", "boolean", "list"] | None = None
    one_of: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=256)] | None
    ) = None
    all: bool = False  # every match, as a list
    required: bool = False  # an instance without it has failed
    default: Any = None

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        given = [key for key in ("regex", "pointer", "expression") if getattr(self, key) is not None]
        if len(given) > 1:
            raise PydanticCustomError("value", "{given} are given: keep one", {"given": " and ".join(given)})
        if self.all and self.regex is None and self.one_of is None:
            raise PydanticCustomError("value", "`all` goes with `regex` or `one_of`")
        if self.required and self.default is not None:
            raise PydanticCustomError("value", "a value with a default is always there: keep `required` or `default`")
        if self.default is not None and not self.all:
            if self.one_of is not None and self.default not in self.one_of:
                raise PydanticCustomError("value", "the default is not one of `one_of`")
            kinds = {"string": str, "integer": int, "number": int | float, "boolean": bool, "list": list}
            odd = isinstance(self.default, bool) and self.type in ("integer", "number")
            if self.type is not None and (odd or not isinstance(self.default, kinds[self.type])):
                raise PydanticCustomError("value", "the default is not of the type {type}", {"type": self.type})
        return self


ValueOf = Annotated[Value, spelled(shorthands.bare("regex"))]


class BoundMessage(Model):
    """What a step reads in the place of a message of the workflow that it runs."""

    read: SelectorText


class Loop(Model):
    """Steps repeated together, each round once all of the round before has ended, until `until` holds."""

    name: Label | None = None
    until: ExpressionText | None = None
    max: Annotated[int, Field(ge=1, le=MAX_ROUNDS)]
    on_max: Literal["fail", "continue"] | None = None

    @model_validator(mode="after")
    def _says_what_exhaustion_does(self) -> Self:
        if self.until is not None and self.on_max is None:
            raise PydanticCustomError("loop", "`on_max` is missing: fail or continue, if it never holds?")
        if self.until is None and self.on_max is not None:
            raise PydanticCustomError("loop", "`on_max` goes with `until`: without it all `max` rounds are run")
        return self


class ForEach(Model):
    """The members of a fan-out: agents, the numbers 1 to `count`, the items of a list input, or batches of members."""

    agents: list[Name] | None = None  # None with none of the others: every agent of the workflow
    count: Annotated[int, Field(ge=1, le=MAX_FAN_OUT)] | None = None
    input: Label | None = None  # of the type list
    batch: Name | None = None  # the step or message whose members are taken `size` at a time, in order
    size: Annotated[int, Field(ge=1, le=MAX_FAN_OUT)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [key for key in ("agents", "count", "input", "batch") if getattr(self, key) is not None]
        if len(given) > 1:
            raise PydanticCustomError("for_each", "{given} are given: keep one", {"given": " and ".join(given)})
        if (self.batch is None) != (self.size is None):
            raise PydanticCustomError("for_each", "batch and size go together: {batch: STEP, size: 8}")
        return self

    @property
    def over_agents(self) -> bool:
        return self.count is None and self.input is None and self.batch is None


class Step(Model):
    """A node of the step graph. It generates a message, with `external` waits for one, with `workflow` runs another."""

    step: Name
    when: ExpressionText | None = None
    agent: Name | None = None
    for_each: Annotated[ForEach, spelled(shorthands.for_each)] | None = None
    max_parallel: Annotated[int, Field(ge=1, le=MAX_FAN_OUT)] | None = None  # instances that run at a time
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=30 * 86_400, allow_inf_nan=False)] | None = None  # for each attempt
    retries: Annotated[Retries, spelled(shorthands.retries)] | None = None
    on_error: Literal["fail", "skip", "message"] = "fail"  # skip: who reads a failed instance goes on without it
    read: list[Annotated[Read, spelled(shorthands.bare("read"))]] = []
    join: Annotated[Join, spelled(shorthands.join)] = Join()
    external: External | None = None
    workflow: WorkflowName | None = None  # a name among `workflows`
    inputs: dict[Label, Argument] = {}  # the other workflow's inputs
    messages: dict[
        Name, Annotated[BoundMessage, spelled(shorthands.bare("read"))]
    ] = {}  # its messages -> what this step would read in their place
    output: Label | None = None  # the one of its outputs that becomes this step's message; None: the only one
    values: Annotated[dict[Label, Annotated[Value, spelled(shorthands.bare("regex"))]], spelled(shorthands.values)] = {}
    vote: Annotated[Vote, spelled(shorthands.bare("over"))] | None = None
    role: Role | None = None  # None: assistant, or user for an external step
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    prefill: Annotated[str, Field(max_length=100_000)] = ""
    response_schema: ResponseSchema | None = None
    choices: Choices = None  # a list of texts, or an expression that gives one
    fidelity: Asked | None = None
    tolerance: Tolerance | None = None  # of `auto`, and of `corrected` reads
    recompute_share: RecomputeShare | None = None  # of `blended` reads' tokens
    model: ModelName | None = None  # None: its agent's
    adapter: Label | None = None  # None: its agent's; `none`: the plain model
    sampling: Sampling = Sampling()
    private: bool = False

    @cached_property
    def typed_names(self) -> tuple[str, ...]:
        """Values that it has without declaring them: the properties of `response_schema`."""
        return () if self.response_schema is None else property_names(self.response_schema)

    @property
    def value_names(self) -> tuple[str, ...]:
        """Of all values found in its text."""
        return tuple(dict.fromkeys((*self.typed_names, *self.values)))

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        if self.response_schema is not None and self.choices is not None:
            raise PydanticCustomError("choices", "`response_schema` and `choices` are given: keep one")
        return self

    @model_validator(mode="before")
    @classmethod
    def _spell(cls, data: Any) -> Any:
        try:
            return shorthands.step(data)
        except shorthands.ShorthandProblem as problem:
            raise PydanticCustomError("shorthand", "{problem}", {"problem": str(problem)}) from None


class LoopBlock(Model):
    """Steps that are repeated together; with `when` only if it holds."""

    loop: Loop
    when: ExpressionText | None = None
    steps: Annotated[list[Entry], Field(min_length=1, max_length=MAX_STEPS)]


class WhenBlock(Model):
    """Steps that run only if `when` holds, and those that run only if it does not."""

    when: ExpressionText
    steps: Annotated[list[Entry], Field(min_length=1, max_length=MAX_STEPS)]
    otherwise: Annotated[list[Entry], Field(max_length=MAX_STEPS)] = []


def _kind_of_entry(data: Any) -> str:
    keys = data if isinstance(data, dict) else getattr(data, "model_fields_set", ())
    if "loop" in keys:
        return "(loop)"
    return "(when)" if "step" not in keys and ("steps" in keys or "otherwise" in keys) else "(step)"


# Tags are part of the paths of errors: `explain.py` takes them out.
Entry = Annotated[
    Annotated[Step, Tag("(step)")] | Annotated[LoopBlock, Tag("(loop)")] | Annotated[WhenBlock, Tag("(when)")],
    Discriminator(_kind_of_entry),
]


class Output(Model):
    """A named result: the texts that `read` selects, with `separator` between them."""

    read: SelectorText
    join: Annotated[Join, spelled(shorthands.join)] = Join()
    separator: Annotated[str, Field(max_length=1_000)] = "\n\n"


class Workflow(Model):
    """A whole workflow. `parse.py` makes it from YAML or a dict; `graph.py` says whether it can run."""

    version: Literal[1]
    name: Label
    description: str = Field(default="", max_length=10_000)
    inputs: dict[Label, Input] = {}
    fidelity: Asked = "exact"
    tolerance: Tolerance | None = None  # of `auto`, of `corrected` reads, and of audits in service
    recompute_share: RecomputeShare = RECOMPUTE_SHARE
    model: ModelName | None = None  # of all steps that name none; None: the server's default
    adapter: Label | None = None  # of all steps that name none
    sampling: Sampling = Sampling()
    messages: dict[Name, Annotated[Message, spelled(shorthands.bare("text"))]] = {}
    agents: dict[Name, Annotated[Agent, spelled(shorthands.bare("prompt"))]] = {}
    steps: Annotated[list[Entry], Field(min_length=1, max_length=MAX_STEPS)]
    workflows: dict[WorkflowName, Workflow] = {}  # those that steps name; of a file, its path
    outputs: dict[
        Label, Annotated[Output, spelled(shorthands.bare("read"))]
    ] = {}  # none: the last step, under its own name

    _marks: Marks = PrivateAttr(default_factory=Marks)

    @property
    def marks(self) -> Marks:
        """Where its parts stand in the file it came from; empty for the dict form."""
        return self._marks

    def with_marks(self, marks: Marks) -> Self:
        """The same workflow, its diagnostics placed by `marks`."""
        copy = self.model_copy()
        copy._marks = marks
        return copy


LoopBlock.model_rebuild()
WhenBlock.model_rebuild()
Workflow.model_rebuild()
