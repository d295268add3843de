"""What Helm makes of the chart."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
import yaml
from helm_chart import CHART, MISSING, SETS, VALUES, WRONG, containers, find_helm, helm, of_kind, pods, render, the

from laban.cluster.config import resolve

pytestmark = pytest.mark.skipif(find_helm() is None, reason=MISSING)

CUSTOM = ("RayCluster", "PodMonitor", "ServiceMonitor", "PrometheusRule", "GRPCRoute")
"""Kinds that Kubernetes itself does not know."""
RAY_FIELDS = {
    "": {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "gcsFaultToleranceOptions", "headGroupSpec",
         "workerGroupSpecs"},
    "autoscalerOptions": {"version", "idleTimeoutSeconds", "imagePullPolicy", "env", "resources", "securityContext",
                          "volumeMounts"},
    "gcsFaultToleranceOptions": {"redisAddress", "redisPassword", "externalStorageNamespace"},
    "headGroupSpec": {"rayStartParams", "template"},
}  # fmt: skip
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
RAY_FLAGS = {"node-manager-port", "object-manager-port", "runtime-env-agent-port", "dashboard-agent-grpc-port",
             "dashboard-agent-listen-port", "metrics-export-port"}  # fmt: skip
HEAD_FLAGS = {"port", "ray-client-server-port", "dashboard-port"}
KUBERNETES = "1.30"


@pytest.mark.parametrize("name", SETS)
def test_lint(name):
    done = helm("lint", "--strict", str(CHART), "-f", str(VALUES / f"{name}.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SETS)
def test_kubernetes_takes_every_object(name):
    validate = pytest.importorskip("kubernetes_validate", reason="`make helm-test` installs kubernetes-validate")
    for document in render(name):
        if document["kind"] not in CUSTOM:
            validate.validate(document, KUBERNETES, strict=True)
    for component, pod in pods(name).items():
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": component}, "spec": pod["spec"]}
        validate.validate(whole, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", SETS)
def test_kuberay_knows_every_field_of_the_cluster(name):
    spec = the(name, "RayCluster")["spec"]
    for path, known in RAY_FIELDS.items():
        assert set(spec.get(path, {}) if path else spec) <= known
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= GROUP_FIELDS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert all(isinstance(value, str) for value in spec["headGroupSpec"]["rayStartParams"].values())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_by_name(name, tmp_path):
    text, field = WRONG[name]
    file = tmp_path / "values.yaml"
    file.write_text(text)
    done = helm("template", "test", str(CHART), "-f", str(VALUES / "minimal.yaml"), "-f", str(file))
    assert done.returncode
    assert field in done.stderr


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ("config: {workers: 9}", "config.workers"),
        ("config: {engine: {shards: 8}}", "config.engine.shards"),
        ("config: {models: {a: {}}}", "config.model and config.models"),
        (
            "ray: {workerGroups: [{name: g, minReplicas: 1, maxReplicas: 1, gpus: 1, cpus: 1, memory: 1Gi, "
            "objectStore: 1Gi, stopSeconds: 1, models: [a]}]}",
            "config.models does not have",
        ),
        (
            "config: {model: null, models: {a: {workers: 2}}}\nray: {workerGroups: [{name: g, minReplicas: 1, "
            "maxReplicas: 1, gpus: 1, cpus: 1, memory: 1Gi, objectStore: 1Gi, stopSeconds: 1, models: [a]}]}",
            "its model a needs 2",
        ),
        ("secrets: {tlsClients: true}", "secrets.tls"),
        ("secrets: {tlsPeers: a}", "secrets.tls"),
        ("model: {download: {repository: org/model, revision: abc}}", "model.volume.claim"),
        ("model: {volume: {size: 9Gi}, download: {repository: org/model, revision: abc}}", "config.model"),
        ("config: {server: {drain_s: 60}}", "gateway.stopSeconds"),
        ("gateway: {stopSeconds: 10}", "gateway.stopSeconds"),  # as long as Laban may take unless it is told otherwise
        ("config: {server: {port: 9464}}", "config.metrics.port and config.server.port"),
        ("ray: {ports: {gcs: 20000}}", "ray.ports.gcs lies in ray.ports.processes"),
        ("fullnameOverride: '1a'", "cannot be a Service's name"),
        ("{ingress: {enabled: true, host: a}, grpcRoute: {enabled: true, parentRefs: [{name: a}]}}", "one of the two"),
    ],
)
def test_values_that_do_not_go_together_are_refused(values, named, tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text(values)
    done = helm("template", "test", str(CHART), "-f", str(VALUES / "minimal.yaml"), "-f", str(file))
    assert done.returncode
    assert named in done.stderr


@pytest.mark.parametrize("name", SETS)
def test_budgets_are_of_a_kind_that_kubernetes_can_count(name):
    """Of pods whose controller has no subresource `scale`, as a RayCluster's, a number that stay, and nothing else:
    with another budget no pod may go, and a drain of its node waits for ever."""
    groups = the(name, "RayCluster")["spec"]["workerGroupSpecs"]
    found = of_kind(name, "PodDisruptionBudget")
    budgets = {each["metadata"]["name"].rpartition("-")[2]: each["spec"] for each in found}
    if budgets:
        assert set(budgets) == {"worker", "gateway"}
        assert "maxUnavailable" not in budgets["worker"]
        assert budgets["worker"]["minAvailable"] == max(0, sum(group["minReplicas"] for group in groups) - 1)


def test_a_budget_of_the_head_is_there_if_asked_for(tmp_path):
    found = rendered("podDisruptionBudget: {workers: {minAvailable: 3}, head: {minAvailable: 1}}", tmp_path)
    budgets = [each for each in found if each["kind"] == "PodDisruptionBudget"]
    wanted = {"test-laban-worker": 3, "test-laban-gateway": None, "test-laban-head": 1}
    assert {each["metadata"]["name"]: each["spec"].get("minAvailable") for each in budgets} == wanted


@pytest.mark.parametrize("release", ["true", "on", "e1", "a" * 53])
def test_labels_are_texts_whatever_the_release_is_called(release, tmp_path):
    for each in rendered("nameOverride: '12'", tmp_path, release):
        assert all(isinstance(value, str) and len(value) <= 63 for value in each["metadata"]["labels"].values())
        assert len(each["metadata"]["name"]) <= 63


def test_an_ingress_may_be_of_a_wildcard(tmp_path):
    found = rendered("ingress: {enabled: true, host: '*.example.org', tlsSecret: a}", tmp_path)
    (ingress,) = (each for each in found if each["kind"] == "Ingress")
    assert ingress["spec"]["rules"][0]["host"] == ingress["spec"]["tls"][0]["hosts"][0] == "*.example.org"


def rendered(values: str, folder: Any, release: str = "test") -> list[Any]:
    file = folder / "values.yaml"
    file.write_text(values)
    done = helm("template", release, str(CHART), "-f", str(VALUES / "minimal.yaml"), "-f", str(file))
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.mark.parametrize("name", SETS)
def test_laban_takes_the_configuration_as_rendered(name, tmp_path):
    file = tmp_path / "laban.yaml"
    file.write_text(the(name, "ConfigMap", "-config")["data"]["laban.yaml"])
    config = resolve(file, environment={}).config
    assert (config.server.host, config.metrics.host, config.ray.address) == ("0.0.0.0", "0.0.0.0", "auto")


def test_workers_of_a_model_run_in_the_group_that_names_it():
    config = yaml.safe_load(the("models", "ConfigMap", "-config")["data"]["laban.yaml"])
    wanted = {name: model["resource"] for name, model in config["models"].items()}
    assert wanted == {"large": "laban-h200", "small": "laban-h100"}
    for group in the("models", "RayCluster")["spec"]["workerGroupSpecs"]:
        # KubeRay puts it on a command line as it is: JSON in single quotes' stead has quotes of its own.
        offered = json.loads(json.loads(group["rayStartParams"]["resources"].strip("'")))
        assert offered == {f"laban-{group['groupName']}": 1000}
    assert "--wait-for 6 --of GPU" in "".join(pods("models")["gateway"]["spec"]["containers"][0]["command"])
    assert "resources" not in the("gpu", "RayCluster")["spec"]["workerGroupSpecs"][0]["rayStartParams"]


def test_what_follows_from_the_rest_is_set(tmp_path):
    def config(name: str) -> Any:
        return yaml.safe_load(the(name, "ConfigMap", "-config")["data"]["laban.yaml"])

    assert config("minimal")["journal"]["url"] == "sqlite:////var/lib/laban/journal.db"
    assert config("cpu")["engine"]["num_threads"] == 4
    assert config("minimal")["limits"] == {"start_timeout_s": 1800}
    sharded = config("sharded")
    assert "url" not in sharded.get("journal", {})
    assert sharded["server"]["tls_client_ca"] == "/etc/laban/tls/ca.crt"
    assert sharded["server"]["peer_ca"] == "/etc/laban/peers/ca.crt"
    assert sharded["auth"]["tokens_file"] == "/etc/laban/tokens/tokens.yaml"


@pytest.mark.parametrize("name", SETS)
def test_every_port_is_in_its_container_its_service_and_the_policy(name):
    cluster = the(name, "RayCluster")["spec"]
    config = yaml.safe_load(the(name, "ConfigMap", "-config")["data"]["laban.yaml"])
    gateway = pods(name)["gateway"]
    listening = {
        "head": flagged(cluster["headGroupSpec"]["rayStartParams"], RAY_FLAGS | HEAD_FLAGS)
        | {int(env(pods(name)["head"], key)) for key in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")},
        "gateway": flagged(started(gateway), RAY_FLAGS)
        | {config[section]["port"] for section in ("server", "http", "metrics")},
    }
    for group in cluster["workerGroupSpecs"]:
        listening["worker"] = flagged(group["rayStartParams"], RAY_FLAGS)
    for component, ports in listening.items():
        (container,) = pods(name)[component]["spec"]["containers"]
        assert {port["containerPort"] for port in container["ports"]} == ports
    # KubeRay makes the head's Service of its container's ports; workers are known by their addresses.
    service = the(name, "Service", "-headless")["spec"]["ports"]
    names = {port["name"]: port["containerPort"] for port in gateway["spec"]["containers"][0]["ports"]}
    assert {names[port["targetPort"]] for port in service} == listening["gateway"]
    assert [names[port["targetPort"]] for port in the(name, "Service", "-gateway")["spec"]["ports"]] == [
        config["server"]["port"],
        config["http"]["port"],
    ]
    if not of_kind(name, "NetworkPolicy"):
        return
    for component, ports in listening.items():
        open_ports = allowed(name, component)
        assert all(any(port in each for each in open_ports) for port in ports), component
    for parameters in (cluster["headGroupSpec"]["rayStartParams"], started(gateway)):
        actors = range(int(parameters["min-worker-port"]), int(parameters["max-worker-port"]) + 1)
        assert actors in allowed(name, "worker")
    for component, pod in pods(name).items():
        if component != "download":  # which listens nowhere
            (sysctl,) = pod["spec"]["securityContext"]["sysctls"]
            first, last = map(int, sysctl["value"].split())
            assert range(first, last + 1) in allowed(name, component)


@pytest.mark.parametrize("name", SETS)
def test_probes_name_ports_that_are_there(name):
    for pod in pods(name).values():
        for container in pod["spec"]["containers"]:
            ports = {port["name"] for port in container.get("ports", ())}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert not ports or container[probe]["httpGet"]["port"] in ports


@pytest.mark.parametrize("name", SETS)
def test_pods_are_nobody_and_write_nowhere(name):
    for component, pod in pods(name).items():
        spec = pod["spec"]
        assert spec["enableServiceLinks"] is False
        scales = component == "head" and the(name, "RayCluster")["spec"]["enableInTreeAutoscaling"]
        assert spec["automountServiceAccountToken"] is scales
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "requests" in container["resources"]
            assert container["image"].startswith("laban")
            assert ":" in container["image"]


@pytest.mark.parametrize("name", SETS)
def test_models_are_read_only_but_for_the_download(name):
    for component, pod in pods(name).items():
        mounts = [mount for each in containers(pod) for mount in each["volumeMounts"] if mount["name"] == "models"]
        assert all(mount.get("readOnly", False) is (component != "download") for mount in mounts)


def test_a_fleet_on_cpus_asks_for_no_gpu():
    done = helm("template", "test", str(CHART), "-f", str(VALUES / "minimal.yaml"), "--set", "config.engine.device=cpu")
    assert done.returncode == 0, done.stderr
    assert "nvidia.com/gpu:" not in done.stdout
    assert "--of CPU" in done.stdout


def test_secrets_are_named_and_never_made():
    assert not of_kind("sharded", "Secret")
    assert env(pods("sharded")["gateway"], "LABAN_JOURNAL_URL") == {"name": "laban-journal", "key": "url"}
    assert env(pods("sharded")["worker"], "RAY_AUTH_TOKEN") == {"name": "ray-auth", "key": "auth_token"}


def test_the_gateway_ends_before_it_is_killed():
    spec = pods("minimal")["gateway"]["spec"]
    (container,) = spec["containers"]
    slept = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= slept + 30
    deployment = the("minimal", "Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})


def test_replicas_change_in_place_and_pods_in_a_new_cluster(tmp_path):
    def cluster(values: str) -> str:
        file = tmp_path / "values.yaml"
        file.write_text(values)
        done = helm("template", "test", str(CHART), "-f", str(VALUES / "gpu.yaml"), "-f", str(file))
        assert done.returncode == 0, done.stderr
        documents = [document for document in yaml.safe_load_all(done.stdout) if document]
        (found,) = (document for document in documents if document["kind"] == "RayCluster")
        return found["metadata"]["name"]

    group = yaml.safe_load((VALUES / "gpu.yaml").read_text())["ray"]["workerGroups"][0]
    before = cluster("")
    assert cluster(yaml.safe_dump({"ray": {"workerGroups": [group | {"maxReplicas": 9}]}})) == before
    assert cluster(yaml.safe_dump({"config": {"limits": {"max_attempts": 5}}})) == before
    assert cluster("image: {tag: 0.2.0-cuda}") != before
    assert cluster(yaml.safe_dump({"ray": {"workerGroups": [group | {"memory": "65Gi"}]}})) != before


def test_monitoring_comes_as_it_is_in_the_repository():
    rules = the("sharded", "PrometheusRule")["spec"]
    shipped = (CHART / "alerts" / "laban.rules.yaml").read_text()
    assert rules == yaml.safe_load(shipped.replace("docs/runbooks.md", "https://docs.example.org/runbooks"))
    dashboards = {
        name: text
        for each in of_kind("sharded", "ConfigMap")
        if each["metadata"]["labels"].get("grafana_dashboard") == "1"
        for name, text in each["data"].items()
    }
    assert sorted(dashboards.values()) == sorted(path.read_text() for path in (CHART / "dashboards").glob("*.json"))


def test_a_monitor_finds_the_gateway_once():
    monitor = the("sharded", "PodMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= pods("sharded")["gateway"]["metadata"]["labels"].items()
    wanted = the("gpu", "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    (service,) = (each for each in of_kind("gpu", "Service") if wanted <= each["metadata"]["labels"].items())
    assert "metrics" in {port["name"] for port in service["spec"]["ports"]}


def test_notes_say_how_to_begin_and_what_an_outage_means():
    done = helm("install", "test", str(CHART), "--dry-run=client", "-f", str(VALUES / "minimal.yaml"))
    assert done.returncode == 0, done.stderr
    assert "laban run flow.yaml --address 127.0.0.1:8470" in done.stdout
    assert "When the head dies" in done.stdout
    done = helm("install", "test", str(CHART), "--dry-run=client", "-f", str(VALUES / "sharded.yaml"))
    assert "When the head dies" not in done.stdout


def flagged(parameters: dict[str, str], names: set[str]) -> set[int]:
    return {int(parameters[name]) for name in names}


def started(gateway: Any) -> dict[str, str]:
    """The flags of the gateway's `ray start`."""
    script = gateway["spec"]["containers"][0]["command"][-1].replace("\\\n", " ")
    (line,) = (line for line in script.splitlines() if line.startswith("ray start"))
    return dict(word.removeprefix("--").split("=", 1) for word in shlex.split(line)[2:])


def env(pod: Any, name: str) -> Any:
    (found,) = (each for each in pod["spec"]["containers"][0]["env"] if each["name"] == name)
    return found["value"] if "value" in found else found["valueFrom"]["secretKeyRef"]


def allowed(name: str, component: str) -> list[range]:
    """Ports that some policy lets something reach on a component's pods."""
    labels = pods(name)[component]["metadata"]["labels"]

    def selects(selector: Any) -> bool:
        return selector.get("matchLabels", {}).items() <= labels.items() and all(
            labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ())
        )

    return [
        range(port["port"], port.get("endPort", port["port"]) + 1)
        for policy in of_kind(name, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"])
        for rule in policy["spec"].get("ingress", ())
        for port in rule["ports"]
    ]
