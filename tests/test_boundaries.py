"""Who may import what: checked in fresh interpreters, since imports can't be undone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import serving

ROOT = Path(__file__).parent.parent
HEAVY = {
    "onnxruntime",
    "tensorflow",
    "keras",
    "onnx",
    "tf2onnx",
    "PIL",
    "scipy",
    "uvloop",
    "prometheus_client",
}


def modules_after(code: str) -> set[str]:
    """The modules that are loaded once `code` has run."""
    command = f"import sys\n{code}\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", command], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    return set(output.split())


@pytest.mark.parametrize("module", ["serving", "serving.client", "serving.__main__"])
def test_import_loads_nothing_heavy(module: str) -> None:
    assert not modules_after(f"import {module}") & HEAVY


def test_import_serving_loads_no_grpc() -> None:
    assert "grpc" not in modules_after("import serving")


def test_server_never_loads_tensorflow() -> None:
    loaded = modules_after("import serving.rpc.server, serving.classifier, serving.onnx_runtime")
    assert not loaded & {"tensorflow", "keras", "tf2onnx"}


def test_server_loads_reflection_only_if_asked() -> None:
    loaded = modules_after("import serving.rpc.server, serving.h2.server")
    assert "grpc_reflection.v1alpha" not in loaded  # the empty package above it is grpc's doing


def test_training_help_loads_no_tensorflow() -> None:
    assert "tensorflow" not in modules_after("import training.__main__")


def test_benchmarks_use_serving_only() -> None:
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert "training" not in {name.split(".")[0] for name in imports_of(path)}, path
    loaded = modules_after("import benchmarks.__main__")
    assert not loaded & {*HEAVY, "matplotlib"}


def test_reports_know_no_program() -> None:
    programs = {"training", "serving", "benchmarks"}
    for path in (ROOT / "reports").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports_of(path)} & programs, path
    assert "matplotlib" not in modules_after("import reports.page")


def test_serving_draws_no_reports() -> None:
    for path in (ROOT / "serving").rglob("*.py"):
        assert "reports" not in {name.split(".")[0] for name in imports_of(path)}, path


def test_import_starts_nothing() -> None:
    code = (
        "import threading, signal, logging\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "import serving.client, serving.classifier, serving.rpc.server\n"
        "assert threading.active_count() == 1\n"
        "assert signal.getsignal(signal.SIGTERM) is before\n"
        "assert not logging.root.handlers\n"
    )
    modules_after(code)


def test_command_lines_share_what_imports_none_of_them() -> None:
    for path in (ROOT / "commandline").glob("*.py"):
        others = {name.partition(".")[0] for name in imports_of(path)} - sys.stdlib_module_names
        assert others <= {"commandline"}, path


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_training_and_serving_never_import_each_other() -> None:
    for package, other in (("training", "serving"), ("serving", "training")):
        for path in (ROOT / package).rglob("*.py"):
            strangers = {name for name in imports_of(path) if name.split(".")[0] == other}
            assert not strangers, path


LAYERS = [
    {"errors", "config", "images", "predictions", "model_info", "logs", "cores"},
    {"address", "process"},
    {"native_runs", "onnx_runtime", "repository", "requests", "backlog", "cuda"},
    {"engine", "metrics", "shared_run"},
    {"batcher", "loaded_model", "exposition"},
    {"classifier", "exporter"},
    {"reload"},
    {"rpc"},
]
"""serving's modules from the ground up; the client stands beside: see the next test."""


def test_serving_imports_only_point_down() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for name, number in level.items():
        for path in [
            *(ROOT / "serving").glob(f"{name}.py"),
            *(ROOT / "serving" / name).glob("*.py"),
        ]:
            below = {
                parts[1]
                for parts in (imported.split(".") for imported in imports_of(path))
                if parts[0] == "serving" and len(parts) > 1 and parts[1] in level
            } - {name}
            upwards = {other for other in below if level[other] > number}
            assert not upwards, f"{path} imports {upwards}"


def test_only_rpc_and_the_client_import_grpc() -> None:
    for path in (ROOT / "serving").glob("*.py"):
        if path.name != "client.py":
            assert "grpc" not in {name.split(".")[0] for name in imports_of(path)}, path


def test_client_imports_no_server_code() -> None:
    loaded = modules_after("import serving.client")
    assert not {name for name in loaded if name.startswith("serving.")} & {
        f"serving.{name}" for name in ("classifier", "engine", "batcher", "repository", "backlog")
    }


def test_public_names_are_these() -> None:
    names = ["AsyncClient", "Classifier", "Client", "Prediction", "Predictions"]
    assert sorted(serving.__all__) == names
    for name in serving.__all__:
        assert getattr(serving, name).__name__ == name
    with pytest.raises(AttributeError, match="nope"):
        serving.__getattr__("nope")
