"""The files of deploy/ agree with the server and each other; `deploy/check` asks their programs.

Not tested, since it needs a cluster: scheduling, the kubelet's probes, the autoscaler, KServe.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from digit_classifier import Classifier
from serving.cli.commands import parser
from tests.deploy.conftest import ROOT
from tests.support.servers import is_serving, started

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "cuda", "mesh")
MODELS = ("model-volume", "model-image", "model-download")
OF_KUBERNETES = {"v1", "apps/v1", "policy/v1", "networking.k8s.io/v1"}
OF_THE_GATEWAY_API = {"GRPCRoute", "HTTPRoute"}


@pytest.fixture(scope="module")
def built(program, tmp_path_factory):
    """Build an overlay, with components more if asked; gives the file."""
    folder = tmp_path_factory.mktemp("kubernetes")
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    kubectl = program("kubectl", "kubernetes-client")

    def build(overlay, *components):
        path = folder / "overlays" / overlay
        if components:
            path = folder / "overlays" / "-".join((overlay, *components))
            path.mkdir(exist_ok=True)
            (path / "kustomization.yaml").write_text(yaml.safe_dump({
                "resources": [f"../{overlay}"],
                "components": [f"../../{component}" for component in components],
            }))  # fmt: skip
        output = path / "objects.yaml"
        output.write_bytes(subprocess.check_output([kubectl, "kustomize", path]))
        return output

    return build


def objects(path):
    found = yaml.safe_load_all(path.read_text())
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def container(path):
    return pod(path)["containers"][0]


def pod(path):
    return objects(path)["Deployment", "digit-serving"]["spec"]["template"]["spec"]


def test_plain_overlay_needs_no_operator(built):
    found = objects(built("plain"))
    assert {each["apiVersion"] for each in found.values()} <= OF_KUBERNETES
    assert found["Deployment", "digit-serving"]["spec"]["replicas"] == 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pod_is_restricted(built, overlay):
    spec = pod(built(overlay))
    context, ours = spec["securityContext"], spec["containers"][0]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert re.search(rf"(?m)^USER {context['runAsUser']}:{context['runAsGroup']}$",
                     (ROOT / "Containerfile").read_text())  # fmt: skip
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert ours == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(spec["containers"][0]["resources"]) == {"requests", "limits"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_and_ports_meet(built, overlay):
    found = objects(built(overlay, "gateway"))
    labels = found["Deployment", "digit-serving"]["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in container(built(overlay))["ports"]}
    for (kind, _), each in found.items():
        spec = each.get("spec", {})
        if kind == "Service":
            assert spec["selector"].items() <= labels.items()
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        if kind == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"].items() <= labels.items()
            assert {port["port"] for rule in spec["ingress"] for port in rule["ports"]} == ports
        if kind == "PodDisruptionBudget":
            assert spec["selector"]["matchLabels"].items() <= labels.items()
        if kind == "ScaledObject":
            assert ("Deployment", spec["scaleTargetRef"]["name"]) in found
        if kind in OF_THE_GATEWAY_API:
            for backend in (each for rule in spec["rules"] for each in rule["backendRefs"]):
                ports_there = found["Service", backend["name"]]["spec"]["ports"]
                assert backend["port"] in {each["port"] for each in ports_there}
        if kind == "ServiceMonitor":
            service = found["Service", "digit-serving"]
            assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            names = {port["name"] for port in service["spec"]["ports"]}
            assert {point["port"] for point in spec["endpoints"]} <= names


def test_headless_service_is_headless_but_in_a_mesh(built):
    addresses = [
        objects(built(overlay))["Service", "digit-serving"]["spec"].get("clusterIP")
        for overlay in OVERLAYS
    ]
    assert addresses == ["None", "None", None]


def test_names_are_of_no_model(built):
    """So that nothing must be renamed for another model; servers go into namespaces."""
    for overlay in OVERLAYS:
        names = {name for kind, name in objects(built(overlay, "gateway")) if kind != "Namespace"}
        assert {name.removesuffix("-grpc").removesuffix("-http") for name in names} == {
            "digit-serving"
        }


def test_pod_outlives_its_drain(built):
    spec = pod(built("cpu"))
    drain = next(int(each["value"]) for each in spec["containers"][0]["env"]
                 if each["name"] == "SERVING_DRAIN")  # fmt: skip
    before = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > before + drain


def test_autoscalers_read_what_a_rule_records(built):
    found = objects(built("cpu"))
    groups = found["PrometheusRule", "digit-serving"]["spec"]["groups"]
    recorded, *_ = [rule["record"] for group in groups for rule in group["rules"]
                    if "record" in rule]  # fmt: skip
    triggers = found["ScaledObject", "digit-serving"]["spec"]["triggers"]
    queries = [each["metadata"]["query"] for each in triggers]
    assert [recorded in query for query in queries] == [True, False]
    path = FOLDER / "adapter" / "autoscaler.yaml"
    metrics = objects(path)["HorizontalPodAutoscaler", "digit-serving"]["spec"]["metrics"]
    assert metrics[0]["pods"]["metric"]["name"] == recorded


def test_rules_are_those_that_are_tested(built):
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    assert objects(built("cpu"))["PrometheusRule", "digit-serving"]["spec"] == rules


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("component", MODELS)
def test_settings_are_options_of_the_server(built, overlay, component):
    env = {each["name"]: each.get("value") for each in container(built(overlay, component))["env"]}
    assert env.pop("SERVING_TOKEN") is None
    flags = [f"--{name.removeprefix('SERVING_').lower().replace('_', '-')}={value}"
             for name, value in env.items()]  # fmt: skip
    assert len(flags) > 3
    parser().parse_args(["serve", *flags])  # else exits


def test_server_with_these_settings_answers_its_probes(built, images, monkeypatch):
    ours = container(built("cpu"))
    for each in ours["env"]:
        monkeypatch.setenv(each["name"], each.get("value", "token-0123456789abcdef"))
    for name in ("PORT", "METRICS_PORT"):
        monkeypatch.setenv(f"SERVING_{name}", "0")
    with started([sys.executable, "-m", "serving", "serve"]) as server:
        assert is_serving(server.address)  # the kubelet's question, without a token
        path = ours["livenessProbe"]["httpGet"]["path"]
        subprocess.check_call(["curl", "-sSf", f"http://{server.facts['metrics']}{path}"])
        with Classifier.connect(server.address, token="token-0123456789abcdef") as client:
            assert len(client.classify(images[:2])) == 2
        assert server.stop() == 0


# KServe's objects: their containers are Kubernetes's, and the services fit the runtimes


RUNTIMES, SERVICES = (
    [*yaml.safe_load_all((ROOT / "deploy" / "kserve" / name).read_text())]
    for name in ("runtimes.yaml", "inference-services.yaml")
)


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda each: each["metadata"]["name"])
def test_arguments_are_options_of_the_server(runtime):
    parser().parse_args(["serve", *runtime["spec"]["containers"][0]["args"]])  # else exits


def test_each_service_has_a_runtime_that_speaks_its_protocol():
    runtimes = {each["metadata"]["name"]: each["spec"] for each in RUNTIMES}
    for service in SERVICES:
        model = service["spec"]["predictor"]["model"]
        runtime = runtimes[model["runtime"]]
        assert model["protocolVersion"] in runtime["protocolVersions"]
        names = {each["name"] for each in runtime["supportedModelFormats"]}
        assert model["modelFormat"]["name"] in names
    assert len(runtimes) == len(SERVICES) == 2


def test_ports_are_the_images():
    image = (ROOT / "Containerfile").read_text()
    ports = [
        port["containerPort"]
        for each in RUNTIMES
        for port in each["spec"]["containers"][0]["ports"]
    ]
    assert ports == [50051, 8080]
    assert all(f"EXPOSE {port}\n" in image for port in ports)


# `deploy/compose.yaml`: all that it mounts and names exists


DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def test_files_that_are_mounted_exist():
    mounts = [mount for service in COMPOSE.values() for mount in service.get("volumes", ())]
    assert len(mounts) == 3
    assert all((DEPLOY / mount.partition(":")[0]).exists() for mount in mounts)
    assert (DEPLOY / COMPOSE["digits"]["build"]["context"] / "Containerfile").exists()


def test_prometheus_scrapes_and_grafana_reads_what_is_there():
    targets = re.findall(r'"(\w+):(\d+)"', (DEPLOY / "prometheus/prometheus.yml").read_text())
    assert targets == [("digits", "9090")]
    assert "EXPOSE 9090" in (ROOT / "Containerfile").read_text()
    source = (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    assert re.findall(r"http://(\w+):9090", source) == ["prometheus"]
    assert {"digits", "prometheus"} < set(COMPOSE)
    provider = (DEPLOY / "grafana/provisioning/dashboards/files.yaml").read_text()
    dashboard = COMPOSE["grafana"]["volumes"][1].split(":")[1]
    assert f"path: {Path(dashboard).parent}}}" in provider


def test_only_loopback_is_published():
    ports = [port for service in COMPOSE.values() for port in service["ports"]]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)
