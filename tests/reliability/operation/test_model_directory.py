"""The model directory disappears or holds a trap while its model is served."""

import os
import shutil
import signal
from pathlib import Path

import grpc
import pytest

from serving import Client
from serving.digits.wire import encode_request
from tests.reliability.operation.test_signals import end_of, starting_server
from tests.reliability.operation.test_swaps import outcomes
from tests.serving.catalog.test_reload import wait_for_version
from tests.serving.server.test_supervisor import workers_of
from tests.support import published
from tests.support.load import ClosedLoop
from tests.support.processes import wait_until
from tests.support.servers import running_server


def read_until(server, text):
    """Read the server's log up to a line that holds `text`."""
    lines = []
    while line := server.process.stderr.readline():
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"it ended: {''.join(lines)}")


def test_worker_that_cannot_restart_leaves_the_other_serving(model_dir, images):
    options = ("--workers", "2", "--self-test-interval", "0.2")
    with running_server(model_dir.parent, *options) as server:
        first, second = workers_of(server)
        away = model_dir.rename(model_dir.with_name("away"))
        os.kill(first, signal.SIGKILL)
        for _ in range(7):  # one more than ends a server without another worker
            read_until(server, " died ")
        assert second in workers_of(server)
        requests = [encode_request(image.tobytes()) for image in images[:10]]
        with ClosedLoop(server.address, requests, in_flight=4) as load:
            load.wait_for(50)
        assert {call.code for call in load.calls} == {grpc.StatusCode.OK}
        away.rename(model_dir)
        read_until(server, "worker restarted, 2 serving")
        assert server.stop() == 0


def test_what_is_no_regular_file_never_holds_up_the_next_version(model_dir):
    with running_server(model_dir.parent) as server:
        num_refused = 0
        for kind in published.SPECIAL:
            for file_name in ("manifest.json", "model.onnx"):
                num_refused += 1
                published.special(model_dir, "2", file_name, kind)
                server.process.send_signal(signal.SIGHUP)
                wait_until(lambda wanted=num_refused: outcomes(server) == (0, wanted))
                shutil.rmtree(model_dir / "2")
        published.good(model_dir, "3")
        server.process.send_signal(signal.SIGHUP)
        with Client(server.address) as client:
            wait_for_version(client, "3")
        assert server.stop() == 0


def test_endless_model_is_refused_and_the_next_version_adopted(model_dir):
    with running_server(model_dir.parent) as server:
        published.endless(model_dir, "2")
        server.process.send_signal(signal.SIGHUP)
        assert "version 2 is not ready after 10 s" in read_until(server, "refused version")
        published.good(model_dir, "3")
        server.process.send_signal(signal.SIGHUP)
        with Client(server.address) as client:
            wait_for_version(client, "3")
        assert server.stop() == 0


def test_stop_does_not_wait_for_a_model_that_hangs(model_dir, images):
    with running_server(model_dir.parent) as server:
        published.endless(model_dir, "2")
        server.process.send_signal(signal.SIGHUP)
        with Client(server.address) as client:
            wait_until_busy(server.process.pid)
            assert client.classify(images[:1]).model_version == "1"
        assert server.stop() == 0
        assert "refused version" not in server.process.stderr.read(), "it has waited"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_stop_while_the_first_model_hangs_is_clean(model_dir, workers):
    published.endless(model_dir, "2")
    shutil.rmtree(model_dir / "1")
    options = ("--workers", workers)
    with starting_server(model_dir.parent, *options) as process:
        wait_until_busy(process.pid)
        process.terminate()
        assert end_of(process) == (0, "")


def wait_until_busy(pid):
    """Wait until a process and its children have computed for a while: an endless model does."""
    before_s = cpu_s(pid)
    wait_until(lambda: cpu_s(pid) > before_s + 1.0)


def cpu_s(pid):
    """How long a process and its children have computed."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
              for each in (pid, *children)]  # fmt: skip
    return sum(int(ticks) for each in fields for ticks in each[11:13]) / os.sysconf("SC_CLK_TCK")
