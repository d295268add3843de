"""Values against their schema, and the chart against the rest of the repository. Needs no helm."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml
from helm_chart import CHART, ROOT, SETS, VALUES, WRONG, Document, merged

from laban.cluster.config import LabanConfig, resolve

DEFAULTS: Document = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: Document = json.loads((CHART / "values.schema.json").read_text())
TEMPLATES = {path.name: path.read_text() for path in (CHART / "templates").iterdir()}


def errors(values: Document) -> str:
    found = jsonschema.Draft7Validator(SCHEMA).iter_errors(values)
    return "\n".join(f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found)


def values_of(name: str) -> Document:
    return merged(DEFAULTS, yaml.safe_load((VALUES / f"{name}.yaml").read_text()))


def test_the_schema_is_that_of_the_configuration():
    done = subprocess.run([sys.executable, str(ROOT / "helm" / "schema.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_schema_is_one():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]["config"]["properties"]) == set(LabanConfig.model_fields)


@pytest.mark.parametrize("name", SETS)
def test_good_values_pass(name):
    assert errors(values_of(name)) == ""


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_by_name(name):
    text, field = WRONG[name]
    assert field in errors(merged(values_of("minimal"), yaml.safe_load(text)))


@pytest.mark.parametrize("name", SETS)
def test_laban_takes_the_configuration(name, tmp_path):
    file = tmp_path / "laban.yaml"
    file.write_text(yaml.safe_dump(values_of(name)["config"]))
    resolve(file, environment={})


def test_every_default_value_is_known_to_the_schema_and_used():
    unknown = errors(merged(DEFAULTS, {"image": {"repository": "laban", "tag": "1"}}))
    assert unknown == ""
    text = "\n".join(TEMPLATES.values())
    unused = [key for key in DEFAULTS if f".Values.{key}" not in text]
    assert unused == []


def test_ray_is_the_version_that_the_image_installs():
    (version,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints-cpu.txt").read_text(), re.MULTILINE)
    assert DEFAULTS["ray"]["version"] == version


def test_every_port_is_declared_in_the_policies_and_in_containers():
    ports = DEFAULTS["ray"]["ports"]
    singles = [name for name, port in ports.items() if isinstance(port, int)]
    containers = TEMPLATES["raycluster.yaml"] + TEMPLATES["_ray.tpl"]
    for name in singles:
        assert f"containerPort: {{{{ int .{name} }}}}" in containers or (
            f"containerPort: {{{{ int .Values.ray.ports.{name} }}}}" in containers
        ), name
    for name in ports:
        assert f"$ports.{name}" in TEMPLATES["networkpolicy.yaml"], name


def test_ports_do_not_overlap():
    """The kernel would give a process one that another is about to take."""
    config, ports = DEFAULTS["config"], DEFAULTS["ray"]["ports"]
    singles = [port for port in ports.values() if isinstance(port, int)]
    singles += [config["server"]["port"], config["metrics"]["port"]]
    ranges = [range(port["first"], port["last"] + 1) for port in ports.values() if isinstance(port, dict)]
    assert len(set(singles)) == len(singles)
    assert not [port for port in singles if any(port in each for each in ranges)]
    assert not set(ranges[0]) & set(ranges[1])


def test_the_chart_knows_how_long_a_server_drains_by_itself():
    assert f"$drain := {LabanConfig().server.drain_s}" in TEMPLATES["checks.yaml"]


def test_the_pods_see_no_service_links():
    """Laban refuses LABAN_ variables that it does not know, and Kubernetes makes such for every Service."""
    assert "enableServiceLinks: false" in TEMPLATES["_helpers.tpl"]
