from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fidelity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIDELITY_UNSPECIFIED: _ClassVar[Fidelity]
    FIDELITY_EXACT: _ClassVar[Fidelity]
    FIDELITY_CORRECTED: _ClassVar[Fidelity]
    FIDELITY_BLENDED: _ClassVar[Fidelity]
    FIDELITY_DIRECT: _ClassVar[Fidelity]
    FIDELITY_AUTO: _ClassVar[Fidelity]
    FIDELITY_MIXED: _ClassVar[Fidelity]

class Layout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYOUT_UNSPECIFIED: _ClassVar[Layout]
    LAYOUT_PACKED: _ClassVar[Layout]
    LAYOUT_AS_ENCODED: _ClassVar[Layout]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_FORCED: _ClassVar[FinishReason]
    FINISH_REASON_PREFILL: _ClassVar[FinishReason]
    FINISH_REASON_EXTERNAL: _ClassVar[FinishReason]
    FINISH_REASON_ERROR: _ClassVar[FinishReason]
    FINISH_REASON_WORKFLOW: _ClassVar[FinishReason]

class WorkflowState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKFLOW_STATE_UNSPECIFIED: _ClassVar[WorkflowState]
    WORKFLOW_STATE_RUNNING: _ClassVar[WorkflowState]
    WORKFLOW_STATE_SUCCEEDED: _ClassVar[WorkflowState]
    WORKFLOW_STATE_FAILED: _ClassVar[WorkflowState]
    WORKFLOW_STATE_CANCELLED: _ClassVar[WorkflowState]

class StepState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_STATE_UNSPECIFIED: _ClassVar[StepState]
    STEP_STATE_WAITING: _ClassVar[StepState]
    STEP_STATE_READY: _ClassVar[StepState]
    STEP_STATE_RUNNING: _ClassVar[StepState]
    STEP_STATE_SUCCEEDED: _ClassVar[StepState]
    STEP_STATE_FAILED: _ClassVar[StepState]
    STEP_STATE_CANCELLED: _ClassVar[StepState]
    STEP_STATE_SKIPPED: _ClassVar[StepState]

class HintStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HINT_STATUS_UNSPECIFIED: _ClassVar[HintStatus]
    HINT_STATUS_ACCEPTED: _ClassVar[HintStatus]
    HINT_STATUS_CLIPPED: _ClassVar[HintStatus]
    HINT_STATUS_IGNORED: _ClassVar[HintStatus]
FIDELITY_UNSPECIFIED: Fidelity
FIDELITY_EXACT: Fidelity
FIDELITY_CORRECTED: Fidelity
FIDELITY_BLENDED: Fidelity
FIDELITY_DIRECT: Fidelity
FIDELITY_AUTO: Fidelity
FIDELITY_MIXED: Fidelity
LAYOUT_UNSPECIFIED: Layout
LAYOUT_PACKED: Layout
LAYOUT_AS_ENCODED: Layout
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_FORCED: FinishReason
FINISH_REASON_PREFILL: FinishReason
FINISH_REASON_EXTERNAL: FinishReason
FINISH_REASON_ERROR: FinishReason
FINISH_REASON_WORKFLOW: FinishReason
WORKFLOW_STATE_UNSPECIFIED: WorkflowState
WORKFLOW_STATE_RUNNING: WorkflowState
WORKFLOW_STATE_SUCCEEDED: WorkflowState
WORKFLOW_STATE_FAILED: WorkflowState
WORKFLOW_STATE_CANCELLED: WorkflowState
STEP_STATE_UNSPECIFIED: StepState
STEP_STATE_WAITING: StepState
STEP_STATE_READY: StepState
STEP_STATE_RUNNING: StepState
STEP_STATE_SUCCEEDED: StepState
STEP_STATE_FAILED: StepState
STEP_STATE_CANCELLED: StepState
STEP_STATE_SKIPPED: StepState
HINT_STATUS_UNSPECIFIED: HintStatus
HINT_STATUS_ACCEPTED: HintStatus
HINT_STATUS_CLIPPED: HintStatus
HINT_STATUS_IGNORED: HintStatus

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "forced_text", "logprobs", "drafting")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    FORCED_TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DRAFTING_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    forced_text: str
    logprobs: int
    drafting: bool
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., forced_text: _Optional[str] = ..., logprobs: _Optional[int] = ..., drafting: bool = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("status", "message", "field")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    status: str
    message: str
    field: str
    def __init__(self, status: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ...) -> None: ...

class Diagnostics(_message.Message):
    __slots__ = ("diagnostics", "omitted")
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    diagnostics: _containers.RepeatedCompositeFieldContainer[Diagnostic]
    omitted: int
    def __init__(self, diagnostics: _Optional[_Iterable[_Union[Diagnostic, _Mapping]]] = ..., omitted: _Optional[int] = ...) -> None: ...

class Diagnostic(_message.Message):
    __slots__ = ("severity", "path", "line", "column", "message", "value", "expected", "code", "source")
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    severity: str
    path: str
    line: int
    column: int
    message: str
    value: str
    expected: str
    code: str
    source: str
    def __init__(self, severity: _Optional[str] = ..., path: _Optional[str] = ..., line: _Optional[int] = ..., column: _Optional[int] = ..., message: _Optional[str] = ..., value: _Optional[str] = ..., expected: _Optional[str] = ..., code: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "logprob", "top")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class TokenChunk(_message.Message):
    __slots__ = ("workflow_id", "address", "attempt", "index", "token_ids", "text")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    address: str
    attempt: int
    index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    def __init__(self, workflow_id: _Optional[str] = ..., address: _Optional[str] = ..., attempt: _Optional[int] = ..., index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("yaml", "workflow", "inputs", "overrides", "idempotency_key", "source_name", "files")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _struct_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...
    class FilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    YAML_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_NAME_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    yaml: bytes
    workflow: WorkflowSpec
    inputs: _containers.MessageMap[str, _struct_pb2.Value]
    overrides: Overrides
    idempotency_key: str
    source_name: str
    files: _containers.ScalarMap[str, bytes]
    def __init__(self, yaml: _Optional[bytes] = ..., workflow: _Optional[_Union[WorkflowSpec, _Mapping]] = ..., inputs: _Optional[_Mapping[str, _struct_pb2.Value]] = ..., overrides: _Optional[_Union[Overrides, _Mapping]] = ..., idempotency_key: _Optional[str] = ..., source_name: _Optional[str] = ..., files: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class Overrides(_message.Message):
    __slots__ = ("fidelity", "seed", "steps", "tolerance")
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    fidelity: Fidelity
    seed: int
    steps: _containers.RepeatedCompositeFieldContainer[StepOverride]
    tolerance: float
    def __init__(self, fidelity: _Optional[_Union[Fidelity, str]] = ..., seed: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[StepOverride, _Mapping]]] = ..., tolerance: _Optional[float] = ...) -> None: ...

