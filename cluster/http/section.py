"""The HTTP endpoint in the configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class HttpSection(BaseModel):
    """OpenAI's API over HTTP: /v1/chat/completions, /v1/models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="the address to listen on")
    port: int | None = Field(
        default=8471,
        ge=0,
        le=65_535,
        description="0: a free one; null: none; unless it is set, a free one if taken; TLS and limits are server's",
    )
