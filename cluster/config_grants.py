"""Messages that several tenants may share, as the configuration declares them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.tokens import TENANT_PATTERN

MAX_GRANTS = 64
MAX_GRANTED = 16  # messages of one grant
MAX_CHARS = 1_000_000
ALL: Literal["all"] = "all"

GrantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class GrantedMessage(BaseModel):
    """One message, as it stands in the conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"] = Field(default="system", description="whose message it is")
    text: str | None = Field(default=None, max_length=MAX_CHARS, description="the text, to the letter; or `file`")
    file: str | None = Field(default=None, min_length=1, description="whose whole content is the text")
    name: str | None = Field(default=None, min_length=1, description="the speaker's, where the message has one")

    @model_validator(mode="after")
    def _one_text(self) -> GrantedMessage:
        if (self.text is None) == (self.file is None):
            raise ValueError("expected either text or file")
        return self


class GrantSection(BaseModel):
    """Messages that open a conversation, whose encodings these tenants have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[GrantedMessage, ...] = Field(
        min_length=1,
        max_length=MAX_GRANTED,
        description="in their order, from the very first: role, text or file, name",
    )
    tenants: tuple[str, ...] | Literal["all"] = Field(description="all, or a list of their names")
    model: str | None = Field(default=None, description="of `models`, the one that reads them; null: the default")
    adapters: tuple[str, ...] = Field(default=(), description="of the model, under which they are shared, too")

    @field_validator("tenants", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if value == ALL:
            return value
        if not isinstance(value, list | tuple) or not value:
            raise ValueError("expected all, or a list of tenants")
        for each in value:
            if not isinstance(each, str) or not re.fullmatch(TENANT_PATTERN, each):
                raise ValueError(f"{each!r} is not a tenant's name, expected lower-case letters, digits and -")
        return tuple(value)

    def includes(self, tenant: str) -> bool:
        return self.tenants == ALL or tenant in self.tenants


def with_texts(grants: Mapping[str, GrantSection]) -> dict[str, GrantSection]:
    """The grants with their files' texts in the files' places. Raises NotFound, or InvalidInput for what is no text."""
    return {
        name: grant.model_copy(
            update={
                "messages": tuple(
                    _with_text(message, f"grants.{name}.messages.{number}.file")
                    for number, message in enumerate(grant.messages)
                )
            }
        )
        for name, grant in grants.items()
    }


def _with_text(message: GrantedMessage, field: str) -> GrantedMessage:
    if message.file is None:
        return message
    path = Path(message.file).expanduser()
    try:
        with path.open(encoding="utf-8", newline="") as file:  # to the letter: ends of lines as they are
            text = file.read(MAX_CHARS + 1)
    except FileNotFoundError:
        raise NotFound("the file does not exist", field=field, value=str(path)) from None
    except OSError as error:
        raise InvalidInput(f"cannot be read ({error.strerror})", field=field, value=str(path)) from None
    except UnicodeDecodeError:
        raise InvalidInput("is not UTF-8 text", field=field, value=str(path)) from None
    if len(text) > MAX_CHARS:
        raise InvalidInput(f"expected at most {MAX_CHARS} characters", field=field, value=str(path))
    return message.model_copy(update={"text": text, "file": None})
