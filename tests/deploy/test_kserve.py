"""KServe's objects: their containers are Kubernetes's, and the services fit the runtimes.

No cluster runs here. KServe's client against our server is in tests/interop.
"""

import pytest
import yaml

from serving.cli.commands import parser
from tests.deploy.conftest import ROOT
from tests.deploy.test_kubernetes import validate

FOLDER = ROOT / "deploy" / "kserve"


def read(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


RUNTIMES, SERVICES = read("runtimes.yaml"), read("inference-services.yaml")


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda each: each["metadata"]["name"])
def test_container_is_kubernetes(runtime, tmp_path):
    spec = {"containers": runtime["spec"]["containers"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "digits"}, "spec": spec}
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(pod))
    assert validate(path) == (0, set())
    parser().parse_args(["serve", *spec["containers"][0]["args"]])  # else exits


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
