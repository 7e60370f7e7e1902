"""A server from Python: beside the code, in a process that ends with this one, or in its place."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import serving
from serving.errors import ConfigurationError, Unavailable
from serving.launch import Server, arguments
from tests.serving.http.peer import HttpPeer
from tests.serving.model.graphs import save, two_layers
from tests.support.fakes import TIMEOUT_S
from tests.support.servers import wait_until

ROW = np.ones((1, 4), np.float32)
PAGE = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text("utf-8")


@pytest.fixture
def path(tmp_path):
    return save(two_layers(), tmp_path)


def is_there(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_server_answers_on_all_its_addresses_and_ends_with_the_block(path, log_format):
    with Server(path, max_batch_size=8, log_format=log_format) as server:
        with serving.Client(server.address) as client:
            assert client.infer("model", ROW)["y"].shape == (1, 3)
            assert client.describe("model").max_batch_size == 8
        assert HttpPeer(f"http://{server.http_address}").get("/v2/models/model").status == 200
        assert HttpPeer(f"http://{server.metrics_address}").get("/readyz").status == 200
        pid = server.pid
    assert not is_there(pid)
    server.close()  # again


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nothing": 1}, ConfigurationError, "unknown option nothing"),
        ({"max_batch": 3}, ConfigurationError, "max_batch: did you mean max_batch_size?"),
        ({"hots": "::1"}, ConfigurationError, "unknown option hots: did you mean host?"),
        ({"max_batch_size": 0}, ConfigurationError, "max_batch_size must be at least 1"),
        ({"start_timeout_s": 0.001}, Unavailable, "was not ready within 0.001 s"),
    ],
)
def test_server_that_does_not_start_says_why(path, options, error, words):
    with pytest.raises(error, match=re.escape(words)):
        Server(path, **options)


def test_server_ends_with_a_process_that_is_killed(path):
    code = (
        "import sys, time, serving\n"
        f"server = serving.Server({str(path)!r})\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        assert is_there(pid)
        parent.kill()
        parent.wait(TIMEOUT_S)
        wait_until(lambda: not is_there(pid))


def test_serve_blocks_until_a_signal_and_returns(path):
    code = (
        "import signal, serving\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        f"serving.serve({str(path)!r}, port=0, metrics_port='off', http_port='off')\n"
        "assert signal.getsignal(signal.SIGTERM) is before\n"
        "print('over')"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        ready = process.stdout.readline()
        address = ready.partition(" address=")[2].split()[0]
        with serving.Client(address) as client:
            assert client.models() == ["model"]
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=TIMEOUT_S)[0].endswith("over\n")
    assert process.returncode == 0


@pytest.mark.parametrize("call", ["serving.Server(handler=Same)", "serving.serve(handler=Same)"])
def test_script_without_a_guard_is_one_line(tmp_path, call):
    """Each process of a handler imports its file: that must start no further server."""
    script = tmp_path / "script.py"
    script.write_text(
        "import serving\n\nclass Same(serving.Handler):\n"
        "    inputs = outputs = {'x': serving.Text()}\n\n"
        f"    def predict(self, x):\n        return x\n\n{call}\n"
    )
    command = [sys.executable, str(script)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    call = call.replace("handler=Same", "...")
    expected = f"script.py:9: {call} starts a server whenever the file is imported"
    assert expected in found.stderr
    assert "put it below if __name__ == '__main__':" in found.stderr


def test_serve_says_what_is_wrong_with_an_option(path):
    with pytest.raises(ConfigurationError, match="unknown option nothing=1"):
        serving.serve(path, **{"nothing=1": True})


def test_options_are_those_of_the_command_line():
    words = arguments(
        ("a.onnx", Path("b.onnx")),
        {"reflection": True, "tls_key": None, "model": ["x", "y"], "queue_capacity": 5},
    )
    assert words == [
        "a.onnx",
        "b.onnx",
        "--reflection",
        "--model",
        "x",
        "y",
        "--queue-capacity",
        "5",
    ]


def test_fixture_of_the_page_works(path, tmp_path):
    (fixture,) = re.findall(r"(?s)```python\n(import pytest\n.*?)```", PAGE)
    test = "\n\ndef test_it(client):\n    assert client.models() == ['model']\n"
    (tmp_path / "test_page.py").write_text(fixture + test)
    plugins = ("-p", "no:cacheprovider", "-p", "no:schemathesis")  # it takes a second to import
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "test_page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout
