"""The chart for tests: value sets, and what Helm makes of them."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "laban"
VALUES = ROOT / "tests" / "unit" / "helm" / "values"
SETS = sorted(path.stem for path in VALUES.glob("*.yaml"))
MISSING = "there is no helm on the path or in build/tools: `make helm-test` fetches it"

Document = dict[str, Any]


def find_helm() -> str | None:
    ours = ROOT / "build" / "tools" / "helm"
    return str(ours) if ours.exists() else shutil.which("helm")


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    binary = find_helm()
    assert binary is not None
    return subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=60)


@cache
def render(name: str) -> tuple[Document, ...]:
    done = helm("template", "test", str(CHART), "--namespace", "agents", "-f", str(VALUES / f"{name}.yaml"))
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def of_kind(name: str, kind: str) -> list[Document]:
    return [document for document in render(name) if document["kind"] == kind]


def the(name: str, kind: str, ending: str = "") -> Document:
    (found,) = (document for document in of_kind(name, kind) if document["metadata"]["name"].endswith(ending))
    return found


def pods(name: str) -> dict[str, Document]:
    """The template of every kind of pod, by its component."""
    cluster = the(name, "RayCluster")["spec"]
    found = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    found += [each["spec"]["template"] for kind in ("Deployment", "Job") for each in of_kind(name, kind)]
    return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in found}


def containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def merged(values: Document, changes: Document) -> Document:
    """As Helm lays one values file over another."""
    result = dict(values)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


WRONG: dict[str, tuple[str, str]] = {
    "no image": ("image: {repository: ''}", "repository"),
    "no tag": ("image: {tag: ''}", "tag"),
    "latest": ("image: {tag: latest}", "tag"),
    "a misspelt setting": ("config: {wrokers: 2}", "wrokers"),
    "a misspelt setting of a section": ("config: {engine: {shard: 2}}", "shard"),
    "no worker": ("config: {workers: 0}", "workers"),
    "a word for a number": ("config: {engine: {shards: two}}", "shards"),
    "a size that is none": ("config: {cache: {host_bytes: 4 gigs}}", "host_bytes"),
    "a port that changes": ("config: {server: {port: 0}}", "port"),
    "no metrics, so no health": ("config: {metrics: {port: null}}", "port"),
    "a password in a ConfigMap": ("config: {journal: {url: 'postgresql://me:secret@db/laban'}}", "url"),
    "an unknown device for attention": ("config: {engine: {attention: magic}}", "attention"),
    "an unknown value": ("replicas: 3", "replicas"),
    "memory without a unit": (
        "ray: {workerGroups: [{name: a, minReplicas: 1, maxReplicas: 1, gpus: 1, cpus: 1, memory: 5, objectStore: 1Gi, "
        "stopSeconds: 5}]}",
        "memory",
    ),
    "no worker groups": ("ray: {workerGroups: []}", "workerGroups"),
    "a scrape of another kind": ("monitoring: {scrape: annotations}", "scrape"),
    "an Ingress for no host": ("ingress: {enabled: true}", "host"),
    "a download of whatever is newest": ("model: {download: {repository: org/model}}", "revision"),
    "root": ("runAs: 0", "runAs"),
    "a budget that nothing of a RayCluster is counted by": (
        "podDisruptionBudget: {workers: {maxUnavailable: 1}}",
        "maxUnavailable",
    ),
}
"""Values that are refused, and the field that is named."""
