"""The model directory disappears or holds a trap while its model is served."""

import os
import shutil
import signal
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from digit_classifier import Classifier
from digit_classifier.wire import decode_response, encode_request
from tests.reliability.operation.test_signals import end_of, starting_server
from tests.serving.server.test_supervisor import workers_of
from tests.serving.telemetry.test_metrics import scrape, value
from tests.support import published
from tests.support.load import ClosedLoop
from tests.support.servers import running_server, wait_until


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


def test_stop_does_not_wait_for_a_model_that_hangs(model_dir, images):
    with running_server(model_dir.parent) as server:
        published.endless(model_dir, "2")
        server.process.send_signal(signal.SIGHUP)
        with Classifier.connect(server.address) as client:
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
    """Wait until a process and those below it have computed for a while: an endless model does."""
    before_s = cpu_s(pid)
    wait_until(lambda: cpu_s(pid) > before_s + 1.0)


def cpu_s(pid):
    """How long a process and those below it have computed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
        below = [each for task in tasks for each in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return 0.0
    own_s = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return own_s + sum(map(cpu_s, below))


# A hundred reloads under load, every other one bad: no failed request, no wrong answer


NUM_GOOD = NUM_BAD = 50


@pytest.fixture
def following(model_dir):
    with running_server(model_dir.parent) as server:
        yield server


def outcomes(server):
    """How many versions were adopted and refused so far."""
    samples = scrape(server)
    adopted, failed = (
        value(samples, "serving_reloads_total", outcome=outcome) for outcome in ("loaded", "failed")
    )
    return int(adopted), int(failed)


def test_a_hundred_reloads_under_load_fail_no_request(following, model_dir, classifier, images):
    expected = classifier.classify(images).digits
    kinds = list(published.BAD.values())
    good = ["1"]
    windows = []
    requests = [encode_request(image.tobytes()) for image in images]
    with ClosedLoop(following.address, requests, in_flight=8) as load:
        for number in range(NUM_GOOD + NUM_BAD):
            version = str(number + 2)
            if number % 2 == 0:
                published.good(model_dir, version)
            else:
                kinds[number // 2 % len(kinds)](model_dir, version)
            started_s = time.monotonic()
            following.process.send_signal(signal.SIGHUP)
            wanted = (number // 2 + 1, (number + 1) // 2)
            wait_until(lambda wanted=wanted: outcomes(following) == wanted)
            windows.append((started_s, time.monotonic()))
            if number % 2 == 0:
                if number:  # version 1 stays: the others are cast from it
                    shutil.rmtree(model_dir / good[-1])
                good.append(version)
            else:
                shutil.rmtree(model_dir / version)
            load.wait_for(50)  # calls that begin after it
    assert {call.code for call in load.calls} == {grpc.StatusCode.OK}
    answers = [decode_response(call.answer) for call in load.calls]
    wrong = [a for a, c in zip(answers, load.calls, strict=True)
             if a.digits[0] != expected[c.number % len(images)]]  # fmt: skip
    assert not wrong
    assert {answer.model_version for answer in answers} == set(good)
    report(load, windows)
    assert following.stop() == 0


def report(load, windows):
    """Print how long a reload delays the calls beside it; that depends on the machine."""
    during: list[float] = []
    between: list[float] = []
    for call in load.calls:
        beside = any(call.begun_s < end_s and start_s < call.ended_s for start_s, end_s in windows)
        (during if beside else between).append((call.ended_s - call.begun_s) * 1000)
    for name, latencies_ms in (("during", during), ("between", between)):
        p50, p99 = np.percentile(latencies_ms, [50, 99])
        print(f"{name} reloads: {len(latencies_ms)} calls, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
