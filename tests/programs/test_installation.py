"""Programs as installed: one line names what is missing."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from PIL import Image

import benchmarks.cli
import serving
import serving.__main__
import training.__main__
from deploy.demo import main
from digit_classifier import PRETRAINED
from serving.commandline import installation
from tests.support.servers import ended, started
from tests.test_boundaries import imports_of
from training import cli
from training.data.mnist import Mnist

ROOT = Path(__file__).parents[2]


@pytest.mark.full_mnist
@pytest.mark.usefixtures("mnist")
def test_demo_finds_the_accuracy_of_the_manifest(capsys):
    assert main(["--models", str(PRETRAINED)]) == 0
    output = capsys.readouterr().out
    served, claimed = re.findall(r"(?:accuracy|says) +([\d.]+ ?%)", output)
    assert served == claimed
    assert ".venv/bin/digit-serving classify" in output


def test_demo_fails_where_the_accuracy_is_another(models, mnist_sample, monkeypatch):
    fewer = Mnist(
        mnist_sample.train_images, mnist_sample.train_labels,
        mnist_sample.test_images, 9 - mnist_sample.test_labels,
    )  # fmt: skip
    monkeypatch.setattr(Mnist, "load", lambda folder: fewer)
    assert main(["--models", str(models)]) == 1


def test_version_is_that_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert serving.__version__ == installation.version() == version


def test_manifests_name_the_same_version():
    paths = [*(ROOT / "deploy").rglob("*.yaml"), ROOT / "docs" / "deployment.md"]
    files = [path.read_text("utf-8") for path in paths]
    named = re.compile(r"digit-serving:(\d+\.[\w.]*)|newTag: (\d[\w.]*)")
    found = ["".join(each) for text in files for each in named.findall(text)]
    assert len(found) >= 6
    assert {*found} == {installation.version()}


def test_version_works_in_a_checkout_that_is_not_installed():
    command = [sys.executable, "-S", "-c", "import serving; print(serving.__version__)"]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT)}
    output = subprocess.check_output(command, env=environment, text=True, cwd="/")
    assert output.strip() == installation.version()


def test_commands_are_make_only_where_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert installation.run("train", "export") == "`make train export`"
    assert cli.serve(Path("models/digits")) == "`make serve`"
    served = "`.venv/bin/digit-serving serve --models m --model mine`"
    assert cli.serve(Path("m/mine")) == served
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Makefile").touch()  # another project's
    expected = "`digit-serving train` and `digit-serving export`"
    assert installation.run("train", "export") == expected
    assert cli.serve(Path("models/digits")) == "`digit-serving serve`"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_takes_gpu_for_cuda_and_refuses_others_in_one_line():
    steps = make("--dry-run", "DEVICE=gpu", "serve").stdout
    assert ".installed-gpu" not in steps
    refused = make("DEVICE=tpu", "help")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "DEVICE is cpu or cuda, not 'tpu'" in refused.stderr


def make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


# A package that is not installed: one line that names its extra, in every program


HIDE = """
import runpy, sys

