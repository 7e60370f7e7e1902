"""A hundred reloads under load, every other one bad: no failed request, no wrong answer."""

import shutil
import signal
import time

import grpc
import numpy as np
import pytest

from serving.digits.wire import decode_response, encode_request
from tests.serving.telemetry.test_metrics import scrape, value
from tests.support import published
from tests.support.load import ClosedLoop
from tests.support.processes import wait_until
from tests.support.servers import running_server

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