class StepOverride(_message.Message):
    __slots__ = ("address", "sampling")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    address: str
    sampling: Sampling
    def __init__(self, address: _Optional[str] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("submit", "cancel_on_disconnect")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_ON_DISCONNECT_FIELD_NUMBER: _ClassVar[int]
    submit: SubmitRequest
    cancel_on_disconnect: bool
    def __init__(self, submit: _Optional[_Union[SubmitRequest, _Mapping]] = ..., cancel_on_disconnect: bool = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("workflow_id", "after_event")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_EVENT_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    after_event: int
    def __init__(self, workflow_id: _Optional[str] = ..., after_event: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("event", "chunk")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    event: Event
    chunk: TokenChunk
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ..., chunk: _Optional[_Union[TokenChunk, _Mapping]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "workflow_id", "at", "workflow_state", "step_state", "step_result")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_RESULT_FIELD_NUMBER: _ClassVar[int]
    number: int
    workflow_id: str
    at: _timestamp_pb2.Timestamp
    workflow_state: WorkflowStateChanged
    step_state: StepStateChanged
    step_result: StepResult
    def __init__(self, number: _Optional[int] = ..., workflow_id: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., workflow_state: _Optional[_Union[WorkflowStateChanged, _Mapping]] = ..., step_state: _Optional[_Union[StepStateChanged, _Mapping]] = ..., step_result: _Optional[_Union[StepResult, _Mapping]] = ...) -> None: ...

class WorkflowStateChanged(_message.Message):
    __slots__ = ("state", "outputs", "error", "held", "notes")
    STATE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    state: WorkflowState
    outputs: _containers.RepeatedCompositeFieldContainer[Output]
    error: Error
    held: str
    notes: _containers.RepeatedCompositeFieldContainer[FidelityNote]
    def __init__(self, state: _Optional[_Union[WorkflowState, str]] = ..., outputs: _Optional[_Iterable[_Union[Output, _Mapping]]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., held: _Optional[str] = ..., notes: _Optional[_Iterable[_Union[FidelityNote, _Mapping]]] = ...) -> None: ...

class StepStateChanged(_message.Message):
    __slots__ = ("address", "state", "attempt", "worker", "tool", "args")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    address: str
    state: StepState
    attempt: int
    worker: str
    tool: str
    args: _struct_pb2.Struct
    def __init__(self, address: _Optional[str] = ..., state: _Optional[_Union[StepState, str]] = ..., attempt: _Optional[int] = ..., worker: _Optional[str] = ..., tool: _Optional[str] = ..., args: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("address", "step", "agent", "attempt", "state", "fidelity", "text", "token_ids", "tokens_read", "tokens_reused", "tokens_encoded", "tokens_generated", "ttft_ms", "wall_ms", "worker", "finish_reason", "error", "logprobs", "values", "tool", "args", "tokens_loaded", "model", "adapter", "tokens_drafted", "tokens_accepted", "earlier_attempts")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_READ_FIELD_NUMBER: _ClassVar[int]
    TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ENCODED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_GENERATED_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LOADED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_DRAFTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    EARLIER_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    address: str
    step: str
    agent: str
    attempt: int
    state: StepState
    fidelity: Fidelity
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens_read: int
    tokens_reused: int
    tokens_encoded: int
    tokens_generated: int
    ttft_ms: float
    wall_ms: float
    worker: str
    finish_reason: FinishReason
    error: Error
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    values: _struct_pb2.Struct
    tool: str
    args: _struct_pb2.Struct
    tokens_loaded: int
    model: str
    adapter: str
    tokens_drafted: int
    tokens_accepted: int
    earlier_attempts: Usage
    def __init__(self, address: _Optional[str] = ..., step: _Optional[str] = ..., agent: _Optional[str] = ..., attempt: _Optional[int] = ..., state: _Optional[_Union[StepState, str]] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., tokens_read: _Optional[int] = ..., tokens_reused: _Optional[int] = ..., tokens_encoded: _Optional[int] = ..., tokens_generated: _Optional[int] = ..., ttft_ms: _Optional[float] = ..., wall_ms: _Optional[float] = ..., worker: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., values: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., tool: _Optional[str] = ..., args: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., tokens_loaded: _Optional[int] = ..., model: _Optional[str] = ..., adapter: _Optional[str] = ..., tokens_drafted: _Optional[int] = ..., tokens_accepted: _Optional[int] = ..., earlier_attempts: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("tokens_read", "tokens_reused", "tokens_loaded", "tokens_encoded", "tokens_generated", "wall_ms")
    TOKENS_READ_FIELD_NUMBER: _ClassVar[int]
    TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LOADED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ENCODED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_GENERATED_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    tokens_read: int
    tokens_reused: int
    tokens_loaded: int
    tokens_encoded: int
    tokens_generated: int
    wall_ms: float
    def __init__(self, tokens_read: _Optional[int] = ..., tokens_reused: _Optional[int] = ..., tokens_loaded: _Optional[int] = ..., tokens_encoded: _Optional[int] = ..., tokens_generated: _Optional[int] = ..., wall_ms: _Optional[float] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("name", "text")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class WorkflowRecord(_message.Message):
    __slots__ = ("workflow_id", "name", "state", "created_at", "finished_at", "outputs", "steps", "error", "last_event", "held", "notes")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    name: str
    state: WorkflowState
    created_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    outputs: _containers.RepeatedCompositeFieldContainer[Output]
    steps: _containers.RepeatedCompositeFieldContainer[StepResult]
    error: Error
    last_event: int
    held: str
    notes: _containers.RepeatedCompositeFieldContainer[FidelityNote]
    def __init__(self, workflow_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[_Union[WorkflowState, str]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[Output, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[StepResult, _Mapping]]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., last_event: _Optional[int] = ..., held: _Optional[str] = ..., notes: _Optional[_Iterable[_Union[FidelityNote, _Mapping]]] = ...) -> None: ...

class FidelityNote(_message.Message):
    __slots__ = ("step", "read", "level", "kl", "num_calls", "why")
    STEP_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    NUM_CALLS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    step: str
    read: int
    level: str
    kl: float
    num_calls: int
    why: str
    def __init__(self, step: _Optional[str] = ..., read: _Optional[int] = ..., level: _Optional[str] = ..., kl: _Optional[float] = ..., num_calls: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("workflow_id",)
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    def __init__(self, workflow_id: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[WorkflowState]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[WorkflowState, str]]] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("workflows", "next_page_token")
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    workflows: _containers.RepeatedCompositeFieldContainer[WorkflowRecord]
    next_page_token: str
    def __init__(self, workflows: _Optional[_Iterable[_Union[WorkflowRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("workflow_id",)
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    def __init__(self, workflow_id: _Optional[str] = ...) -> None: ...

class DeleteWorkflowRequest(_message.Message):
    __slots__ = ("workflow_id",)
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    def __init__(self, workflow_id: _Optional[str] = ...) -> None: ...

class DeleteWorkflowResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExplainStepRequest(_message.Message):
    __slots__ = ("workflow_id", "address")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    address: str
    def __init__(self, workflow_id: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class StepExplanation(_message.Message):
    __slots__ = ("workflow_id", "address", "decision", "uses")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    address: str
    decision: RoutingDecision
    uses: _containers.RepeatedCompositeFieldContainer[NextUse]
    def __init__(self, workflow_id: _Optional[str] = ..., address: _Optional[str] = ..., decision: _Optional[_Union[RoutingDecision, _Mapping]] = ..., uses: _Optional[_Iterable[_Union[NextUse, _Mapping]]] = ...) -> None: ...

class RoutingDecision(_message.Message):
    __slots__ = ("call_id", "attempt", "at", "policy", "chosen", "candidates", "key_names", "num_workers")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    KEY_NAMES_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    attempt: int
    at: _timestamp_pb2.Timestamp
    policy: str
    chosen: str
    candidates: _containers.RepeatedCompositeFieldContainer[RoutingCandidate]
    key_names: _containers.RepeatedScalarFieldContainer[str]
    num_workers: int
    def __init__(self, call_id: _Optional[str] = ..., attempt: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., policy: _Optional[str] = ..., chosen: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[RoutingCandidate, _Mapping]]] = ..., key_names: _Optional[_Iterable[str]] = ..., num_workers: _Optional[int] = ...) -> None: ...

class RoutingCandidate(_message.Message):
    __slots__ = ("worker_id", "key", "queue_ms", "encode_ms", "load_ms", "fetch_ms", "tokens_device", "tokens_host", "tokens_disk", "tokens_peer", "tokens_encode")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_MS_FIELD_NUMBER: _ClassVar[int]
    LOAD_MS_FIELD_NUMBER: _ClassVar[int]
    FETCH_MS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_DEVICE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_HOST_FIELD_NUMBER: _ClassVar[int]
    TOKENS_DISK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PEER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ENCODE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    key: _containers.RepeatedScalarFieldContainer[float]
    queue_ms: float
    encode_ms: float
    load_ms: float
    fetch_ms: float
    tokens_device: int
    tokens_host: int
    tokens_disk: int
    tokens_peer: int
    tokens_encode: int
    def __init__(self, worker_id: _Optional[str] = ..., key: _Optional[_Iterable[float]] = ..., queue_ms: _Optional[float] = ..., encode_ms: _Optional[float] = ..., load_ms: _Optional[float] = ..., fetch_ms: _Optional[float] = ..., tokens_device: _Optional[int] = ..., tokens_host: _Optional[int] = ..., tokens_disk: _Optional[int] = ..., tokens_peer: _Optional[int] = ..., tokens_encode: _Optional[int] = ...) -> None: ...

class NextUse(_message.Message):
    __slots__ = ("message", "steps", "in_s", "likelihood")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    IN_S_FIELD_NUMBER: _ClassVar[int]
    LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    message: str
    steps: int
    in_s: float
    likelihood: float
    def __init__(self, message: _Optional[str] = ..., steps: _Optional[int] = ..., in_s: _Optional[float] = ..., likelihood: _Optional[float] = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ("submit", "recorded", "levels", "num_apart")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    NUM_APART_FIELD_NUMBER: _ClassVar[int]
    submit: SubmitRequest
    recorded: _containers.RepeatedCompositeFieldContainer[RecordedStep]
    levels: _containers.RepeatedScalarFieldContainer[str]
    num_apart: int
    def __init__(self, submit: _Optional[_Union[SubmitRequest, _Mapping]] = ..., recorded: _Optional[_Iterable[_Union[RecordedStep, _Mapping]]] = ..., levels: _Optional[_Iterable[str]] = ..., num_apart: _Optional[int] = ...) -> None: ...

class RecordedStep(_message.Message):
    __slots__ = ("address", "text", "token_ids", "error")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    address: str
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    error: str
    def __init__(self, address: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., error: _Optional[str] = ...) -> None: ...

class RecordFindingsRequest(_message.Message):
    __slots__ = ("submit", "findings")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    submit: SubmitRequest
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    def __init__(self, submit: _Optional[_Union[SubmitRequest, _Mapping]] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ...) -> None: ...

class RecordFindingsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Finding(_message.Message):
    __slots__ = ("step", "read", "level", "num_calls", "kl_sum", "kl_squares", "num_tokens", "num_agreed", "num_decisions", "num_flips")
    STEP_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    NUM_CALLS_FIELD_NUMBER: _ClassVar[int]
    KL_SUM_FIELD_NUMBER: _ClassVar[int]
    KL_SQUARES_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_AGREED_FIELD_NUMBER: _ClassVar[int]
    NUM_DECISIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_FLIPS_FIELD_NUMBER: _ClassVar[int]
    step: str
    read: int
    level: str
    num_calls: int
    kl_sum: float
    kl_squares: float
    num_tokens: int
    num_agreed: int
    num_decisions: int
    num_flips: int
    def __init__(self, step: _Optional[str] = ..., read: _Optional[int] = ..., level: _Optional[str] = ..., num_calls: _Optional[int] = ..., kl_sum: _Optional[float] = ..., kl_squares: _Optional[float] = ..., num_tokens: _Optional[int] = ..., num_agreed: _Optional[int] = ..., num_decisions: _Optional[int] = ..., num_flips: _Optional[int] = ...) -> None: ...

class ClearFindingsRequest(_message.Message):
    __slots__ = ("workflow",)
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    workflow: str
    def __init__(self, workflow: _Optional[str] = ...) -> None: ...

class ClearFindingsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuditResponse(_message.Message):
    __slots__ = ("step", "decision", "replayed", "refused")
    STEP_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    step: StepAudit
    decision: AuditedDecision
    replayed: ReplayedRun
    refused: RefusedLevel
    def __init__(self, step: _Optional[_Union[StepAudit, _Mapping]] = ..., decision: _Optional[_Union[AuditedDecision, _Mapping]] = ..., replayed: _Optional[_Union[ReplayedRun, _Mapping]] = ..., refused: _Optional[_Union[RefusedLevel, _Mapping]] = ...) -> None: ...

class StepAudit(_message.Message):
    __slots__ = ("address", "step", "level", "read", "kl", "agrees", "logprob_changes", "num_read", "num_reused", "is_same")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    AGREES_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_CHANGES_FIELD_NUMBER: _ClassVar[int]
    NUM_READ_FIELD_NUMBER: _ClassVar[int]
    NUM_REUSED_FIELD_NUMBER: _ClassVar[int]
    IS_SAME_FIELD_NUMBER: _ClassVar[int]
    address: str
    step: str
    level: str
    read: int
    kl: _containers.RepeatedScalarFieldContainer[float]
    agrees: _containers.RepeatedScalarFieldContainer[bool]
    logprob_changes: _containers.RepeatedScalarFieldContainer[float]
    num_read: int
    num_reused: int
    is_same: bool
    def __init__(self, address: _Optional[str] = ..., step: _Optional[str] = ..., level: _Optional[str] = ..., read: _Optional[int] = ..., kl: _Optional[_Iterable[float]] = ..., agrees: _Optional[_Iterable[bool]] = ..., logprob_changes: _Optional[_Iterable[float]] = ..., num_read: _Optional[int] = ..., num_reused: _Optional[int] = ..., is_same: bool = ...) -> None: ...

class AuditedDecision(_message.Message):
    __slots__ = ("address", "step", "level", "name", "was", "becomes")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WAS_FIELD_NUMBER: _ClassVar[int]
    BECOMES_FIELD_NUMBER: _ClassVar[int]
    address: str
    step: str
    level: str
    name: str
    was: str
    becomes: str
    def __init__(self, address: _Optional[str] = ..., step: _Optional[str] = ..., level: _Optional[str] = ..., name: _Optional[str] = ..., was: _Optional[str] = ..., becomes: _Optional[str] = ...) -> None: ...

class ReplayedRun(_message.Message):
    __slots__ = ("level", "ttft_ms", "wall_ms", "num_read", "num_encoded")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_READ_FIELD_NUMBER: _ClassVar[int]
    NUM_ENCODED_FIELD_NUMBER: _ClassVar[int]
    level: str
    ttft_ms: float
    wall_ms: float
    num_read: int
    num_encoded: int
    def __init__(self, level: _Optional[str] = ..., ttft_ms: _Optional[float] = ..., wall_ms: _Optional[float] = ..., num_read: _Optional[int] = ..., num_encoded: _Optional[int] = ...) -> None: ...

class RefusedLevel(_message.Message):
    __slots__ = ("level", "reason", "address")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    level: str
    reason: str
    address: str
    def __init__(self, level: _Optional[str] = ..., reason: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class CompleteStepRequest(_message.Message):
    __slots__ = ("workflow_id", "address", "text", "output", "lease_id")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    address: str
    text: str
    output: _struct_pb2.Value
    lease_id: str
    def __init__(self, workflow_id: _Optional[str] = ..., address: _Optional[str] = ..., text: _Optional[str] = ..., output: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., lease_id: _Optional[str] = ...) -> None: ...

class FailStepRequest(_message.Message):
    __slots__ = ("workflow_id", "address", "message", "lease_id", "final")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    address: str
    message: str
    lease_id: str
    final: bool
    def __init__(self, workflow_id: _Optional[str] = ..., address: _Optional[str] = ..., message: _Optional[str] = ..., lease_id: _Optional[str] = ..., final: bool = ...) -> None: ...

class LeaseStepRequest(_message.Message):
    __slots__ = ("tools", "workflow_id", "handler", "wait")
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    HANDLER_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    tools: _containers.RepeatedScalarFieldContainer[str]
    workflow_id: str
    handler: str
    wait: _duration_pb2.Duration
    def __init__(self, tools: _Optional[_Iterable[str]] = ..., workflow_id: _Optional[str] = ..., handler: _Optional[str] = ..., wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LeaseStepResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class RenewLeaseRequest(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    def __init__(self, lease_id: _Optional[str] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "workflow_id", "address", "tool", "attempt", "args", "messages", "description", "duration", "expires_at", "output_schema")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    workflow_id: str
    address: str
    tool: str
    attempt: int
    args: _struct_pb2.Struct
    messages: _containers.RepeatedCompositeFieldContainer[LeaseMessage]
    description: str
    duration: _duration_pb2.Duration
    expires_at: _timestamp_pb2.Timestamp
    output_schema: _struct_pb2.Struct
    def __init__(self, lease_id: _Optional[str] = ..., workflow_id: _Optional[str] = ..., address: _Optional[str] = ..., tool: _Optional[str] = ..., attempt: _Optional[int] = ..., args: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[LeaseMessage, _Mapping]]] = ..., description: _Optional[str] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., output_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class LeaseMessage(_message.Message):
    __slots__ = ("key", "role", "name", "text")
    KEY_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    key: str
    role: str
    name: str
    text: str
    def __init__(self, key: _Optional[str] = ..., role: _Optional[str] = ..., name: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("ttl", "model", "adapter")
    TTL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ttl: _duration_pb2.Duration
    model: str
    adapter: str
    def __init__(self, ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., model: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "ttl", "expires_at", "messages", "created_at", "model")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    ttl: _duration_pb2.Duration
    expires_at: _timestamp_pb2.Timestamp
    messages: _containers.RepeatedCompositeFieldContainer[MessageRecord]
    created_at: _timestamp_pb2.Timestamp
    model: str
    def __init__(self, session_id: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[MessageRecord, _Mapping]]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model: _Optional[str] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("placements", "layout")
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    placements: _containers.RepeatedCompositeFieldContainer[Placement]
    layout: Layout
    def __init__(self, placements: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ..., layout: _Optional[_Union[Layout, str]] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("message_id", "position", "begin", "end")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    position: int
    begin: int
    end: int
    def __init__(self, message_id: _Optional[str] = ..., position: _Optional[int] = ..., begin: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("session_id", "role", "name", "text", "token_ids", "view", "position", "fidelity", "recompute_share")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_SHARE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    role: str
    name: str
    text: str
    token_ids: TokenIds
    view: View
    position: int
    fidelity: Fidelity
    recompute_share: float
    def __init__(self, session_id: _Optional[str] = ..., role: _Optional[str] = ..., name: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., view: _Optional[_Union[View, _Mapping]] = ..., position: _Optional[int] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., recompute_share: _Optional[float] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("session_id", "role", "name", "prefill", "view", "position", "fidelity", "sampling", "tools", "recompute_share", "response_schema", "choices")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_SHARE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    role: str
    name: str
    prefill: str
    view: View
    position: int
    fidelity: Fidelity
    sampling: Sampling
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    recompute_share: float
    response_schema: JsonSchema
    choices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_id: _Optional[str] = ..., role: _Optional[str] = ..., name: _Optional[str] = ..., prefill: _Optional[str] = ..., view: _Optional[_Union[View, _Mapping]] = ..., position: _Optional[int] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ..., recompute_share: _Optional[float] = ..., response_schema: _Optional[_Union[JsonSchema, _Mapping]] = ..., choices: _Optional[_Iterable[str]] = ...) -> None: ...

class JsonSchema(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class Tool(_message.Message):
    __slots__ = ("name", "description", "parameters")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "text", "name")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    role: str
    text: str
    name: str
    def __init__(self, role: _Optional[str] = ..., text: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ChatRequest(_message.Message):
    __slots__ = ("session_id", "messages", "fidelity", "recompute_share", "sampling")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_SHARE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    fidelity: Fidelity
    recompute_share: float
    sampling: Sampling
    def __init__(self, session_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., recompute_share: _Optional[float] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("chunk", "message")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    chunk: TokenChunk
    message: MessageRecord
    def __init__(self, chunk: _Optional[_Union[TokenChunk, _Mapping]] = ..., message: _Optional[_Union[MessageRecord, _Mapping]] = ...) -> None: ...

class MessageRecord(_message.Message):
    __slots__ = ("message_id", "role", "name", "start", "num_tokens", "text", "token_ids", "tokens_read", "tokens_reused", "tokens_encoded", "tokens_generated", "ttft_ms", "wall_ms", "worker", "finish_reason", "logprobs", "overlaps", "fidelity", "session_id", "tokens_loaded", "tokens_drafted", "tokens_accepted")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_READ_FIELD_NUMBER: _ClassVar[int]
    TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ENCODED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_GENERATED_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    OVERLAPS_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LOADED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_DRAFTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    role: str
    name: str
    start: int
    num_tokens: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens_read: int
    tokens_reused: int
    tokens_encoded: int
    tokens_generated: int
    ttft_ms: float
    wall_ms: float
    worker: str
    finish_reason: FinishReason
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    overlaps: _containers.RepeatedScalarFieldContainer[str]
    fidelity: Fidelity
    session_id: str
    tokens_loaded: int
    tokens_drafted: int
    tokens_accepted: int
    def __init__(self, message_id: _Optional[str] = ..., role: _Optional[str] = ..., name: _Optional[str] = ..., start: _Optional[int] = ..., num_tokens: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., tokens_read: _Optional[int] = ..., tokens_reused: _Optional[int] = ..., tokens_encoded: _Optional[int] = ..., tokens_generated: _Optional[int] = ..., ttft_ms: _Optional[float] = ..., wall_ms: _Optional[float] = ..., worker: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., overlaps: _Optional[_Iterable[str]] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., session_id: _Optional[str] = ..., tokens_loaded: _Optional[int] = ..., tokens_drafted: _Optional[int] = ..., tokens_accepted: _Optional[int] = ...) -> None: ...

class HintRequest(_message.Message):
    __slots__ = ("session_id", "hints", "ttl")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    HINTS_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    hints: _containers.RepeatedCompositeFieldContainer[Hint]
    ttl: _duration_pb2.Duration
    def __init__(self, session_id: _Optional[str] = ..., hints: _Optional[_Iterable[_Union[Hint, _Mapping]]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Hint(_message.Message):
    __slots__ = ("agent", "view", "fidelity", "steps", "starts_in", "likelihood", "pin")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STARTS_IN_FIELD_NUMBER: _ClassVar[int]
    LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    agent: str
    view: View
    fidelity: Fidelity
    steps: int
    starts_in: _duration_pb2.Duration
    likelihood: float
    pin: _duration_pb2.Duration
    def __init__(self, agent: _Optional[str] = ..., view: _Optional[_Union[View, _Mapping]] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., steps: _Optional[int] = ..., starts_in: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., likelihood: _Optional[float] = ..., pin: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class HintResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[HintOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[HintOutcome, _Mapping]]] = ...) -> None: ...

class HintOutcome(_message.Message):
    __slots__ = ("agent", "status", "reason", "num_reads", "num_tokens", "pin", "ttl")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_READS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    agent: str
    status: HintStatus
    reason: str
    num_reads: int
    num_tokens: int
    pin: _duration_pb2.Duration
    ttl: _duration_pb2.Duration
    def __init__(self, agent: _Optional[str] = ..., status: _Optional[_Union[HintStatus, str]] = ..., reason: _Optional[str] = ..., num_reads: _Optional[int] = ..., num_tokens: _Optional[int] = ..., pin: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ReleaseHintsRequest(_message.Message):
    __slots__ = ("session_id", "agents", "all")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    agents: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    def __init__(self, session_id: _Optional[str] = ..., agents: _Optional[_Iterable[str]] = ..., all: bool = ...) -> None: ...

class ReleaseHintsResponse(_message.Message):
    __slots__ = ("num_released",)
    NUM_RELEASED_FIELD_NUMBER: _ClassVar[int]
    num_released: int
    def __init__(self, num_released: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("session_id", "message_ids", "all")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    message_ids: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    def __init__(self, session_id: _Optional[str] = ..., message_ids: _Optional[_Iterable[str]] = ..., all: bool = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("num_released",)
    NUM_RELEASED_FIELD_NUMBER: _ClassVar[int]
    num_released: int
    def __init__(self, num_released: _Optional[int] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterStatus(_message.Message):
    __slots__ = ("version", "ready", "model", "max_context", "workers", "workflows_running", "sessions_open", "uptime_s", "workflows_held", "routing_policy", "eviction_policy", "directory", "journal", "members", "divergences", "models")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WORKFLOWS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_OPEN_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    WORKFLOWS_HELD_FIELD_NUMBER: _ClassVar[int]
    ROUTING_POLICY_FIELD_NUMBER: _ClassVar[int]
    EVICTION_POLICY_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    version: str
    ready: bool
    model: str
    max_context: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    workflows_running: int
    sessions_open: int
    uptime_s: float
    workflows_held: int
    routing_policy: str
    eviction_policy: str
    directory: DirectoryStatus
    journal: str
    members: _containers.RepeatedCompositeFieldContainer[MemberStatus]
    divergences: _containers.RepeatedCompositeFieldContainer[Divergence]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, version: _Optional[str] = ..., ready: bool = ..., model: _Optional[str] = ..., max_context: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., workflows_running: _Optional[int] = ..., sessions_open: _Optional[int] = ..., uptime_s: _Optional[float] = ..., workflows_held: _Optional[int] = ..., routing_policy: _Optional[str] = ..., eviction_policy: _Optional[str] = ..., directory: _Optional[_Union[DirectoryStatus, _Mapping]] = ..., journal: _Optional[str] = ..., members: _Optional[_Iterable[_Union[MemberStatus, _Mapping]]] = ..., divergences: _Optional[_Iterable[_Union[Divergence, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "max_context", "workers", "workers_up", "fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_UP_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    max_context: int
    workers: int
    workers_up: int
    fingerprint: str
    def __init__(self, name: _Optional[str] = ..., max_context: _Optional[int] = ..., workers: _Optional[int] = ..., workers_up: _Optional[int] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Divergence(_message.Message):
    __slots__ = ("tenant", "workflow", "since", "kl", "num_calls", "tolerance", "falls_back")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    NUM_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    FALLS_BACK_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    workflow: str
    since: float
    kl: float
    num_calls: int
    tolerance: float
    falls_back: bool
    def __init__(self, tenant: _Optional[str] = ..., workflow: _Optional[str] = ..., since: _Optional[float] = ..., kl: _Optional[float] = ..., num_calls: _Optional[int] = ..., tolerance: _Optional[float] = ..., falls_back: bool = ...) -> None: ...

class MemberStatus(_message.Message):
    __slots__ = ("member_id", "address", "state", "workflows", "here")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    HERE_FIELD_NUMBER: _ClassVar[int]
    member_id: str
    address: str
    state: str
    workflows: int
    here: bool
    def __init__(self, member_id: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., workflows: _Optional[int] = ..., here: bool = ...) -> None: ...

class DirectoryStatus(_message.Message):
    __slots__ = ("num_shards", "num_encodings", "tokens_predicted", "tokens_missed", "tokens_found", "num_calls", "num_wrong")
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    NUM_ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PREDICTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_MISSED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FOUND_FIELD_NUMBER: _ClassVar[int]
    NUM_CALLS_FIELD_NUMBER: _ClassVar[int]
    NUM_WRONG_FIELD_NUMBER: _ClassVar[int]
    num_shards: int
    num_encodings: int
    tokens_predicted: int
    tokens_missed: int
    tokens_found: int
    num_calls: int
    num_wrong: int
    def __init__(self, num_shards: _Optional[int] = ..., num_encodings: _Optional[int] = ..., tokens_predicted: _Optional[int] = ..., tokens_missed: _Optional[int] = ..., tokens_found: _Optional[int] = ..., num_calls: _Optional[int] = ..., num_wrong: _Optional[int] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker_id", "epoch", "alive", "device", "dtype", "attention_backend", "calls_running", "calls_waiting", "queued_tokens", "pages", "pages_free", "page_size", "bytes_per_token", "encodings", "draining", "host_bytes", "host_bytes_used", "disk_bytes", "disk_bytes_used", "rates", "cache", "model", "problem", "reach")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_BACKEND_FIELD_NUMBER: _ClassVar[int]
    CALLS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    CALLS_WAITING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    PAGES_FREE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    REACH_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: str
    alive: bool
    device: str
    dtype: str
    attention_backend: str
    calls_running: int
    calls_waiting: int
    queued_tokens: int
    pages: int
    pages_free: int
    page_size: int
    bytes_per_token: int
    encodings: int
    draining: bool
    host_bytes: int
    host_bytes_used: int
    disk_bytes: int
    disk_bytes_used: int
    rates: WorkerRates
    cache: CacheCounters
    model: str
    problem: str
    reach: Reach
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[str] = ..., alive: bool = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., attention_backend: _Optional[str] = ..., calls_running: _Optional[int] = ..., calls_waiting: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., pages: _Optional[int] = ..., pages_free: _Optional[int] = ..., page_size: _Optional[int] = ..., bytes_per_token: _Optional[int] = ..., encodings: _Optional[int] = ..., draining: bool = ..., host_bytes: _Optional[int] = ..., host_bytes_used: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., disk_bytes_used: _Optional[int] = ..., rates: _Optional[_Union[WorkerRates, _Mapping]] = ..., cache: _Optional[_Union[CacheCounters, _Mapping]] = ..., model: _Optional[str] = ..., problem: _Optional[str] = ..., reach: _Optional[_Union[Reach, _Mapping]] = ...) -> None: ...

class Reach(_message.Message):
    __slots__ = ("machine", "transports")
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    machine: str
    transports: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, machine: _Optional[str] = ..., transports: _Optional[_Iterable[str]] = ...) -> None: ...

class WorkerRates(_message.Message):
    __slots__ = ("encode_tokens_per_s", "iteration_s", "host_bytes_per_s", "disk_bytes_per_s", "peer_bytes_per_s", "cma_bytes_per_s", "nixl_bytes_per_s", "object_store_bytes_per_s")
    ENCODE_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    ITERATION_S_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    PEER_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    CMA_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    NIXL_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    OBJECT_STORE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    encode_tokens_per_s: float
    iteration_s: float
    host_bytes_per_s: float
    disk_bytes_per_s: float
    peer_bytes_per_s: float
    cma_bytes_per_s: float
    nixl_bytes_per_s: float
    object_store_bytes_per_s: float
    def __init__(self, encode_tokens_per_s: _Optional[float] = ..., iteration_s: _Optional[float] = ..., host_bytes_per_s: _Optional[float] = ..., disk_bytes_per_s: _Optional[float] = ..., peer_bytes_per_s: _Optional[float] = ..., cma_bytes_per_s: _Optional[float] = ..., nixl_bytes_per_s: _Optional[float] = ..., object_store_bytes_per_s: _Optional[float] = ...) -> None: ...

class CacheCounters(_message.Message):
    __slots__ = ("tokens_hit_device", "tokens_loaded_host", "tokens_loaded_disk", "tokens_loaded_peer", "tokens_encoded_again", "bytes_saved_host", "bytes_saved_disk", "num_evicted_device", "num_evicted_host", "num_evicted_disk", "prefetches_useful", "prefetches_late", "prefetches_wasted", "preemptions", "wait_load_s")
    TOKENS_HIT_DEVICE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LOADED_HOST_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LOADED_DISK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LOADED_PEER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ENCODED_AGAIN_FIELD_NUMBER: _ClassVar[int]
    BYTES_SAVED_HOST_FIELD_NUMBER: _ClassVar[int]
    BYTES_SAVED_DISK_FIELD_NUMBER: _ClassVar[int]
    NUM_EVICTED_DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_EVICTED_HOST_FIELD_NUMBER: _ClassVar[int]
    NUM_EVICTED_DISK_FIELD_NUMBER: _ClassVar[int]
    PREFETCHES_USEFUL_FIELD_NUMBER: _ClassVar[int]
    PREFETCHES_LATE_FIELD_NUMBER: _ClassVar[int]
    PREFETCHES_WASTED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    WAIT_LOAD_S_FIELD_NUMBER: _ClassVar[int]
    tokens_hit_device: int
    tokens_loaded_host: int
    tokens_loaded_disk: int
    tokens_loaded_peer: int
    tokens_encoded_again: int
    bytes_saved_host: int
    bytes_saved_disk: int
    num_evicted_device: int
    num_evicted_host: int
    num_evicted_disk: int
    prefetches_useful: int
    prefetches_late: int
    prefetches_wasted: int
    preemptions: int
    wait_load_s: float
    def __init__(self, tokens_hit_device: _Optional[int] = ..., tokens_loaded_host: _Optional[int] = ..., tokens_loaded_disk: _Optional[int] = ..., tokens_loaded_peer: _Optional[int] = ..., tokens_encoded_again: _Optional[int] = ..., bytes_saved_host: _Optional[int] = ..., bytes_saved_disk: _Optional[int] = ..., num_evicted_device: _Optional[int] = ..., num_evicted_host: _Optional[int] = ..., num_evicted_disk: _Optional[int] = ..., prefetches_useful: _Optional[int] = ..., prefetches_late: _Optional[int] = ..., prefetches_wasted: _Optional[int] = ..., preemptions: _Optional[int] = ..., wait_load_s: _Optional[float] = ...) -> None: ...

class AddWorkerRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class DrainWorkerRequest(_message.Message):
    __slots__ = ("worker_id",)
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    def __init__(self, worker_id: _Optional[str] = ...) -> None: ...

class DrainProgress(_message.Message):
    __slots__ = ("worker_id", "calls_left", "encodings_left", "done")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    CALLS_LEFT_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_LEFT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    calls_left: int
    encodings_left: int
    done: bool
    def __init__(self, worker_id: _Optional[str] = ..., calls_left: _Optional[int] = ..., encodings_left: _Optional[int] = ..., done: bool = ...) -> None: ...

class WorkflowSpec(_message.Message):
    __slots__ = ("version", "name", "description", "inputs", "fidelity", "sampling", "messages", "agents", "steps", "outputs", "workflows", "key", "recompute_share", "tolerance", "model", "adapter")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_SHARE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    version: int
    name: str
    description: str
    inputs: _containers.RepeatedCompositeFieldContainer[InputSpec]
    fidelity: Fidelity
    sampling: Sampling
    messages: _containers.RepeatedCompositeFieldContainer[MessageSpec]
    agents: _containers.RepeatedCompositeFieldContainer[AgentSpec]
    steps: _containers.RepeatedCompositeFieldContainer[StepSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[OutputSpec]
    workflows: _containers.RepeatedCompositeFieldContainer[WorkflowSpec]
    key: str
    recompute_share: float
    tolerance: float
    model: str
    adapter: str
    def __init__(self, version: _Optional[int] = ..., name: _Optional[str] = ..., description: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[InputSpec, _Mapping]]] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[MessageSpec, _Mapping]]] = ..., agents: _Optional[_Iterable[_Union[AgentSpec, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[StepSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[OutputSpec, _Mapping]]] = ..., workflows: _Optional[_Iterable[_Union[WorkflowSpec, _Mapping]]] = ..., key: _Optional[str] = ..., recompute_share: _Optional[float] = ..., tolerance: _Optional[float] = ..., model: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class InputSpec(_message.Message):
    __slots__ = ("key", "type", "default", "description")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    key: str
    type: str
    default: _struct_pb2.Value
    description: str
    def __init__(self, key: _Optional[str] = ..., type: _Optional[str] = ..., default: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., description: _Optional[str] = ...) -> None: ...

class MessageSpec(_message.Message):
    __slots__ = ("key", "text", "role", "name", "private", "for_each")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    FOR_EACH_FIELD_NUMBER: _ClassVar[int]
    key: str
    text: str
    role: str
    name: str
    private: bool
    for_each: str
    def __init__(self, key: _Optional[str] = ..., text: _Optional[str] = ..., role: _Optional[str] = ..., name: _Optional[str] = ..., private: bool = ..., for_each: _Optional[str] = ...) -> None: ...

class AgentSpec(_message.Message):
    __slots__ = ("key", "prompt", "role", "private", "sampling", "model", "adapter", "tools")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    key: str
    prompt: str
    role: str
    private: bool
    sampling: Sampling
    model: str
    adapter: str
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    def __init__(self, key: _Optional[str] = ..., prompt: _Optional[str] = ..., role: _Optional[str] = ..., private: bool = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., model: _Optional[str] = ..., adapter: _Optional[str] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ...) -> None: ...

class StepSpec(_message.Message):
    __slots__ = ("step", "agent", "for_each", "rounds", "read", "join", "external", "vote", "role", "name", "prefill", "fidelity", "sampling", "private", "tools", "max_parallel", "on_error", "values", "when", "timeout_s", "retries", "loop", "steps", "otherwise", "workflow", "inputs", "messages", "output", "recompute_share", "response_schema", "tolerance", "choices", "model", "adapter")
    STEP_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    FOR_EACH_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    MAX_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    ON_ERROR_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    WHEN_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    OTHERWISE_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_SHARE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    step: str
    agent: str
    for_each: ForEachSpec
    rounds: int
    read: _containers.RepeatedCompositeFieldContainer[ReadSpec]
    join: JoinSpec
    external: ExternalSpec
    vote: VoteSpec
    role: str
    name: str
    prefill: str
    fidelity: Fidelity
    sampling: Sampling
    private: bool
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    max_parallel: int
    on_error: str
    values: _containers.RepeatedCompositeFieldContainer[ValueSpec]
    when: str
    timeout_s: float
    retries: RetriesSpec
    loop: LoopSpec
    steps: _containers.RepeatedCompositeFieldContainer[StepSpec]
    otherwise: _containers.RepeatedCompositeFieldContainer[StepSpec]
    workflow: str
    inputs: _struct_pb2.Struct
    messages: _containers.RepeatedCompositeFieldContainer[BoundMessage]
    output: str
    recompute_share: float
    response_schema: JsonSchema
    tolerance: float
    choices: _struct_pb2.Value
    model: str
    adapter: str
    def __init__(self, step: _Optional[str] = ..., agent: _Optional[str] = ..., for_each: _Optional[_Union[ForEachSpec, _Mapping]] = ..., rounds: _Optional[int] = ..., read: _Optional[_Iterable[_Union[ReadSpec, _Mapping]]] = ..., join: _Optional[_Union[JoinSpec, _Mapping]] = ..., external: _Optional[_Union[ExternalSpec, _Mapping]] = ..., vote: _Optional[_Union[VoteSpec, _Mapping]] = ..., role: _Optional[str] = ..., name: _Optional[str] = ..., prefill: _Optional[str] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., private: bool = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ..., max_parallel: _Optional[int] = ..., on_error: _Optional[str] = ..., values: _Optional[_Iterable[_Union[ValueSpec, _Mapping]]] = ..., when: _Optional[str] = ..., timeout_s: _Optional[float] = ..., retries: _Optional[_Union[RetriesSpec, _Mapping]] = ..., loop: _Optional[_Union[LoopSpec, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[StepSpec, _Mapping]]] = ..., otherwise: _Optional[_Iterable[_Union[StepSpec, _Mapping]]] = ..., workflow: _Optional[str] = ..., inputs: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[BoundMessage, _Mapping]]] = ..., output: _Optional[str] = ..., recompute_share: _Optional[float] = ..., response_schema: _Optional[_Union[JsonSchema, _Mapping]] = ..., tolerance: _Optional[float] = ..., choices: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., model: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class BoundMessage(_message.Message):
    __slots__ = ("key", "read")
    KEY_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    key: str
    read: str
    def __init__(self, key: _Optional[str] = ..., read: _Optional[str] = ...) -> None: ...

class LoopSpec(_message.Message):
    __slots__ = ("name", "until", "max", "on_max")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    ON_MAX_FIELD_NUMBER: _ClassVar[int]
    name: str
    until: str
    max: int
    on_max: str
    def __init__(self, name: _Optional[str] = ..., until: _Optional[str] = ..., max: _Optional[int] = ..., on_max: _Optional[str] = ...) -> None: ...

class RetriesSpec(_message.Message):
    __slots__ = ("max", "delay_s")
    MAX_FIELD_NUMBER: _ClassVar[int]
    DELAY_S_FIELD_NUMBER: _ClassVar[int]
    max: int
    delay_s: float
    def __init__(self, max: _Optional[int] = ..., delay_s: _Optional[float] = ...) -> None: ...

class ValueSpec(_message.Message):
    __slots__ = ("key", "regex", "pointer", "expression", "type", "one_of", "all", "required", "default")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    POINTER_FIELD_NUMBER: _ClassVar[int]
    EXPRESSION_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ONE_OF_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    key: str
    regex: str
    pointer: str
    expression: str
    type: str
    one_of: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    required: bool
    default: _struct_pb2.Value
    def __init__(self, key: _Optional[str] = ..., regex: _Optional[str] = ..., pointer: _Optional[str] = ..., expression: _Optional[str] = ..., type: _Optional[str] = ..., one_of: _Optional[_Iterable[str]] = ..., all: bool = ..., required: bool = ..., default: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...

class ForEachSpec(_message.Message):
    __slots__ = ("agents", "count", "input", "batch", "size")
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    agents: _containers.RepeatedScalarFieldContainer[str]
    count: int
    input: str
    batch: str
    size: int
    def __init__(self, agents: _Optional[_Iterable[str]] = ..., count: _Optional[int] = ..., input: _Optional[str] = ..., batch: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class ReadSpec(_message.Message):
    __slots__ = ("read", "fidelity", "begin", "end", "order", "recompute_share", "tolerance")
    READ_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_SHARE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    read: str
    fidelity: Fidelity
    begin: int
    end: int
    order: str
    recompute_share: float
    tolerance: float
    def __init__(self, read: _Optional[str] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., begin: _Optional[int] = ..., end: _Optional[int] = ..., order: _Optional[str] = ..., recompute_share: _Optional[float] = ..., tolerance: _Optional[float] = ...) -> None: ...

class JoinSpec(_message.Message):
    __slots__ = ("at_least", "rest")
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    REST_FIELD_NUMBER: _ClassVar[int]
    at_least: int
    rest: str
    def __init__(self, at_least: _Optional[int] = ..., rest: _Optional[str] = ...) -> None: ...

class ExternalSpec(_message.Message):
    __slots__ = ("description", "tool", "args", "input_schema", "output_schema", "lease_s")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    INPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    description: str
    tool: str
    args: _struct_pb2.Struct
    input_schema: _struct_pb2.Struct
    output_schema: _struct_pb2.Struct
    lease_s: float
    def __init__(self, description: _Optional[str] = ..., tool: _Optional[str] = ..., args: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., input_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., output_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., lease_s: _Optional[float] = ...) -> None: ...

class VoteSpec(_message.Message):
    __slots__ = ("over", "ballot", "quorum", "value")
    OVER_FIELD_NUMBER: _ClassVar[int]
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    over: str
    ballot: str
    quorum: int
    value: str
    def __init__(self, over: _Optional[str] = ..., ballot: _Optional[str] = ..., quorum: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...

class OutputSpec(_message.Message):
    __slots__ = ("key", "read", "join", "separator")
    KEY_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    SEPARATOR_FIELD_NUMBER: _ClassVar[int]
    key: str
    read: str
    join: JoinSpec
    separator: str
    def __init__(self, key: _Optional[str] = ..., read: _Optional[str] = ..., join: _Optional[_Union[JoinSpec, _Mapping]] = ..., separator: _Optional[str] = ...) -> None: ...
