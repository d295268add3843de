"""What a command's flags mean to the cluster that it starts, and what the fields of errors are called as flags."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from laban.actors.errors import InvalidInput
from laban.cluster.cli.files import parse_adapters

if TYPE_CHECKING:
    from laban.cluster.config import Resolved
    from laban.cluster.workflow.diagnostics import Diagnostic

FLAGS = {
    "model": "model",
    "workers": "workers",
    "server.host": "server_host",
    "server.port": "server_port",
    "http.port": "http_port",
    "routing.policy": "routing",
    "routing.record": "record",
    "cache.eviction": "eviction",
    "cache.transport": "transport",
    "cache.host_bytes": "host_bytes",
    "cache.disk_folder": "disk_folder",
    "cache.disk_bytes": "disk_bytes",
}
"""The settings that have a flag, and its name among the arguments."""
OF_A_CLUSTER = {
    "config": "--config", "model": "--model", "workers": "--workers", "adapters": "--adapter", "routing": "--routing",
    "eviction": "--eviction", "transport": "--transport", "host_bytes": "--host-bytes",
    "disk_folder": "--disk-folder", "disk_bytes": "--disk-bytes", "record": "--record",
}  # fmt: skip
"""Arguments that are about a cluster to be started, and their flags."""
OVERRIDES = {"fidelity": "--fidelity", "tolerance": "--tolerance", "seed": "--seed"}


def configuration(arguments: Namespace) -> Resolved:
    """From the file, the environment and the flags."""
    from laban.cluster.config import resolve

    flags = {key: getattr(arguments, attribute, None) for key, attribute in FLAGS.items()}
    flags["adapters"] = parse_adapters(getattr(arguments, "adapters", None) or [])
    return resolve(arguments.config, flags=flags)


def check_one_cluster(arguments: Namespace, also_local: Collection[str] = ()) -> None:
    """Refuse flags of a cluster to be started beside the --address of one that is there. Arguments that are
    `also_local` mean something to the command itself. Raises InvalidInput naming the flag."""
    if arguments.address is None:
        return
    for name, flag in OF_A_CLUSTER.items():
        value = getattr(arguments, name)
        if value and name not in also_local:
            shown = value[0] if isinstance(value, list) else value
            raise InvalidInput(
                "is for a cluster that is started here, not for the one at --address: give it to `laban serve`, "
                "or leave --address out", field=flag, value=shown,
            )  # fmt: skip


def flag_of(path: str) -> str:
    """What a field of a submission is called on the command line.

    >>> flag_of("overrides.answer[bob,2].max_tokens"), flag_of("overrides.seed"), flag_of("steps[0].read")
    ('--set answer[bob,2].max_tokens', '--seed', 'steps[0].read')
    """
    head, _, rest = path.partition(".")
    if head == "overrides" and rest:
        return OVERRIDES.get(rest, f"--set {rest}")
    return f"--input {rest}" if head == "inputs" and rest else path


def as_flag(diagnostic: Diagnostic) -> Diagnostic:
    """What is wrong with a flag is said of the flag, what stands in a file of its place there."""
    return diagnostic if diagnostic.line else replace(diagnostic, path=flag_of(diagnostic.path))
