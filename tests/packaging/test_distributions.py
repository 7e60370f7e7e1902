"""Wheel and sdist as strangers get them: built, checked, and used far from the checkout."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.serving.http.peer import HttpPeer
from tests.serving.model.graphs import two_layers
from tests.support.servers import RunningServer, program

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]

CLIENT = """
import sys
from importlib.metadata import distribution, packages_distributions
import numpy as np
from digit_classifier import Classifier
owned = {name for name, owners in packages_distributions().items() if "digit-serving" in owners}
assert owned == {
    "serving", "digit_classifier", "digit_scoring", "training", "benchmarks"
}, owned
assert "digit-serving" in distribution("digit-serving").entry_points.names
with Classifier.connect(sys.argv[1]) as client:
    assert len(client.classify(np.zeros((3, 784), np.uint8)).digits) == 3
assert not {"onnxruntime", "PIL", "tensorflow"} & set(sys.modules)
"""
STUB = """
import sys
import grpc
from digit_classifier.pb.digits.v1 import digits_pb2, digits_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = digits_pb2_grpc.DigitClassifierStub(channel)
    answer = stub.Classify(digits_pb2.ClassifyRequest(images=bytes(3 * 784)))
assert len(answer.digits) == 3
"""
TRITON = """
import sys
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
x = InferInput("x", [2, 4], "FP32")
x.set_data_from_numpy(np.ones((2, 4), np.float32))
with InferenceServerClient(sys.argv[1]) as client:
    assert client.infer("model", [x]).as_numpy("y").shape == (2, 3)
"""
TRAIN = """
import sys
import numpy as np
from training.__main__ import main
from training.data.mnist import Mnist
with np.load(sys.argv[1]) as arrays:
    sample = Mnist(**arrays)
Mnist.load = lambda data_dir: sample
assert main(["train", "--recipe", "seed", "--epochs", "2"]) == 0
assert main(["export"]) == 0
"""


@dataclass
class Venv:
    """An environment with one installation, used from a folder that is not the checkout."""

    folder: Path
    elsewhere: Path

    def program(self, name):
        return self.folder / "bin" / name

    def run(self, name, *arguments, code=0):
        """Run one of its programs; return its output, with stderr."""
        result = subprocess.run(
            [self.program(name), *arguments], cwd=self.elsewhere, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert result.returncode == code, result.stdout
        return result.stdout

    @contextmanager
    def serving(self, *options):
        """Run its server on free ports; at the end it stops rightly."""
        command: list[str | Path] = [self.program("digit-serving"), "serve", *options]
        command += ["--port=0", "--metrics-port=0"]
        with (
            program(
                command, cwd=self.elsewhere, env=environment(), stdout=subprocess.PIPE
            ) as process,
            closing(process.stdout),
        ):
            server = RunningServer(process, process.stdout.readline())
            yield server
            assert server.stop() == 0


def environment():
    """Return the variables without those that would show our checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="session")
def install(tmp_path_factory):
    def installed(*requirements, python=sys.executable):
        folder = tmp_path_factory.mktemp("packaging")
        venv, elsewhere = Venv(folder / "venv", folder / "elsewhere"), folder / "elsewhere"
        elsewhere.mkdir()
        subprocess.run([python, "-m", "venv", venv.folder], check=True, env=environment())
        venv.run("pip", "--disable-pip-version-check", "install", "-q", *requirements)
        return venv

    return installed


@pytest.fixture(scope="session")
def tools(install):
    return install("build", "twine", "uv", "check-wheel-contents", "check-jsonschema")


@pytest.fixture(scope="session")
def tracked():
    """Every file of the repository, as git lists it."""
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return listing.stdout.splitlines()


