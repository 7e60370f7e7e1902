"""A process makes no lookup, no connection and no file beyond those asked for."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMPORTERS = {
    "serving/model/onnx_runtime.py", "serving/optimising/candidates.py",
    "serving/optimising/source.py", "training/export/parity.py",
}  # fmt: skip
"""The only files that import onnxruntime itself, those of `optimize` for its quantizers; the
programs in benchmarks/peers and in tests/proof/census run without this project."""

SERVING = """
import sys
from pathlib import Path
from PIL import Image
import numpy as np
from digit_classifier import Classifier
from serving.__main__ import main
from tests.support.servers import running_server

Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save("digit.png")
with running_server(Path(sys.argv[1]), "--transport", sys.argv[2]) as server:
    assert main(["classify", "digit.png", "--target", server.address]) == 0
    assert main(["info", "--target", server.address]) == 0
    with Classifier.connect(server.address) as client:
        client.classify(np.zeros((3, 784), np.uint8))
    assert server.stop() == 0
assert main(["classify", "digit.png", "--models", sys.argv[1]]) == 0
with Classifier.load(Path(sys.argv[1], "digits")) as classifier:
    classifier.classify(np.zeros((3, 784), np.uint8))
"""
TRAINING = """
import sys
import numpy as np
from training.__main__ import main
from training.data.mnist import Mnist

with np.load(sys.argv[1]) as arrays:
    sample = Mnist(**arrays)
Mnist.load = lambda data_dir: sample
assert main(["train", "--recipe", "seed", "--epochs", "1"]) == 0
assert main(["export"]) == 0
"""
STRAYING = """
import socket, sys
from pathlib import Path

Path.home().joinpath("stray").write_text("x")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
    unsent.connect(("192.0.2.1", 9))
    unsent.connect(("127.0.0.1", 53))
    unsent.connect(("127.0.0.1", 9))
"""
WITHOUT_KERAS = (
    "import sys; from unittest.mock import Mock; "
    "sys.modules.update(keras=Mock(), tensorflow=Mock())"
)
"""It has no part in the variable, and takes seconds to import."""


def may_trace():
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-qq", "-e", "trace=none", "true"]).returncode == 0


traced = pytest.mark.skipif(not may_trace(), reason="needs strace, and to be allowed to trace")


@dataclass
class Trace:
    """The system calls of a program and its children."""

    connections: list[str]
    """Addresses beyond loopback, sockets of strangers, and name servers."""
    files: list[str]
    """Files opened for writing outside the program's own folders."""


def trace(folder, code, *arguments):
    """Run code under strace, in a folder of its own, with an empty home and no variable CI."""
    work, home, log = folder / "work", folder / "home", folder / "strace.log"
    work.mkdir()
    home.mkdir()
    result = subprocess.run(
        ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-e", "signal=none", "-o", log,
         "-e", "trace=connect,sendto,sendmsg,sendmmsg,open,openat,creat",
         sys.executable, "-c", code, *map(str, arguments)],
        cwd=work, capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(work),
             "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = log.read_text().splitlines()
    own = (work, home / ".cache" / "digit-serving", Path("/dev"), Path("/proc"))
    return Trace([line for line in lines if is_foreign(line, work)], strays(lines, own))


def is_foreign(line, own):
    """Tell whether a line of strace's shows a peer that nobody asked for."""
    if "htons(53)" in line:
        return True
    addresses = re.findall(r'inet_(?:addr|pton)\((?:AF_INET6, )?"([^"]*)"', line)
    sockets = re.findall(r'sun_path=@?"([^"]*)"', line)
    return any(not re.match(r"127\.|::1$|::ffff:127\.", address) for address in addresses) or any(
        not Path(path).is_relative_to(own) for path in sockets
    )


def strays(lines, own):
    """List the files that were opened for writing outside folders."""
    opened = [
        Path(match[1] or "/", match[2])
        for line in lines
        if re.search(r"O_WRONLY|O_RDWR|O_CREAT|creat\(", line)
        and (match := re.search(r'(?:<([^>]*)>, )?"([^"]*)"', line))
    ]
    return [str(path) for path in opened if not any(path.is_relative_to(each) for each in own)]


@traced
def test_strays_are_seen(tmp_path):
    seen = trace(tmp_path, STRAYING)
    assert [line.partition("connect(")[2] != "" for line in seen.connections] == [True, True]
    assert seen.files == [str(tmp_path / "home" / "stray")]


@traced
@pytest.mark.parametrize("transport", ["auto", "grpcio"])
def test_serving_asks_and_writes_nothing_else(tmp_path, models, transport):
    assert trace(tmp_path, SERVING, models, transport) == Trace([], [])
    # What it knows of the model's rows, and that it has passed, for the next start.
    written = [each for each in (tmp_path / "home").rglob("*") if each.is_file()]
    kept = tmp_path / "home" / ".cache" / "digit-serving" / "verdicts"
    assert {each.parent for each in written} == {kept}


@pytest.mark.slow
@traced
def test_training_and_export_ask_and_write_nothing_else(tmp_path):
    sample = ROOT / "tests" / "data" / "mnist-sample.npz"
    assert trace(tmp_path, TRAINING, sample) == Trace([], [])
    assert [path.name for path in (tmp_path / "home").iterdir()] == [".cache"]
    assert [path.name for path in (tmp_path / "home" / ".cache").iterdir()] == ["digit-serving"]


@traced
def test_drawing_a_report_asks_and_writes_nothing_else(tmp_path):
    code = "import sys; from benchmarks.__main__ import main; assert main(sys.argv[1:]) == 0"
    kept = tmp_path / "kept.json"
    shutil.copy(ROOT / "benchmarks" / "results" / "peers.json", kept)
    seen = trace(tmp_path, code, "plot", kept)
    assert not seen.connections
    fonts = tmp_path / "home" / ".cache" / "digit-serving" / "matplotlib"
    assert {Path(file).parent for file in seen.files} <= {tmp_path, fonts}


def test_only_one_file_a_package_imports_onnxruntime_itself():
    importing = re.compile(r"(?m)^\s*(import|from) onnxruntime\b")
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in (
            "serving",
            "digit_classifier",
            "digit_scoring",
            "training",
            "benchmarks",
            "tests",
        )
        for path in (ROOT / folder).rglob("*.py")
        if importing.search(path.read_text())
    }
    apart = "benchmarks/peers/", "tests/proof/census/"
    assert {path for path in found if not path.startswith(apart)} == IMPORTERS


@pytest.mark.parametrize(
    "module",
    [each.removesuffix(".py").replace("/", ".") for each in sorted(IMPORTERS)],
)
@pytest.mark.parametrize(("given", "value"), [("", "1"), ("0", "0")])
def test_telemetry_is_off_unless_the_user_decides(module, given, value):
    code = f"{WITHOUT_KERAS}; import os, {module}; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {"PATH": "/usr/bin:/bin", "CI": "1", "PYTHONPATH": str(ROOT)}
    if given:
        environment["ORT_DISABLE_TELEMETRY"] = given
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.split() == [value]
