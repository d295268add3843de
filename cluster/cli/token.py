"""`laban token`: make a token, and write its hash down."""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import Namespace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from laban.actors.errors import Conflict, InvalidInput
from laban.cluster import tokens
from laban.cluster.tokens import TokenEntry, TokensFile

MAX_DAYS = 36_500


def new_token(arguments: Namespace) -> int:
    """The token alone goes to stdout, so that a script can take it.

    Raises InvalidInput naming the flag, Conflict for a name that the file has already."""
    expires = None
    if arguments.days is not None:
        if not 0 < arguments.days <= MAX_DAYS:
            raise InvalidInput(f"expected more than 0, at most {MAX_DAYS}", field="--days", value=arguments.days)
        expires = (datetime.now(UTC) + timedelta(days=arguments.days)).replace(microsecond=0)
    token = tokens.new_token()
    roles = tuple(role.strip() for role in arguments.roles.split(","))
    entry = tokens.new_entry(token, arguments.name, arguments.tenant, roles, expires, arguments.fidelity)
    if arguments.file is None:
        print("# add this to the file that auth.tokens_file names:", file=sys.stderr)
        print(_yaml(TokensFile(tokens=(entry,))), end="", file=sys.stderr)
    else:
        _add(Path(arguments.file).expanduser(), entry)
        print(
            f"added {entry.name} of tenant {entry.tenant} to {arguments.file}; the token, shown once:", file=sys.stderr
        )
    print(token)
    return 0


def _add(path: Path, entry: TokenEntry) -> None:
    """Written whole and put in place: a server that reads the file meanwhile never sees half of it."""
    file = tokens.read_tokens(path) if path.exists() else TokensFile()
    if any(other.name == entry.name for other in file.tokens):
        raise Conflict(f"{path} has a token of this name, expected another", field="NAME", value=entry.name)
    text = _yaml(file.model_copy(update={"tokens": (*file.tokens, entry)}))
    path = path.resolve()  # behind a link, if it is one
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    except OSError as error:
        raise InvalidInput(f"cannot be written ({error.strerror})", field="--file", value=str(path)) from None
    with os.fdopen(number, "w", encoding="utf-8") as written:  # mkstemp's mode: for its owner alone
        written.write(text)
    os.replace(name, path)


def _yaml(file: TokensFile) -> str:
    data = file.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=200)
