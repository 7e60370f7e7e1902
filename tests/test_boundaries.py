"""Which package may import which: checked in fresh interpreters, since imports can't be undone."""

import ast
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import serving
import serving.config
import serving.errors
import serving.proof.sizes
from digit_classifier import PRETRAINED
from serving.model import verdicts
from tests.serving.http.peer import HttpPeer
from tests.serving.model.graphs import save, two_layers
from tests.support.servers import ended, serve_command, started

ROOT = Path(__file__).parent.parent
HEAVY = {
    "onnxruntime", "tensorflow", "keras", "onnx", "tf2onnx", "PIL", "scipy", "uvloop",
    "prometheus_client", "pyarrow", "ray",
}  # fmt: skip

NEEDLESS = {
    "grpc", "grpc_reflection", "multiprocessing", "numpy.random", "uvicorn", "logging.config",
    "google.protobuf.descriptor_pb2",
    "h11", "orjson", "python_multipart", "serving.http1", "serving.http_api",
    "serving.transports.http_port", "serving.client", "serving.cli.infer", "serving.cli.info",
    "serving.cli.health", "serving.model.judging", "serving.proof.walk", "serving.proof.check",
    "serving.handlers.pipeline", "serving.handlers.model", "serving.pictures.decoder",
    "serving.server.supervisor", "serving.transports.grpcio_server",
}  # fmt: skip
"""Modules that a server of gRPC alone may not need: proof, HTTP, clients, handlers, pictures."""


def modules_after(code):
    """The modules that are loaded once `code` has run."""
    command = f"import sys\n{code}\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", command], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    return set(output.split())


@pytest.mark.parametrize("module", ["serving", "serving.client", "serving.__main__"])
def test_import_loads_nothing_heavy(module):
    assert not modules_after(f"import {module}") & {*HEAVY, "grpc"}


def test_server_and_client_on_h2_load_only_what_they_use(tmp_path, monkeypatch):
    file = Path(shutil.copy(PRETRAINED / "digits" / "1" / "model.onnx", tmp_path / "digits.onnx"))
    monkeypatch.setenv(verdicts.VARIABLE, str(tmp_path / "verdicts"))
    # What an earlier start leaves: the verdict on its rows, and that it has passed.
    subprocess.run([sys.executable, "-m", "serving", "info", str(file)], check=True, cwd=tmp_path)
    command = serve_command(None, str(file), "--metrics-port", "off")
    with started([command[0], "-X", "importtime", *command[1:]]) as server:
        asked = modules_after(
            f"import serving; serving.Client({server.address!r}).describe('digits')"
        )
        server.stop()
        loaded = set(re.findall(r"\| +(\S+)$", server.process.stderr.read(), re.MULTILINE))
    assert {"onnxruntime", "serving.transports.grpc_port"} <= loaded
    assert not loaded & (HEAVY - {"onnxruntime"} | NEEDLESS)
    assert "serving.client.h2.threads" in asked
    assert not asked & {*HEAVY, "grpc"}


def test_loop_of_a_server_with_http_imports_nothing_that_reads_pictures():
    picture = ROOT / "docs" / "pictures" / "seven.png"
    command = serve_command(PRETRAINED, "--http-port", "0")
    with started([command[0], "-X", "importtime", *command[1:]]) as server:
        peer = HttpPeer(server.facts["http"])
        digit = peer.post("/v1/digits", picture.read_bytes()).json["digits"][0]
        path = "/v1/models/digits/classify"
        picked = peer.post(path, picture.read_bytes()).json["pictures"][0]
        maps = (Path("/proc") / str(server.process.pid) / "maps").read_text()
        server.stop()
        loaded = set(re.findall(r"\| +(\S+)$", server.process.stderr.read(), re.MULTILINE))
    assert (digit["digit"], picked["label"]) == (7, "7")
    assert {"onnxruntime", "python_multipart.multipart"} <= loaded
    assert not {name for name in loaded if name.startswith(("PIL", "scipy"))}
    assert not re.search("/(PIL|scipy)/", maps)


def test_serve_sets_how_numpy_starts_before_it_is_imported():
    """Else its BLAS starts a thread for each core."""
    assert "numpy" not in modules_after("import serving.cli.serve, serving.launch")


def test_training_help_loads_no_tensorflow():
    assert "tensorflow" not in modules_after("import training.__main__")


def test_benchmarks_import_serving_only():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert "training" not in {name.split(".")[0] for name in imports_of(path)}, path
    loaded = modules_after("import benchmarks.__main__")
    assert not loaded & {*HEAVY, "matplotlib"}


def test_import_starts_nothing():
    code = (
        "import threading, signal, logging\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "import serving.client, serving.embedded, serving.server.server\n"
        "assert threading.active_count() == 1\n"
        "assert signal.getsignal(signal.SIGTERM) is before\n"
        "assert not logging.root.handlers\n"
    )
    modules_after(code)


