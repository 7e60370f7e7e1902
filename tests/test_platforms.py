"""Without Linux's own features: the client, the classifier, pictures and training still work."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from serving.images import Images
from tests.support.servers import RunningServer

ROOT = Path(__file__).parent.parent
SERVED = ("numpy", "grpc", "PIL.Image", "serving.model.onnx_runtime")
TRAINED = ("tensorflow", "tf2onnx", "onnx", "matplotlib.figure", "serving.model.onnx_runtime")


def run(folder: Path, packages: tuple[str, ...], code: str, *arguments: object) -> str:
    """Run code in an interpreter that lacks it; return its output."""
    code = f"from tests.support.elsewhere import leave_linux\nleave_linux(*{packages!r})\n{code}"
    result = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", code, *map(str, arguments)],
        cwd=folder, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder),
                         "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture
def picture(images: Images, tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    Image.fromarray(images[0].reshape(28, 28)).save(path)
    return path


def test_client_asks_a_server(server: RunningServer, tmp_path: Path) -> None:
    code = """
import asyncio, sys
import numpy as np
from serving import AsyncClient, Client

async def ask():
    async with AsyncClient(sys.argv[1]) as client:
        return await client.classify(np.zeros((3, 784), np.uint8))

with Client(sys.argv[1]) as client:
    assert client.model_info().name == "digits"
    assert len(client.classify(np.zeros((3, 784), np.uint8)).digits) == 3
assert len(asyncio.run(ask()).digits) == 3
"""
    run(tmp_path, SERVED, code, server.address)


def test_classifier_runs_in_process(tmp_path: Path) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from serving import Classifier

with Classifier.pretrained() as classifier, ThreadPoolExecutor(8) as threads:
    images = [np.zeros((size, 784), np.uint8) for size in (1, 3, 600)] * 8
    answers = list(threads.map(classifier.classify, images))
assert [len(answer.digits) for answer in answers] == [1, 3, 600] * 8
"""
    run(tmp_path, SERVED, code)


def test_pictures_are_classified(picture: Path) -> None:
    code = """
import sys
from serving.__main__ import main
assert main(["info"]) == 0
assert main(["classify", sys.argv[1]]) == 0
"""
    output = run(picture.parent, SERVED, code, picture)
    assert output.splitlines()[-1].startswith(f"{picture}: ")


def test_packages_for_the_server_alone_are_not_needed(picture: Path) -> None:
    code = """
import sys
sys.modules["uvloop"] = None
from serving.__main__ import main
assert main(["classify", sys.argv[1]]) == 0
"""
    command = [sys.executable, "-c", code, str(picture)]
    subprocess.run(command, check=True, cwd=ROOT)


def test_server_says_in_one_line_what_it_needs(tmp_path: Path) -> None:
    code = "from serving.__main__ import main\nassert main(['serve', '--port', '0']) == 2"
    (line,) = run(tmp_path, SERVED, code).splitlines()
    assert line.startswith("digit-serving: serve needs Linux")


def test_benchmarks_say_in_one_line_what_they_need(tmp_path: Path) -> None:
    code = "from benchmarks.__main__ import main\nassert main(['run']) == 2"
    (line,) = run(tmp_path, SERVED, code).splitlines()
    assert line.startswith("python -m benchmarks: needs Linux")


def test_kept_benchmarks_are_drawn(tmp_path: Path) -> None:
    kept = ROOT / "benchmarks" / "results" / "bench.json"
    (tmp_path / "kept.json").write_bytes(kept.read_bytes())
    code = "from benchmarks.__main__ import main\nassert main(['plot', 'kept.json']) == 0"
    run(tmp_path, (*SERVED, "matplotlib.figure"), code)
    assert (tmp_path / "kept.md").is_file()


@pytest.mark.slow
def test_training_and_export_publish_version_after_version(tmp_path: Path) -> None:
    code = """
import sys
import numpy as np
from training.__main__ import main
from training.data.mnist import Mnist

with np.load(sys.argv[1]) as arrays:
    sample = Mnist(**arrays)
Mnist.load = lambda data_dir: sample
assert main(["train", "--recipe", "seed", "--epochs", "2"]) == 0
assert main(["export"]) == 0
assert main(["export"]) == 0
"""
    run(tmp_path, TRAINED, code, ROOT / "tests" / "data" / "mnist-sample.npz")
    assert (tmp_path / "models" / "digits" / "2" / "model.onnx").is_file()
    assert not list((tmp_path / "models" / "digits").glob(".*"))
