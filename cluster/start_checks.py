"""What a configuration asks for that only a start can tell: policies of a user's own, folders and files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from laban.actors.disk_folder import prepare_disk_folder
from laban.actors.errors import InvalidInput
from laban.cluster.config import LabanConfig, ServerSection
from laban.cluster.config_grants import with_texts
from laban.cluster.journal_place import checked_url
from laban.cluster.routing.policies import load_routing
from laban.cluster.tls import check_peer_tls, check_server_tls
from laban.cluster.tokens import read_tokens
from laban.kvstore.eviction import load_policy


def checked(config: LabanConfig) -> LabanConfig:
    """The configuration, its paths made absolute and granted texts read, as the processes to be started may have other
    working folders.

    Raises InvalidInput for a policy that cannot be loaded, a folder or file that cannot be made here, and NotFound or
    InvalidInput for certificates, tokens and granted texts.
    """
    # Workers and the control plane have it on their path too: Ray sees to that.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    _check_policy("cache.eviction", config.cache.eviction, load_policy)
    _check_policy("routing.policy", config.routing.policy, load_routing)
    server = _absolute_tls(config.server)
    if server.tls is not None and server.peer_tls is not None:
        check_server_tls(server.tls)
        check_peer_tls(server.peer_tls)
    tokens = config.auth.tokens_file
    if tokens is not None:
        tokens = _absolute(tokens)
        read_tokens(tokens)
    folder, record = config.cache.disk_folder, config.routing.record
    if folder is not None:
        folder = _absolute(folder)
        if config.ray.address is None:  # elsewhere only the workers can tell, and do
            prepare_disk_folder(folder)
    if record is not None:
        record = _absolute(record)
        if config.ray.address is None:
            _check_file("routing.record", record)
    journal = checked_url(config.journal.url)
    if journal is not None and config.ray.address is None:
        _check_journal(journal)
    return config.model_copy(
        update={
            "cache": config.cache.model_copy(update={"disk_folder": folder}),
            "routing": config.routing.model_copy(update={"record": record}),
            "journal": config.journal.model_copy(update={"url": journal}),
            "server": server,
            "grants": with_texts(config.grants),
            "auth": config.auth.model_copy(update={"tokens_file": tokens}),
        }
    )


TLS_FILES = ("tls_cert", "tls_key", "tls_client_ca", "peer_ca", "peer_cert", "peer_key")


def _absolute_tls(server: ServerSection) -> ServerSection:
    names = {name: getattr(server, name) for name in TLS_FILES}
    return server.model_copy(
        update={name: None if value is None else _absolute(value) for name, value in names.items()}
    )


def worker_folder(folder: str | None, worker_id: str) -> str | None:
    """Where one worker keeps encodings on disk: workers may share a machine, and a worker comes back to its own."""
    return None if folder is None else str(Path(folder) / worker_id)


def _check_policy(field: str, name: str, load: Callable[[str], object]) -> None:
    try:
        load(name)
    except ValueError as error:
        raise InvalidInput(str(error), field=field) from None


def _check_file(field: str, name: str) -> None:
    try:
        open(name, "a").close()
    except OSError as error:
        raise InvalidInput(
            f"cannot be written ({error.strerror}), expected a file in a folder that is there", field=field, value=name
        ) from None


def _check_journal(url: str) -> None:
    """Of a SQLite file: folders that are missing are made later, in the first one that is there."""
    found = re.fullmatch(r"sqlite(\+\w+)?:///(/[^?]+)", url)
    if found is None:
        return
    file = Path(found[2])
    there = next(path for path in (file, *file.parents) if os.path.exists(path))
    if (there != file and not there.is_dir()) or not os.access(there, os.W_OK):
        why = f"the journal cannot be written there: {there} is no folder that this user may write to"
        raise InvalidInput(why, field="journal.url", value=url)


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().absolute())
