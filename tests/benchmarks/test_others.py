"""Other projects' servers, real clients and networks, as far as they are here without an index."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks import others, runner, zoo
from benchmarks.clients import ClientLoad
from benchmarks.comparison import workload_of
from benchmarks.figures import Figures
from benchmarks.methods import MSGPACK, json_of
from benchmarks.network import Demand, Generator
from benchmarks.others import PEERS, NotMeasured, OtherServer, peer_process
from benchmarks.runner import Suite
from benchmarks.targets import Spec, open_target
from benchmarks.workload import golden
from tests.benchmarks.test_report import rows_of
from tests.support.servers import fake_service, running_server

needs_h2load = pytest.mark.skipif(not shutil.which("h2load"), reason="h2load is not installed")
SERVER = """
import http.server, json, sys
from pathlib import Path
mode, port = sys.argv[1], int(sys.argv[2])
if mode == "dead":
    sys.exit("it has no licence")
outputs = json.loads(Path(sys.argv[3]).read_text())
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, count = "HTTP/1.1", 0
    def do_POST(self):
        Handler.count += 1
        self.rfile.read(int(self.headers["content-length"]))
        status = 500 if mode == "failing" and Handler.count > 3 else 200
        body = json.dumps({"output": [0.0] * len(outputs) if mode == "wrong" else outputs}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    zoo.make(folder, ("digits",))
    return folder / "digits.onnx"


def command_of(script, outputs, mode, programs, model, port):
    return [sys.executable, str(script), mode, str(port), str(outputs)]


@pytest.fixture
def peers(tmp_path, file, monkeypatch):
    """Servers that answer rightly, wrongly, not always, or not at all, each named by that."""
    workload = workload_of(file, 0)
    script, outputs = tmp_path / "server.py", tmp_path / "outputs.json"
    script.write_text(SERVER)
    outputs.write_text(str(workload.outputs.tolist()))
    for mode in ("right", "wrong", "failing", "dead"):
        command = partial(command_of, script, outputs, mode)
        peer = OtherServer(mode, mode, (), json_of("/"), command)
        monkeypatch.setitem(PEERS, mode, peer)
    return workload


@needs_h2load
def test_peer_that_fails_has_an_error_column_and_no_rate(peers, file, setting):
    suite = Suite(
        name="x", specs=[Spec(target=name) for name in ("right", "failing", "wrong", "dead")],
        scenarios=["ClosedLoop"], callers=[(2, 0)], rounds=2, seconds=0.1, model="digits",
        is_apart=True,
    )  # fmt: skip
    with Generator(setting.generator.cores, "h2load") as generator:
        here = replace(setting, model=file, workload=peers, generator=generator)
        kept = runner.run(suite, here, lambda step: None)
    figures = Figures(kept)
    rates = {cell.spec.target: figures.of(cell) for cell in figures.samples}
    assert rates["right"]
    assert rates["failing"] is None
    rows = {row[0]: row for row in rows_of(kept, "digits, JSON over HTTP")}
    assert int(rows["failing"][-1]) > 0
    assert rows["failing"][2:9] == ["–"] * 7
    assert rows["right"][-1] == "0"
    reasons = {skip.spec.target: skip.reason for skip in kept.skips}
    assert "it gives other numbers" in reasons["wrong"]
    assert reasons["dead"] == "it ended: it has no licence"


def test_peer_that_is_not_installed_is_not_measured(tmp_path, file, monkeypatch):
    monkeypatch.setattr(others, "ENVIRONMENTS", tmp_path)
    with pytest.raises(NotMeasured, match="make bench-peers"):
        peer_process(PEERS["mosec"], file, [0]).__enter__()


def test_package_that_pip_does_not_find_is_not_measured(tmp_path, monkeypatch):
    """By the environment of the tests: to make one takes three seconds."""
    run = subprocess.run

    def made(command, **options):
        if command[1:3] != ["-m", "venv"]:
            return run([sys.executable, *command[1:]], **options)
        (tmp_path / "x").mkdir()
        return None

    monkeypatch.setattr(others, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(subprocess, "run", made)
    with pytest.raises(NotMeasured, match=r"can't be installed: .*no-such-folder"):
        others.install("x", ("/no-such-folder/at-all",))
    assert not (tmp_path / "x" / ".installed").exists()


def test_environment_is_made_again_for_other_packages(tmp_path, monkeypatch):
    steps = []

    def run(command, **_):
        (tmp_path / "x").mkdir(exist_ok=True)
        steps.append(command[-1])

    monkeypatch.setattr(others, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    for packages in (("a",), ("a",), ("a", "b")):
        others.install("x", packages)
    assert steps == [str(tmp_path / "x"), "a", str(tmp_path / "x"), "b"]


@pytest.mark.parametrize("client", ["Client", "AsyncClient", "grpcio stub"])
def test_clients_are_answered_and_their_time_is_counted(models, client):
    with running_server(models, "--device", "cpu") as server:
        load = ClientLoad(client, server.address, golden(models), sorted(os.sched_getaffinity(0)))
        trace = load.closed(Demand(3, 2, 0.2))
    assert (trace.generator, trace.num_errors) == (client, 0)
    assert len(trace.latencies_s) >= 3
    assert trace.busy > 0


def test_msgpack_of_bytes_is_written_and_read():
    rows = np.arange(300, dtype=np.float32).reshape(1, 300)
    packed = MSGPACK.encode("x", {"x": rows})
    assert packed == b"\x81\xa5input\xc6\x00\x00\x04\xb0" + rows.tobytes()
    head = b"\x81\xa6output"
    for kind, size in ((b"\xc5", 2), (b"\xc6", 4)):
        answer = head + kind + (1200).to_bytes(size, "big") + rows.tobytes()
        np.testing.assert_array_equal(MSGPACK.outputs(answer), rows.ravel())
    short = head + b"\xc4\x08" + rows[:, :2].tobytes()
    np.testing.assert_array_equal(MSGPACK.outputs(short), [0, 1])


def test_triton_that_is_not_here_is_not_measured(file, monkeypatch, setting):
    monkeypatch.setenv("PATH", "/nowhere")
    here = replace(setting, model=file, workload=workload_of(file, 0))
    with (
        pytest.raises(NotMeasured, match="`tritonserver` is not on the PATH"),
        open_target(Spec(target="triton"), here),
    ):
        pass


def test_client_of_another_server_is_an_error_of_one_line(models):
    with fake_service("any.Service", {}) as address:
        load = ClientLoad("Client", address, golden(models), [0])
        with pytest.raises(OSError, match=r"Client failed: .*Method not found"):
            load.closed(Demand(1, 1, 0.1))


@pytest.mark.parametrize("name", ["encoder", "tabular", "cnn"])
def test_networks_are_batched_and_the_same_each_time(tmp_path, name):
    from serving import Model

    for folder in ("one", "two"):
        zoo.make(tmp_path / folder, (name,))
    one, two = ((tmp_path / folder / f"{name}.onnx").read_bytes() for folder in ("one", "two"))
    assert one == two
    for path in (tmp_path / "one").iterdir():
        with Model.load(path, device="cpu") as model:
            assert model.describe().is_batchable, path
    assert np.isfinite(workload_of(tmp_path / "one" / f"{name}.onnx", 0).outputs).all()
