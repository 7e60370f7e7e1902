"""A package that is not installed: one line that names its extra, in every program."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from PIL import Image

import benchmarks.cli
import serving.__main__
import training.__main__
from serving.commandline import installation
from tests.support.servers import ended, started

ROOT = Path(__file__).parents[2]
HIDE = """
import runpy, sys

sys.modules.update(dict.fromkeys({hidden!r}))
sys.argv = {argv!r}
runpy.run_module({program!r}, run_name="__main__", alter_sys=True)
"""
SERVE = ("onnxruntime", "uvloop", "grpc_health", "grpc_reflection", "prometheus_client")
TRAIN = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "matplotlib", "scipy")
EXTRAS = {
    "serving": serving.__main__.EXTRAS,
    "training": dict.fromkeys(training.__main__.EXTRA, "train"),
    "benchmarks": benchmarks.cli.EXTRAS,
}
PICTURE = "seven.png"
"""Stands for a picture that can be read."""


def without(hidden, program, *arguments):
    """Run a program as if some packages were not installed."""
    code = HIDE.format(hidden=hidden, argv=[program, *arguments], program=program)
    done = ended([sys.executable, "-c", code], cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


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
    assert line.endswith(f" is not installed: {installation.install(extra)}")
    assert all("using the bundled one" in warning for warning in warnings)


def test_classifier_on_the_base_installation_names_the_extra():
    code = HIDE.partition("sys.argv")[0].format(hidden=SERVE)
    code += "from serving import Classifier; Classifier.pretrained()"
    done = ended([sys.executable, "-c", code], cwd=ROOT)
    error = ModuleNotFoundError(name="onnxruntime")
    expected = installation.advice(error, {"onnxruntime": "serve"})
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {expected}"


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
        # Other projects' servers, in environments of their own; instruments, in a checkout's.
        if {"peers", "lab"} & set(path.parts):
            continue
        for module in imports_of(path) - ours - base - sys.stdlib_module_names:
            assert module in table, f"{path} imports {module}"


def imports_of(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


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


def test_server_without_the_extra_for_http_says_that_it_is_off():
    command = [sys.executable, "-c", HIDE.format(
        hidden=("python_multipart",), program="serving",
        argv=["serving", "serve", "--port=0", "--metrics-port=0", "--http-port=auto"])]  # fmt: skip
    with started(command, cwd=ROOT) as server:
        assert "http" not in server.facts
        line = server.process.stdout.readline()
        server.stop()
        log = server.process.stderr.read()
    assert line == f"try it: digit-serving infer digits --target {server.address} @picture.png\n"
    assert "HTTP is off: pip install '.[serve,http]' in the checkout" in log
