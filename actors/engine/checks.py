"""What a call must be for any worker to run it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

from laban.actors.calls import Call
from laban.actors.errors import FailedPrecondition, InvalidInput, OutOfRange
from laban.kvstore.encodings import EncodingSpec, adapter_of, dependencies


def check_call(call: Call, max_context: int, vocab_size: int, known: Container[str] = ()) -> None:
    """Raises LabanError for a call that no worker could run.

    The tokens of encodings that are `known` were looked at when they came: a call reads thousands that it brings again.
    """
    specs = {spec.encoding_id: spec for spec in call.specs}
    if not call.tokens:
        raise InvalidInput("must have at least one token", field="tokens")
    for spec in call.specs:
        if unknown := [d for d in dependencies(spec.view) if d not in specs]:
            raise InvalidInput("names an encoding whose spec is missing", field="specs", value=unknown[0])
    if unknown := [d for d in dependencies(call.view) if d not in specs]:
        raise InvalidInput("names an encoding whose spec is missing", field="view", value=unknown[0])
    for i, placed in enumerate(call.view.placements):
        size = specs[placed.encoding_id].num_tokens
        if not 0 <= placed.begin < placed.end <= size:
            raise InvalidInput(
                f"must be a range within the message's {size} tokens",
                field=f"view[{i}]",
                value=(placed.begin, placed.end),
            )
        if placed.position < 0 or placed.stop > max_context:
            raise OutOfRange(
                f"must lie within the model's context of {max_context} tokens",
                field=f"view[{i}].position",
                value=placed.position,
            )
    sampling = call.sampling
    check_ids("tokens", call.tokens, vocab_size)
    check_ids("terminator", call.terminator, vocab_size)
    if sampling is not None:
        check_ids("sampling.forced", sampling.forced, vocab_size)
    check_specs(call.specs, vocab_size, known)
    if sampling is not None and sampling.max_tokens < 1:
        raise InvalidInput("must be 1 or more", field="sampling.max_tokens", value=sampling.max_tokens)
    new = len(call.tokens)
    if sampling is not None:
        new += sampling.most_tokens + len(call.terminator)
    if call.start < 0 or call.start + new > max_context:
        raise OutOfRange(
            f"starts at position {call.start} and takes up to {new} tokens, "
            f"which does not fit the model's context of {max_context}",
            field="start",
            value=call.start,
        )


def check_specs(specs: Iterable[EncodingSpec], vocab_size: int, known: Container[str] = ()) -> None:
    """Raises InvalidInput for tokens that the model has no embedding of, but in encodings that are `known`."""
    for spec in specs:
        if spec.encoding_id not in known:
            check_ids("specs", spec.tokens, vocab_size)


def check_ids(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """One that is outside would end the iteration, and with it the calls of everybody else in the batch."""
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        bad = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidInput(f"must be token ids below {vocab_size}", field=field, value=bad)


def check_adapter(namespace: str, specs: Iterable[EncodingSpec], knows: Callable[[str], bool]) -> None:
    """What one adapter encodes is never read by another. Raises InvalidInput for several, FailedPrecondition for one
    that the worker does not know."""
    found = {adapter_of(each) for each in {namespace, *(spec.namespace for spec in specs)}}
    if len(found) > 1:
        raise InvalidInput("its encodings are of several adapters, expected those of one", field="namespace")
    (adapter,) = found
    if not knows(adapter):
        raise FailedPrecondition("the worker has no such adapter", field="namespace", value=adapter)