sys.modules.update(dict.fromkeys({hidden!r}))
sys.argv = {argv!r}
runpy.run_module({program!r}, run_name="__main__", alter_sys=True)
"""
SERVE = ("onnxruntime", "uvloop", "grpc_health", "grpc_reflection", "prometheus_client")
TRAIN = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "matplotlib", "scipy")
EXTRAS = {
    "serving": installation.EXTRAS,
    "training": dict.fromkeys(training.__main__.EXTRA, "train"),
    "benchmarks": benchmarks.cli.EXTRAS,
}
PROGRAMS = {
    "serving": "digit-serving", "training": "python -m training",
    "benchmarks": "python -m benchmarks",
}  # fmt: skip
PICTURE = "seven.png"
"""Stands for a picture that can be read."""


def without(hidden, program, *arguments):
    """Run a program as if some packages were not installed."""
    code = HIDE.format(hidden=hidden, argv=[program, *arguments], program=program)
    done = ended([sys.executable, "-c", code], cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


OLD_PROTOBUF = """
import sys
from google.protobuf import runtime_version
runtime_version.MAJOR = 5  # as after the installation of a package that wants an old one
from serving.__main__ import main
sys.exit(main(["serve"]))
"""


def test_protobuf_older_than_the_generated_code_is_one_line():
    done = ended([sys.executable, "-c", OLD_PROTOBUF], cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("digit-serving: Detected incompatible Protobuf")
    assert "'.[serve]' grpcio-health-checking==1.81.1 grpcio-reflection==1.81.1" in line
    assert line.endswith(" takes either protobuf")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("hidden", "program", "arguments", "extra"),
    [
        *((SERVE, "serving", arguments, "serve")
          for arguments in (("serve",), ("info",), ("serve", "--workers", "2"))),
        *(((module,), "serving", ("serve",), "serve")
          for module in ("onnxruntime", "grpc_health", "prometheus_client")),
        *((("uvloop",), "serving", ("serve", "--transport", "grpcio", *more), "serve")
          for more in ((), ("--workers", "2"))),
        (("grpc_reflection",), "serving", ("serve", "--port", "0", "--metrics-port", "off",
                                           "--device", "cpu", "--reflection"), "serve"),
        (("PIL",), "serving", ("classify", PICTURE), "pictures"),
        (("scipy",), "serving", ("classify", PICTURE), "pictures"),
        (("onnxruntime",), "serving", ("classify", PICTURE), "serve"),
        *((TRAIN, "training", (command,), "train")
          for command in ("train", "export", "report")),
        (("onnxruntime",), "benchmarks", ("run",), "serve"),
    ],
)  # fmt: skip
def test_missing_extra_is_one_line_that_names_it(hidden, program, arguments, extra, tmp_path):
    picture = tmp_path / PICTURE
    with Image.new("L", (28, 28), 255) as blank:
        blank.paste(0, (12, 4, 16, 24))
        blank.save(picture)
    arguments = tuple(str(picture) if text == PICTURE else text for text in arguments)
    code, out, err = without(hidden, program, *arguments)
    assert (code, out) == (2, "")
    *warnings, line = err.splitlines()
    package = {"PIL": "Pillow"}.get(hidden[0], "")
    assert line.startswith(f"{PROGRAMS[program]}: {package}")
    assert line.endswith(f" is not installed: {installation.install(extra)}")
    assert all("using the bundled one" in warning for warning in warnings)


def test_classifier_on_the_base_installation_names_the_extra():
    code = HIDE.partition("sys.argv")[0].format(hidden=SERVE)
    code += "from digit_classifier import Classifier; Classifier.pretrained()"
    done = ended([sys.executable, "-c", code], cwd=ROOT)
    expected = f"onnxruntime is not installed: {installation.install('serve')}"
    assert done.stderr.splitlines()[-1] == f"serving.errors.ConfigurationError: {expected}"


def test_no_page_installs_a_name_that_anybody_may_register():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*")]:
        if path.is_file() and path.suffix != ".pyc":
            assert not re.search(r"pip install \S*digit-serving(?!\S* @ )", path.read_text()), path


def test_module_that_no_extra_brings_is_a_fault_of_ours():
    with pytest.raises(ModuleNotFoundError):
        installation.advice(ModuleNotFoundError(name="nope"), {"uvloop": "serve"})


@pytest.mark.parametrize(("package", "table"), EXTRAS.items())
def test_every_import_beyond_the_base_has_its_extra(package, table):
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    base = {"numpy", "grpc", "google"}  # pyproject's dependencies
    for path in (ROOT / package).rglob("*.py"):
        # Other projects' servers, in environments of their own.
        if "peers" in path.parts:
            continue
        names = {name.partition(".")[0] for name in imports_of(path)}
        for module in names - ours - base - sys.stdlib_module_names:
            assert module in table, f"{path} imports {module}"


@pytest.mark.parametrize("table", EXTRAS.values())
def test_extras_bring_what_they_are_named_for(table):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = packages_distributions()
    for module, extra in table.items():
        if module == "ray":  # 200 MB, in an environment of its own (make test-deploy)
            continue
        brought = " ".join(project["optional-dependencies"][extra]).lower()
        found = (name.lower().replace("_", "-") for name in distributions[module])
        names = {name.removesuffix("-gpu") for name in found}
        assert module == "keras" or any(name in brought for name in names), (module, extra)


def test_infer_of_a_server_needs_no_extra(server):
    hidden = (*SERVE, "orjson", "h11", "PIL", "scipy", "python_multipart")
    code, out, err = without(
        hidden, "serving", "infer", "digits", "--target", server.address, "--json",
        f"images={[[0] * 784]}",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "probabilities" in out


def test_server_without_the_parser_of_forms_says_that_it_is_off():
    command = [sys.executable, "-c", HIDE.format(
        hidden=("python_multipart",), program="serving",
        argv=["serving", "serve", "--port=0", "--metrics-port=0", "--http-port=auto"])]  # fmt: skip
    with started(command, cwd=ROOT) as server:
        assert "http" not in server.facts
        line = server.process.stdout.readline()
        server.stop()
        log = server.process.stderr.read()
    words = f"digit-serving infer digits --target {server.address} 'images=zeros[1,784]'"
    assert line == f"try it: {words}\n"
    words = "HTTP is off: python-multipart is not installed: pip install '.[serve]' in the checkout"
    assert words in log


TYPED = """
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import numpy as np
import serving
from digit_classifier import Classifier

