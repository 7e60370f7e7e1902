"""The overlays: kustomize builds them, they match the schemas, and they agree with the server.

Not tested, since it needs a cluster: scheduling, the kubelet's probes, the autoscaler.
"""

import re
import shutil
import subprocess
import sys

import pytest
import yaml

from serving import Client
from serving.cli.commands import parser
from tests.deploy.conftest import ROOT, needed
from tests.support.processes import is_serving
from tests.support.servers import started

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "cuda", "mesh")
MODELS = ("model-volume", "model-image", "model-download")
COMPONENTS = (*MODELS, "gateway")
OF_OPERATORS = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds that Kubernetes's own schemas do not know."""
OF_THE_GATEWAY_API = {"GRPCRoute", "HTTPRoute"}
VERSION = "1.33"


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
    return objects(path)["Deployment", "digits"]["spec"]["template"]["spec"]


def validate(path):
    """Check a file against the schemas, strictly: the exit code, and the kinds without a schema."""
    python = needed(ROOT / ".venv-edge/bin/python", "make test-deploy")
    command = [str(python), "-m", "kubernetes_validate", "--strict", "-k", VERSION, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    output = done.stdout + done.stderr
    return done.returncode, set(re.findall(r"find schema for kind (\w+)", output))


def test_plain_overlay_needs_no_operator(built):
    path = built("plain")
    assert validate(path) == (0, set())
    assert objects(path)["Deployment", "digits"]["spec"]["replicas"] == 2


@pytest.mark.parametrize("components", [(), *((name,) for name in COMPONENTS)], ids=str)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_fits_the_schemas(built, overlay, components):
    more = OF_THE_GATEWAY_API if "gateway" in components else set()
    assert validate(built(overlay, *components)) == (0, OF_OPERATORS | more)


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
    labels = found["Deployment", "digits"]["spec"]["template"]["metadata"]["labels"]
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
            service = found["Service", "digits"]
            assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            names = {port["name"] for port in service["spec"]["ports"]}
            assert {point["port"] for point in spec["endpoints"]} <= names


def test_headless_service_is_headless_but_in_a_mesh(built):
    addresses = [
        objects(built(overlay))["Service", "digits"]["spec"].get("clusterIP")
        for overlay in OVERLAYS
    ]
    assert addresses == ["None", "None", None]


def test_pod_outlives_its_drain(built):
    spec = pod(built("cpu"))
    drain = next(int(each["value"]) for each in spec["containers"][0]["env"]
                 if each["name"] == "SERVING_DRAIN")  # fmt: skip
    before = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > before + drain


def test_autoscalers_read_what_a_rule_records(built, tmp_path):
    found = objects(built("cpu"))
    groups = found["PrometheusRule", "digits"]["spec"]["groups"]
    recorded, *_ = [rule["record"] for group in groups for rule in group["rules"]
                    if "record" in rule]  # fmt: skip
    triggers = found["ScaledObject", "digits"]["spec"]["triggers"]
    queries = [each["metadata"]["query"] for each in triggers]
    assert [recorded in query for query in queries] == [True, False]
    path = FOLDER / "adapter" / "autoscaler.yaml"
    assert validate(path) == (0, set())
    metrics = objects(path)["HorizontalPodAutoscaler", "digits"]["spec"]["metrics"]
    assert metrics[0]["pods"]["metric"]["name"] == recorded


def test_rules_are_those_that_are_tested(built):
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    assert objects(built("cpu"))["PrometheusRule", "digits"]["spec"] == rules


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("component", MODELS)
def test_settings_are_options_of_the_server(built, overlay, component):
    env = {each["name"]: each.get("value") for each in container(built(overlay, component))["env"]}
    assert env.pop("SERVING_TOKEN") is None
    flags = [f"--{name.removeprefix('DIGITS_').lower().replace('_', '-')}={value}"
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
        with Client(server.address, token="token-0123456789abcdef") as client:
            assert len(client.classify(images[:2])) == 2
        assert server.stop() == 0
