"""The one schema of a workflow: what the YAML file, the Python builder and the protobuf form all become.

Shorthands (a message that is just its text, a read that is just a selector) are spelled out before
validation, so every model here has one form and every error one plain path. What several fields mean
together (references, cycles, joins) is `graph.py`'s business.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from laban.cluster.workflow.diagnostics import Marks
from laban.cluster.workflow.names import NAME, NAME_RULE, name_problem
from laban.cluster.workflow.selectors import MAX_CHARS, SelectorError, parse_selector

MAX_TEXT = 4_000_000  # characters of one text
MAX_STEPS = 1_000
MAX_FAN_OUT = 10_000
MAX_ROUNDS = 1_000
RESERVED_FIDELITY = ("corrected", "blended", "auto")

Role = Literal["system", "user", "assistant"]


def _name(value: str) -> str:
    problem = name_problem(value)
    if problem:
        raise PydanticCustomError("name", "{problem}", {"problem": problem})
    return value


def _fidelity(value: Any) -> Any:
    if value in RESERVED_FIDELITY:
        raise PydanticCustomError("not_built", "fidelity '{level}' is reserved, not served yet", {"level": value})
    return value


def _selector(value: str) -> str:
    try:
        parse_selector(value)
    except SelectorError as error:
        raise PydanticCustomError("selector", "{problem}", {"problem": str(error)}) from None
    return value


def _spelled(key: str) -> BeforeValidator:
    """A bare string stands for the mapping {key: string}."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def _list_of_one(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _label(value: str) -> str:
    if NAME.fullmatch(value) is None:
        raise PydanticCustomError("name", "{problem}", {"problem": f"not a name: {NAME_RULE}"})
    return value


Name = Annotated[str, AfterValidator(_name)]  # of what reads may name
Label = Annotated[str, AfterValidator(_label)]  # of what they may not
Fidelity = Annotated[Literal["exact", "direct"], BeforeValidator(_fidelity)]
SelectorText = Annotated[str, Field(max_length=MAX_CHARS), AfterValidator(_selector)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


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
    stop: Annotated[list[StopString], Field(max_length=16), BeforeValidator(_list_of_one)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    forced_text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = None


class Agent(Model):
    """A role: its prompt, which is the first thing its steps read, and its sampling defaults."""

    prompt: Text | None = None
    role: Role = "system"
    private: bool = False
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
    fidelity: Fidelity | None = None
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


def _join(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("all", "any"):
            raise PydanticCustomError("join", "not a join: write all, any or {at_least: n}")
        return {} if value == "all" else {"at_least": 1}
    return value


class Vote(Model):
    """The step's texts are ballots: each names one member of the step `over` (its number, or its agent's name)."""

    over: SelectorText
    ballot: Literal["first", "last"] = "first"  # which of the members that a text names counts
    quorum: Annotated[int, Field(ge=1, le=MAX_FAN_OUT)] | None = None  # voters that must finish; None: all


class External(Model):
    """The step's text is given from outside, by completing the step."""

    description: str = Field(default="", max_length=2_000)
    tool: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    args: dict[str, Any] = {}
    output_schema: dict[str, Any] | None = None
    lease_s: Annotated[float, Field(gt=0, le=86_400)] = 30.0


class Retries(Model):
    """How often a failed instance is tried again."""

    max: Annotated[int, Field(ge=0, le=100)] = 0
    delay_s: Annotated[float, Field(ge=0, le=3600)] = 0.0


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


def _for_each(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if value == "agents":
        return {}
    if isinstance(value, int):
        return {"count": value}
    if isinstance(value, list):
        return {"agents": value}
    if isinstance(value, str):
        return {"input": value}
    return value


class Step(Model):
    """A node of the step graph. It generates a message, or with `external` waits for one."""

    step: Name
    agent: Name | None = None
    for_each: Annotated[ForEach, BeforeValidator(_for_each)] | None = None
    max_parallel: Annotated[int, Field(ge=1, le=MAX_FAN_OUT)] | None = None  # instances that run at a time
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    retries: Retries = Retries()
    on_error: Literal["fail", "skip", "message"] = "fail"  # skip: who reads a failed instance goes on without it
    read: list[Annotated[Read, _spelled("read")]] = []
    join: Annotated[Join, BeforeValidator(_join)] = Join()
    external: External | None = None
    vote: Annotated[Vote, _spelled("over")] | None = None
    role: Role | None = None  # None: assistant, or user for an external step
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    prefill: Annotated[str, Field(max_length=100_000)] = ""
    fidelity: Fidelity | None = None
    sampling: Sampling = Sampling()
    private: bool = False

    @model_validator(mode="before")
    @classmethod
    def _count_is_for_each(cls, data: Any) -> Any:
        if isinstance(data, dict) and "count" in data:
            if "for_each" in data:
                raise PydanticCustomError("count", "both for_each and count are given: they mean the same, keep one")
            data = {("for_each" if key == "count" else key): value for key, value in data.items()}
        return data


class Output(Model):
    """A named result: the texts that `read` selects, with `separator` between them."""

    read: SelectorText
    join: Annotated[Join, BeforeValidator(_join)] = Join()
    separator: Annotated[str, Field(max_length=1_000)] = "\n\n"


class Workflow(Model):
    """A whole workflow. `parse.py` makes it from YAML or a dict; `graph.py` says whether it can run."""

    version: Literal[1]
    name: Label
    description: str = Field(default="", max_length=10_000)
    inputs: dict[Label, Input] = {}
    fidelity: Fidelity = "exact"
    sampling: Sampling = Sampling()
    messages: dict[Name, Annotated[Message, _spelled("text")]] = {}
    agents: dict[Name, Annotated[Agent, _spelled("prompt")]] = {}
    steps: Annotated[list[Step], Field(min_length=1, max_length=MAX_STEPS)]
    outputs: dict[Label, Annotated[Output, _spelled("read")]] = {}  # none: the last step, under its own name

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
