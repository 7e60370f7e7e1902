"""KServe's objects: their fields are those of its own classes, their containers Kubernetes's.

No cluster runs here. KServe's client against our server is in tests/interop.
"""

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.cli.arguments import parser
from tests.deploy.conftest import ROOT, unavailable
from tests.deploy.test_kubernetes import validate

FOLDER = ROOT / "deploy" / "kserve"
PACKAGE = "kserve==0.21.0"
Fields = dict[str, dict[str, str]]
"""Of each class: the type of each of its fields, by the name that files have."""


def read(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


RUNTIMES, SERVICES = read("runtimes.yaml"), read("inference-services.yaml")


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Fields:
    """The definitions of objects in KServe's wheel, read without importing it."""
    folder = tmp_path_factory.mktemp("kserve")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        unavailable(f"{PACKAGE} can't be downloaded: {done.stderr}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        models = [name for name in wheel.namelist() if name.startswith("kserve/models/v1")]
        return {
            name: types for path in models for name, types in _classes(wheel.read(path).decode())
        }


def _classes(source: str) -> Iterator[tuple[str, dict[str, str]]]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            tables = {
                target.id: ast.literal_eval(each.value)
                for each in node.body
                if isinstance(each, ast.Assign) and isinstance(target := each.targets[0], ast.Name)
            }
            types = tables["openapi_types"]
            yield node.name, {key: types[name] for name, key in tables["attribute_map"].items()}


def unknown(found: Any, kind: str, fields: Fields, path: str = "") -> Iterator[str]:
    """Give the fields that KServe's class does not have, at any depth."""
    if kind.startswith("list[") and isinstance(found, list):
        for each in found:
            yield from unknown(each, kind[5:-1], fields, path)
    elif kind in fields:
        for name, value in found.items():
            if name not in fields[kind]:
                yield f"{path}.{name}"
            else:
                yield from unknown(value, fields[kind][name], fields, f"{path}.{name}")
    elif kind in ("str", "int", "bool") and type(found).__name__ != kind:
        yield f"{path}: not {kind}"


@pytest.mark.parametrize("each", [*RUNTIMES, *SERVICES], ids=lambda each: each["metadata"]["name"])
def test_fields_are_kserves(fields: Fields, each: Any) -> None:
    version = each["apiVersion"].partition("/")[2]
    kind = f"V{version[1:]}{each['kind']}"
    assert not [*unknown(each, kind, fields)]
    each = {**each, "spec": {**each["spec"], "containerz": []}}
    assert [*unknown(each, kind, fields)] == [".spec.containerz"]


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda each: each["metadata"]["name"])
def test_container_is_kubernetes(runtime: Any, tmp_path: Path) -> None:
    spec = {"containers": runtime["spec"]["containers"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "digits"}, "spec": spec}
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(pod))
    assert validate(path) == (0, set())
    parser().parse_args(["serve", *spec["containers"][0]["args"]])  # else exits


def test_each_service_has_a_runtime_that_speaks_its_protocol() -> None:
    runtimes = {each["metadata"]["name"]: each["spec"] for each in RUNTIMES}
    for service in SERVICES:
        model = service["spec"]["predictor"]["model"]
        runtime = runtimes[model["runtime"]]
        assert model["protocolVersion"] in runtime["protocolVersions"]
        names = {each["name"] for each in runtime["supportedModelFormats"]}
        assert model["modelFormat"]["name"] in names
    assert len(runtimes) == len(SERVICES) == 2


def test_ports_are_the_images() -> None:
    image = (ROOT / "Containerfile").read_text()
    ports = [
        port["containerPort"]
        for each in RUNTIMES
        for port in each["spec"]["containers"][0]["ports"]
    ]
    assert ports == [50051, 8080]
    assert all(f"EXPOSE {port}\n" in image for port in ports)
