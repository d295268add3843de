"""Errors a user may see: a short tree, each class with its gRPC status, translated once at the gateway."""

from __future__ import annotations

from collections.abc import Sequence


class LabanError(Exception):
    """Something the caller can act on. `field` is the path of the offending input, where there is one.

    >>> str(InvalidInput("must be between 0 and 2", field="steps[0].sampling.temperature", value=-1))
    'steps[0].sampling.temperature: must be between 0 and 2 (got -1)'
    """

    status = "INTERNAL"  # the name of a grpc.StatusCode
    retry_after_s: float | None = None  # where more is known than what goes for the status
    others: tuple[LabanError, ...] = ()  # mistakes of the same request beside this one

    def __init__(self, message: str, *, field: str = "", value: object = None) -> None:
        self.message = message
        self.field = field
        self.value = value
        super().__init__(message, field, value)

    def __str__(self) -> str:
        got = "" if self.value is None else f" (got {shorten(self.value)})"
        return f"{self.field}: {self.message}{got}" if self.field else f"{self.message}{got}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross processes; keyword arguments need saying.
        return (_rebuild, (type(self), self.message, self.field, self.value))


def with_others(found: Sequence[LabanError]) -> LabanError:
    """The first of several mistakes, which tells of the others."""
    first, *others = found
    first.others = tuple(others)
    return first


def of_status(status: str) -> type[LabanError]:
    """The most general class of a gRPC status; LabanError for one that has none.

    >>> of_status("FAILED_PRECONDITION"), of_status("DATA_LOSS")
    (<class 'laban.actors.errors.FailedPrecondition'>, <class 'laban.actors.errors.LabanError'>)
    """
    return next((kind for kind in LabanError.__subclasses__() if kind.status == status), LabanError)


def _rebuild(kind: type[LabanError], message: str, field: str, value: object) -> LabanError:
    return kind(message, field=field, value=value)


def shorten(value: object, limit: int = 120) -> str:
    """`repr(value)`, with truth as JSON and YAML have it, cut in the middle past `limit` characters."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 4 :]}"


def cause_of(error: BaseException, limit: int = 400) -> str:
    """An error of somebody else's on one line, kind and message.

    >>> cause_of(KeyError("quux")), cause_of(RuntimeError("two\\nlines"))
    ("KeyError: 'quux'", 'RuntimeError: two lines')
    """
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return text if len(text) <= limit else f"{text[:limit]}..."


class InvalidInput(LabanError):
    """The request is wrong as it stands, whatever the state of the system."""

    status = "INVALID_ARGUMENT"


class OutOfRange(LabanError):
    """A view or message does not fit the model's context."""

    status = "OUT_OF_RANGE"


class NotFound(LabanError):
    status = "NOT_FOUND"


class Conflict(LabanError):
    """The thing exists already, with other content."""

    status = "ALREADY_EXISTS"


class FailedPrecondition(LabanError):
    """The request is well formed but not now: the thing has ended, or is in another state."""

    status = "FAILED_PRECONDITION"


class Exhausted(LabanError):
    """More than the system, or a limit of it, can hold."""

    status = "RESOURCE_EXHAUSTED"


class Unauthenticated(LabanError):
    """Nobody that is known."""

    status = "UNAUTHENTICATED"


class Forbidden(LabanError):
    """Somebody who may not."""

    status = "PERMISSION_DENIED"


class Unavailable(LabanError):
    """Try again: a worker died, or none is up."""

    status = "UNAVAILABLE"


class NotBuilt(LabanError):
    """Reserved in the schema, not served yet."""

    status = "UNIMPLEMENTED"


class Cancelled(LabanError):
    status = "CANCELLED"


class UnsupportedModel(LabanError):
    """The model cannot be served, and why."""

    status = "FAILED_PRECONDITION"