with serving.Client("127.0.0.1:50051") as client:
    outputs = client.infer("m", {"x": np.zeros((1, 4), np.float32)}, timeout_s=0.5)
    version: str = outputs.model_version
    rows: int = client.describe("m").max_batch_size
with Classifier.connect("127.0.0.1:50051", timeout_s=2.0) as classifier:
    labels: list[str] = classifier.classify(np.zeros((1, 784), np.uint8)).labels


class Store(serving.Handler):
    inputs = {"key": serving.Text()}
    outputs = {"value": serving.Text()}
    uses = ("m",)
    max_concurrency = 8

    async def setup(self, folder: Path) -> None:
        self.names: dict[str, str] = {}

    async def predict(self, key: list[str]) -> AsyncGenerator[list[str], None]:
        found = await self.async_models.infer("m", {"x": key})
        rows: int = len(found["y"])
        async for part in self.async_models.stream("m", {"x": key}):
            yield [f"{self.names[each]} {part.model_version} {rows}" for each in key]


class Plain(serving.Handler):
    def setup(self, folder: Path) -> None: ...

    def predict(self, key: list[str]) -> Iterator[list[str]]:
        for part in self.models.stream("m", {"x": key}):
            yield [part.model_version]


client.infer("m", x=1)
"""


@pytest.mark.slow
def test_type_checkers_find_the_packages_of_the_checkout(tmp_path):
    """A path in site-packages shows them; the usual hook of an editable installation does not."""
    (tmp_path / "program.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "program.py"]
    result = ended(command, cwd=tmp_path, timeout=110)
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    assert errors
    assert all('"infer" of "Client"' in line for line in errors), result.stdout


def test_module_of_an_extra_is_of_a_package_that_the_extra_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {
        extra: {re.split(r"[\[<>=!;~ ]", each)[0].lower() for each in packages}
        for extra, packages in project["optional-dependencies"].items()
    }
    for module, extra in installation.EXTRAS.items():
        names = {package.replace("-", "_") for package in extras[extra]}
        package = installation._PACKAGES.get(module, module)
        assert package.lower().replace("-", "_") in names, (module, extra)
    installed = {module for module in installation._PACKAGES if module not in installation.EXTRAS}
    base = {re.split(r"[\[<>=!;~ ]", each)[0] for each in project["dependencies"]}
    assert {installation._PACKAGES[module] for module in installed} <= base | extras["serve"]


def test_version_of_what_is_not_installed_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "_ROOT", tmp_path)
    monkeypatch.setattr(installation, "DISTRIBUTION", "nowhere-installed")
    assert installation.version() == "unknown"