def imports_of(path):
    """Every module that a file names in an import, at any depth, also for type checking alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def late_imports_without_a_reason(path):
    """Our own modules that are imported inside functions, and no comment says why.

    It stands on the line, above a group of imports, or for the rest of a file: "here and below".
    """
    lines = path.read_text().splitlines()
    below = next((n for n, line in enumerate(lines, 1) if "here and below" in line), len(lines) + 1)
    for function in ast.walk(ast.parse("\n".join(lines))):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.ImportFrom) or node.module.split(".")[0] not in ORDER:
                continue
            above = node.lineno - 1
            while lines[above - 1].strip().startswith(("from ", "import ")):
                above -= 1
            group = lines[above - 1 : node.end_lineno]
            if node.lineno < below and not any("#" in line for line in group):
                yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_import_inside_a_function_has_its_reason():
    paths = [path for package in ORDER for path in (ROOT / package).rglob("*.py")]
    assert not [place for path in paths for place in late_imports_without_a_reason(path)]


APPLICATIONS = {"digit_classifier", "digit_scoring", "training", "benchmarks"}


def test_serving_imports_no_application():
    for path in (ROOT / "serving").rglob("*.py"):
        assert not APPLICATIONS & {name.split(".")[0] for name in imports_of(path)}, path


ALONE = """
import sys
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in str(each).lower()]
hidden = "", sys.argv[2]
sys.path[:] = [sys.argv[1], *(each for each in sys.path if each not in hidden)]
del sys.argv[1:3]
from serving.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""Runs the commands of a copy of serving where no application is."""


def test_server_and_client_run_without_the_applications(tmp_path):
    shutil.copytree(ROOT / "serving", tmp_path / "alone" / "serving")
    save(two_layers(), tmp_path)
    places = (str(tmp_path / "alone"), str(ROOT))
    options = ("--port", "0", "--metrics-port", "0", "--http-port", "0")
    command = [sys.executable, "-c", ALONE, *places]
    with started([*command, "serve", "model.onnx", *options], cwd=tmp_path) as server:
        target = ("--target", server.address)
        answer = ended([*command, "infer", "model", *target, "x=[1, 2, 3, 4]"], cwd=tmp_path)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert answer.stdout.startswith("y float32 [1, 3]")
        peer = HttpPeer(server.facts["http"])
        assert peer.get("/v2/models/model").json["inputs"][0]["name"] == "x"
        assert peer.post("/v1/digits", b"").status == 404
    lacking = ended([*command, "serve", *options], cwd=tmp_path)
    assert lacking.returncode == 2
    assert "no model in models" in lacking.stderr


LIBRARIES = {"http2": set[str](), "proof": {"numpy", "google", "serving.errors"}}
"""Parts that know nothing of the rest, and all that each may import but the standard library."""


@pytest.mark.parametrize("library", LIBRARIES)
def test_library_imports_nothing_of_the_rest(library):
    for path in (ROOT / "serving" / library).rglob("*.py"):
        names = {name for name in imports_of(path) if not name.startswith(f"serving.{library}")}
        others = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
        allowed = LIBRARIES[library]
        others -= {each for each in others if any(each.startswith(name) for name in allowed)}
        assert not others, path


@pytest.mark.parametrize("library", LIBRARIES)
def test_library_loads_nothing_of_the_rest(library):
    files = (ROOT / "serving" / library).glob("*.py")
    modules = sorted(f"serving.{library}.{path.stem}" for path in files)
    loaded = modules_after(f"import {', '.join(modules)}")
    ours = {name for name in loaded if name.startswith("serving.")}
    others = {name for name in ours if not name.startswith(f"serving.{library}")}
    assert others <= LIBRARIES[library]
    assert not loaded & HEAVY


@pytest.mark.parametrize("library", LIBRARIES)
def test_readme_of_a_library_lists_its_modules(library):
    folder = ROOT / "serving" / library
    text = (folder / "README.md").read_text("utf-8")
    assert "\n## Contract\n" in text
    rows = "".join(re.findall(r"(?m)^\| `.*$", text))
    modules = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    assert modules <= set(re.findall(r"`(\w+\.py)`", rows))


def test_training_and_serving_never_import_each_other():
    for package, other in (("training", "serving"), ("serving", "training")):
        for path in (ROOT / package).rglob("*.py"):
            strangers = {name for name in imports_of(path) if name.split(".")[0] == other}
            if package == "training":
                strangers = {
                    each for each in strangers - {"serving"} if not each.startswith(COMMON)
                }
            if path == ROOT / "training" / "data" / "extra.py":
                # A user's own pictures have to be normalized by the very code that will normalize
                # those to be classified; digit_classifier.pictures knows neither server nor model.
                strangers = {each for each in strangers if not each.startswith(PICTURES)}
            assert not strangers, path


COMMON = (
    "serving.commandline", "serving.model.verdicts", "serving.model.judging", "serving.publishing",
    "serving.model.signatures", "serving.tensors",
)  # fmt: skip
"""Shared: the parser of commands, how the project is installed; the verdict on a graph's rows; the
writer of versions, and which of them may follow one another."""
PICTURES = ("serving.errors",)


def test_reading_pictures_needs_no_server_and_no_model():
    loaded = modules_after("import digit_classifier.pictures, digit_classifier.normalizer")
    ours = {name.split(".")[1] for name in loaded if name.startswith("serving.")}
    assert ours <= {"applications", "commandline", "errors", "pictures", "tensors"}
    assert not loaded & {"grpc", "onnxruntime"}


ORDER = {
    "serving": """
        errors proof commandline tensors json_values applications config system processes http1
        http2 security model.preprocessing pictures telemetry.metrics model
        publishing batching handlers versions embedded router oip.inference_pb protocols oip
        telemetry transports http_api client server cli __main__ launch publishing.models optimising
        cli.optimize __init__
    """,
    "digit_classifier": """
        predictions normalizer pictures handler wire methods http remote local async_local
        classifier async_classifier answers command
        __init__
    """,
    "digit_scoring": "files columns source output answers local ray command __init__",
    "training": """
        errors config cli tables runs data fitting export page report comparison __main__
        __init__
    """,
    "benchmarks": """
        calls connections grpc_connection http_connection loops workload network in_process methods
        others clients targets plain_server result_file validity runner sizes figures tables drawing
        pictures report tuning zoo comparison optimized cli __main__ peers __init__
    """,
}
"""The parts of each package (folders and files at its top); a part may also be split by naming one
of its files. Imports point to parts before theirs, or within one."""


def modules_of(package):
    """Return every module of our own, by its name below the package."""
    found = {}
    folder = ROOT / package
    for path in folder.rglob("*.py"):
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts)] = path
    return found


def part_of(module, parts):
    """Return the part that lists a module: the longest name that begins its own."""
    found = [part for part in parts if module == part or module.startswith(f"{part}.")]
    assert found, f"no part lists {module}"
    return max(found, key=len)


@pytest.mark.parametrize("package", ORDER)
def test_every_part_exists_and_every_module_has_one(package):
    parts, modules = ORDER[package].split(), modules_of(package)
    assert {part_of(module, parts) for module in modules} == set(parts)


@pytest.mark.parametrize("package", ORDER)
def test_every_folder_says_what_it_is_for(package):
    for path in (ROOT / package).rglob("__init__.py"):
        if "pb" not in path.parts:  # generated
            assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_to_the_ground(package):
    parts, modules = ORDER[package].split(), modules_of(package)
    wrong = []
    for module, path in modules.items():
        height = parts.index(part_of(module, parts))
        for name in imports_of(path):
            below = name.removeprefix(f"{package}.")
            if below != name and below in modules:
                part = part_of(below, parts)
                if parts.index(part) > height:
                    wrong.append(f"{module} imports {below}")
    assert not wrong


@pytest.mark.parametrize("package", ORDER)
def test_no_imports_go_in_a_circle(package):
    modules = {f"{package}.{name}": path for name, path in modules_of(package).items()}
    graph = {module: modules.keys() & set(imports_of(path)) for module, path in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_the_adaptors_of_grpcio_and_the_probe_import_grpc():
    for module, path in modules_of("serving").items():
        if "grpcio" not in module and module != "cli.probe":
            assert "grpc" not in {name.split(".")[0] for name in imports_of(path)}, path


def test_client_imports_no_server_code():
    loaded = modules_after("import serving.client")
    assert not {name for name in loaded if name.startswith("serving.")} & {
        f"serving.{name}"
        for name in ("embedded", "model.engine", "batching", "model.repository", "server")
    }


def test_public_names_are_these():
    errors = {name for name, value in vars(serving.errors).items() if isinstance(value, type)}
    assert set(serving.__all__) == errors | {
        "Array",
        "AsyncClient",
        "AsyncModel",
        "BatchingConfig",
        "Bytes",
        "Client",
        "Handler",
        "Json",
        "Model",
        "ModelInfo",
        "Outputs",
        "Picture",
        "Server",
        "Tensor",
        "Text",
        "optimize",
        "Optimization",
        "publish",
        "serve",
    }
    assert dir(serving) == sorted([*serving.__all__, "__version__"])
    for name in serving.__all__:
        assert getattr(serving, name).__name__ == name
    with pytest.raises(AttributeError, match="nope"):
        serving.__getattr__("nope")


def test_proof_holds_for_the_largest_batch():
    assert serving.config.MOST_ROWS == serving.proof.sizes.MOST_ROWS
