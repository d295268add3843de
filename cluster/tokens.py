"""The tokens file: who may call, hashed, so that the file gives nobody away.

    tokens:
      - {name: nightly, sha256: 9f86d0..., tenant: acme, roles: [submit]}
    tenants:
      acme: {requests_per_s: 50, max_calls: 100, max_workflows: 16, tokens_per_minute: 200000, kv_bytes: 2GiB}

It is read again when it changes, so tokens come and go without a restart. Tokens are random, so one round of SHA-256 is
as good as many.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.callers import ROLES, Caller, Role
from laban.cluster.sizes import MAX_BYTES, Bytes
from laban.cluster.strict_yaml import KeyTwice, load_yaml
from laban.cluster.workflow.fidelity import Fidelity
from laban.cluster.workflow.fidelity import expected as levels_in_words

PREFIX = "laban_"  # so that scanners for leaked secrets know one
NUM_RANDOM_BYTES = 32

TENANT_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Tenant = Annotated[str, StringConstraints(pattern=TENANT_PATTERN)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class TokenEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    sha256: Digest
    tenant: Tenant
    roles: tuple[Role, ...] = Field(min_length=1)
    expires: AwareDatetime | None = None
    fidelity: Fidelity = "exact"  # of chats over HTTP, unless they say otherwise


class Quota(BaseModel):
    """Of one tenant; null: no limit of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_s: float | None = Field(default=None, gt=0, description="gRPC calls; twice as many may come at once")
    max_calls: int | None = Field(default=None, gt=0, description="gRPC and HTTP ones at once, streams included")
    max_workflows: int | None = Field(default=None, gt=0, description="running at once")
    max_sessions: int | None = Field(default=None, gt=0, description="open at once")
    tokens_per_minute: int | None = Field(default=None, gt=0, description="generated and encoded; a minute's at once")
    kv_bytes: Bytes | None = Field(default=None, gt=0, le=MAX_BYTES, description="in all tiers of each worker")


NO_QUOTA = Quota()


class TokensFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[TokenEntry, ...] = ()
    tenants: dict[Tenant, Quota] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _distinct(self) -> TokensFile:
        for what in ("name", "sha256"):
            seen: set[str] = set()
            for number, entry in enumerate(self.tokens):
                value = getattr(entry, what)
                if value in seen:
                    raise ValueError(f"tokens.{number}.{what} is there twice: {value}")
                seen.add(value)
        return self


def read_tokens(path: str | Path) -> TokensFile:
    """Raises NotFound, or InvalidInput naming the place in the file. Never quotes what stands there."""
    try:
        data = load_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound("the tokens file does not exist", field="auth.tokens_file", value=str(path)) from None
    except OSError as error:
        raise InvalidInput(f"cannot be read ({error.strerror})", field="auth.tokens_file", value=str(path)) from None
    except KeyTwice as error:
        why = f"line {error.line}: a key that is there already"
        raise InvalidInput(why, field="auth.tokens_file", value=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)  # what stands there may be a token
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise InvalidInput(f"{where}is not valid YAML", field="auth.tokens_file", value=str(path)) from None
    try:
        return TokensFile.model_validate({} if data is None else data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        why = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidInput(f"{place}: {why}", field="auth.tokens_file", value=str(path)) from None


class TokenBook:
    """What the tokens file says now."""

    def __init__(self, path: str | Path) -> None:
        """Raises what `read_tokens` raises."""
        self._path = Path(path)
        self._kv_bytes: dict[str, int] = {}
        self._stamp = _stamp(self._path)
        self._take(read_tokens(self._path))

    def refresh(self) -> bool:
        """Whether it had changed. Raises what `read_tokens` raises: what was known before then stands."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return False
        self._take(read_tokens(self._path))
        self._stamp = stamp
        return True

    def find(self, token: str, now: datetime | None = None) -> Caller | None:
        """Whose token it is; None for one that is unknown or has expired."""
        digest = hash_token(token)
        entry = self._entries.get(digest)
        if entry is None or not hmac.compare_digest(entry.sha256, digest):
            return None
        if entry.expires is not None and (now or datetime.now(UTC)) >= entry.expires:
            return None
        return Caller(entry.name, entry.tenant, frozenset(entry.roles), fidelity=entry.fidelity)

    def quota(self, tenant: str) -> Quota:
        return self._file.tenants.get(tenant, NO_QUOTA)

    @property
    def kv_bytes(self) -> Mapping[str, int]:
        """Of tenants that have a limit; the same object until that changes."""
        return self._kv_bytes

    def _take(self, file: TokensFile) -> None:
        self._file = file
        kv_bytes = {tenant: quota.kv_bytes for tenant, quota in file.tenants.items() if quota.kv_bytes is not None}
        if kv_bytes != self._kv_bytes:
            self._kv_bytes = kv_bytes
        self._entries = {entry.sha256: entry for entry in file.tokens}


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(NUM_RANDOM_BYTES)


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def new_entry(
    token: str, name: str, tenant: str, roles: tuple[str, ...], expires: datetime | None, fidelity: str = "exact"
) -> TokenEntry:
    """Raises InvalidInput naming the argument."""
    values: dict[str, Any] = {
        "name": name, "sha256": hash_token(token), "tenant": tenant, "roles": roles, "fidelity": fidelity,
    }  # fmt: skip
    try:
        return TokenEntry(**values, expires=expires)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        expected = {
            "name": "letters, digits and ._@-, at most 100",
            "tenant": "lower-case letters, digits and -, at most 63",
            "roles": f"one or more of {', '.join(ROLES)}, with commas between",
            "fidelity": levels_in_words(),
        }.get(field, str(first["msg"]))
        where = "NAME" if field == "name" else f"--{field}"
        raise InvalidInput(f"expected {expected}", field=where, value=values.get(field)) from None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    # Kubernetes swaps a link to bring a new secret in: the file behind it is another one then.
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)