@pytest.fixture(scope="session")
def built(tmp_path_factory, tools, tracked):
    """The folder of the sdist, and of the wheel that was built from it."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    tools.run("python", "-m", "build", "--outdir", source / "dist", source)
    return source / "dist"


@pytest.fixture(scope="session")
def wheel(built):
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="session", params=("3.11", "3.12", "3.13", "3.14"))
def python(request):
    """Each interpreter that the README names and this machine has."""
    return interpreter(request.param)


def interpreter(version):
    """Return the name of an interpreter; skip if this machine lacks it."""
    name = f"python{version}"
    if shutil.which(name) is None or subprocess.run([name, "-c", ""]).returncode:
        pytest.skip(f"needs {name}")
    return name


@pytest.fixture(scope="session")
def serving_venv(install, wheel, python):
    return install(f"{wheel}[serve,pictures]", python=python)


@pytest.fixture
def picture(images, tmp_path):
    path = tmp_path / "digit.png"
    Image.fromarray(images[0].reshape(28, 28)).save(path)
    return path


def test_first_commands_of_the_readme_work_in_a_checkout(built):
    checkout = built.parent
    _, _, after = (checkout / "README.md").read_text("utf-8").partition("## Start")
    block = re.findall(r"(?m)^    (.*)$", after.partition("```")[0])
    until_it_serves = [line for line in block if "serving serve" not in line]
    assert any("classify" in line for line in until_it_serves)
    result = subprocess.run(
        ["bash", "-e", "-c", "\n".join(until_it_serves)], cwd=checkout, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert "seven.png: 7 " in result.stdout


def test_older_python_is_refused_before_anything_is_resolved(built, tmp_path):
    venv = Venv(tmp_path / "venv", tmp_path)
    subprocess.run([interpreter("3.10"), "-m", "venv", venv.folder], check=True, env=environment())
    output = venv.run("pip", "install", f"{built.parent}[serve]", code=1)
    assert "digit-serving needs Python 3.11 or newer, this is 3.10." in output
    assert "onnxruntime" not in output


def test_all_pass_the_index_checks(tools, built, wheel):
    tools.run("twine", "check", "--strict", *sorted(built.iterdir()))
    tools.run("check-wheel-contents", "--config", ROOT / "pyproject.toml", wheel)


def test_workflows_are_valid_and_take_few_permissions(tools):
    workflows = sorted((ROOT / ".github" / "workflows").iterdir())
    tools.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    for workflow in workflows:
        text = workflow.read_text()
        assert re.search(r"\npermissions:( \{\}|\n  contents: read\n\n)", text), workflow
        assert "secrets." not in text


def test_sdist_has_all_that_the_repository_has(built, tracked):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in tracked if name not in inside and (ROOT / name).is_file()]
    assert not [name for name in inside if "__pycache__" in name or "node_modules" in name]


def test_wheel_has_the_packages_and_the_model_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    found = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert found == {"serving", "digit_classifier", "digit_scoring", "training", "benchmarks"}
    assert "digit_classifier/pretrained/digits/1/model.onnx" in names
    assert "serving/py.typed" in names


def test_server_from_the_wheel_answers_a_client_alone(
    install, serving_venv, wheel, python, picture
):
    client = install(str(wheel), python=python)
    with serving_venv.serving("--http-port=0") as server:
        client.run("python", "-c", CLIENT, server.address)
        ask = ("--target", server.address)
        answer = serving_venv.run("digit-serving", "classify", picture, *ask)
        page = HttpPeer(server.facts["http"])
        assert page.post("/v1/digits", picture.read_bytes()).status == 200
        assert page.get("/draw.js").status == 200
        info = client.run("digit-serving", "info", "--json", *ask)
    assert answer.startswith(f"{picture}: ")
    assert '"device"' in info


def test_server_runs_without_the_applications(install, wheel):
    venv = install(f"{wheel}[serve]", "tritonclient[grpc]")
    (site,) = venv.folder.glob("lib/python3*/site-packages")
    for name in ("digit_classifier", "digit_scoring", "training", "benchmarks"):
        shutil.rmtree(site / name)
    (venv.elsewhere / "model.onnx").write_bytes(two_layers().SerializeToString())
    with venv.serving("model.onnx", "--http-port=off") as server:
        venv.run("python", "-c", TRITON, server.address)


def floors(wheel, *extras):
    """Return the oldest releases that the wheel takes, as pins."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        wanted = map(Requirement, message_from_bytes(archive.read(name)).get_all("Requires-Dist"))
    return {
        f"{each.name}=={bound.version}"
        for each in wanted
        for bound in each.specifier
        if bound.operator == ">="
        and (not each.marker or any(each.marker.evaluate({"extra": it}) for it in ("", *extras)))
    }


def test_oldest_libraries_serve_and_call(install, wheel, picture):
    # Python 3.11 is the one for which each of these releases has a wheel.
    pins = floors(wheel, "serve", "pictures")
    assert {each.partition("==")[0] for each in pins} >= {"grpcio", "protobuf", "onnxruntime"}
    venv = install(f"{wheel}[serve,pictures]", *pins, python=interpreter("3.11"))
    options = "--http-port=0", "--reflection"
    with venv.serving(*options) as server:
        venv.run("python", "-c", CLIENT, server.address)
        venv.run("python", "-c", STUB, server.address)
        page = HttpPeer(server.facts["http"])
        assert page.post("/v1/digits", picture.read_bytes()).status == 200
    with venv.serving(*options, "--transport=grpcio") as server:
        venv.run("python", "-c", CLIENT, server.address)


def test_wheel_classifies_pictures_with_the_model_in_it(serving_venv, picture):
    output = serving_venv.run("digit-serving", "classify", picture)
    assert output.splitlines()[-1].startswith(f"{picture}: ")


def test_wheel_trains_and_exports(install, wheel):
    venv = install(f"{wheel}[train]")
    venv.run("python", "-m", "training", "--help")
    venv.run("python", "-c", TRAIN, ROOT / "tests" / "data" / "mnist-sample.npz")
    assert (venv.elsewhere / "models" / "digits" / "1" / "model.onnx").is_file()
    assert (venv.elsewhere / "artifacts" / "report.html").is_file()


@pytest.mark.parametrize("extra", ["serve-gpu", "train-gpu"])
def test_gpu_extras_have_wheels_on_linux(tools, extra):
    tools.run(
        "uv", "pip", "compile", "--quiet", "--no-build", "--python-platform",
        "x86_64-manylinux_2_28", "--python-version", "3.11", "--extra", extra,
        ROOT / "pyproject.toml",
    )  # fmt: skip
