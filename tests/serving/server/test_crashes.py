"""A model whose runs end processes: the others go on, and it rests for longer each time."""

import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import grpc
import numpy as np
import pytest

from serving.batching.batcher import Batcher
from serving.config import BatchingConfig
from serving.errors import Unavailable
from serving.oip import inference_pb
from serving.server.crashes import Crashes
from serving.system.crash_record import CRASHES, CrashRecord, number_of
from serving.telemetry.metrics import Metrics
from tests.serving.model import graphs
from tests.serving.server.test_supervisor import wait_for_line
from tests.serving.telemetry.test_metrics import scrape, value
from tests.support.fakes import FakeOwner, GatedModel
from tests.support.load import OWN_CONNECTION
from tests.support.servers import running_server, wait_until

LEAST = np.full((1, 4), -(2**63), np.int64)
"""Divided by -1, it ends the process: the quotient has no place in 64 bits (SIGFPE)."""
MINUS_ONE = np.full((1, 4), -1, np.int64)
ONES = np.ones((1, 4), np.float32)
BAD, GOOD = ("bad", "1"), ("good", "1")


# The record


@pytest.mark.parametrize("number", sorted(CRASHES))
def test_crash_is_that_of_the_model_in_the_thread_that_got_the_signal(number):
    """The other thread runs a model, too."""
    code = f"""
import ctypes, sys, threading
from serving.system.crash_record import CrashRecord
record = CrashRecord(int(sys.argv[1]))
record.trace_crashes()
begun = threading.Event()
other = record.guarded({GOOD}, lambda feeds: (begun.set(), threading.Event().wait()))
threading.Thread(target=other, args=(None,), daemon=True).start()
begun.wait()
record.guarded({("done", "1")}, lambda feeds: None)(None)
record.guarded({BAD}, getattr(ctypes.CDLL(None), "raise"))({int(number)})
"""
    record = CrashRecord()
    command = [sys.executable, "-c", code, str(record.file)]
    ended = subprocess.run(command, pass_fds=[record.file], check=False)
    assert ended.returncode == -number
    assert record.culprits() == {number_of(BAD)}
    record.close()


def test_crash_outside_of_runs_is_no_models_fault():
    code = f"""
import os, signal, sys
from serving.system.crash_record import CrashRecord
record = CrashRecord(int(sys.argv[1]))
record.trace_crashes()
try:
    record.guarded({BAD}, lambda feeds: 1 / 0)(None)
except ZeroDivisionError:
    os.kill(os.getpid(), signal.SIGSEGV)
"""
    record = CrashRecord()
    ended = subprocess.run(
        [sys.executable, "-c", code, str(record.file)], pass_fds=[record.file], check=False
    )
    assert ended.returncode == -signal.SIGSEGV
    assert not record.culprits()
    record.close()


def test_more_threads_than_slots_run_all_the_same():
    record, gate, begun = CrashRecord(), threading.Event(), threading.Semaphore(0)

    def wait(feeds):
        begun.release()
        return gate.wait(10)

    threads = [threading.Thread(target=record.guarded(BAD, wait), args=(None,)) for _ in range(80)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert begun.acquire(timeout=10)
    assert record.culprits() == {number_of(BAD)}, "no trace: each that runs"
    gate.set()
    for thread in threads:
        thread.join()
    assert not record.culprits()
    record.close()


# How long a model rests


def test_model_rests_longer_with_each_crash_and_others_never_do():
    crashes, rests_s = Crashes(), []
    now_s = 1000.0
    for _ in range(10):
        _, rest_s = crashes.note(7, now_s)
        assert crashes.blocked(now_s + rest_s - 0.1) == {7: now_s + rest_s}
        now_s += rest_s
        assert not crashes.blocked(now_s)
        rests_s.append(rest_s)
    assert rests_s == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert crashes.note(8, now_s)[0] == 1
    assert crashes.note(7, now_s + 1801)[0] == 1, "long ago"


def test_first_crash_costs_no_more_than_a_restart():
    crashes = Crashes()
    crashes.note(7, 1000.0)
    crashes.end_pauses(1000.5)
    assert not crashes.blocked(1000.5)
    assert crashes.note(7, 1001.0) == (2, 10.0)
    crashes.end_pauses(1001.5)
    assert crashes.blocked(1001.5) == {7: 1011.0}


# Batchers


def test_blocked_model_refuses_what_waits_and_what_comes_until_it_is_not():
    model = GatedModel()
    batcher = Batcher(model, BatchingConfig(), Metrics())
    owner = FakeOwner(batcher)
    running = owner.submit(1)
    model.wait_until_running()
    waiting = [owner.submit(value) for value in (2, 3)]
    batcher.refuse(Unavailable("it rests"))
    later = owner.submit(4), owner.submit(5, is_stream=True)
    assert [type(each.outcome) for each in (*waiting, *later)] == [Unavailable] * 4
    assert not batcher.num_waiting
    model.open()
    owner.wait(running)
    assert running.digits == [1], "nobody can end a run"
    batcher.refuse(None)
    model.open()
    again = owner.submit(6)
    owner.wait(again)
    assert again.digits == [6]
    batcher.close()


# Real processes


@pytest.fixture
def crashing(tmp_path):
    """A server of two workers with a model that can end its process, and one that can't."""
    shape = ["N", 4]
    divide = graphs.model(
        [graphs.node("Div", ["x", "d"], ["y"])],
        [graphs.value("x", "INT64", shape), graphs.value("d", "INT64", shape)],
        [graphs.value("y", "INT64", shape)],
    )
    files = (
        graphs.save(divide, tmp_path, "bad.onnx"),
        graphs.save(graphs.two_layers(), tmp_path, "good.onnx"),
    )
    with running_server(None, *map(str, files), "--workers", "2") as server:
        yield server


def infer(channel, model, **inputs):
    """Call a model once, without retries; return the status's name."""
    request = inference_pb.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        kind = "INT64" if array.dtype == np.int64 else "FP32"
        request.inputs.add(name=name, datatype=kind, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        method(request.SerializeToString(), timeout=5)
    except grpc.RpcError as err:
        return err.code().name
    return "OK"


def poison(channel):
    return infer(channel, "bad", x=LEAST, d=MINUS_ONE)


class Callers:
    """Threads that call a model, each on its own connection, until told to stop."""

    def __init__(self, address, call, number):
        self.outcomes: Counter[str] = Counter()
        self._address, self._call = address, call
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        with connected(self._address) as channel:
            while not self._is_over.wait(0.01):
                self.outcomes[self._call(channel)] += 1

    def stop(self):
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        return self.outcomes


def connected(address):
    options = ("grpc.enable_retries", 0), ("grpc.initial_reconnect_backoff_ms", 100)
    return grpc.insecure_channel(address, (*OWN_CONNECTION, *options))


def wait_for_crashes(server, number):
    def holds():
        return (
            value(scrape(server), "serving_model_crashes_total", model="bad", version="1") == number
        )

    wait_until(holds)


def test_model_that_ends_workers_rests_and_the_other_is_answered(crashing):
    """The good model's callers lose what is in flight in the process that dies, and no more."""
    with connected(crashing.address) as channel:
        assert infer(channel, "bad", x=LEAST, d=-2 * MINUS_ONE) == "OK"
    good = Callers(crashing.address, lambda channel: infer(channel, "good", x=ONES), 8)
    for number in (1, 2):
        with connected(crashing.address) as channel:
            wait_until(lambda: infer(channel, "bad", x=LEAST, d=-MINUS_ONE) == "OK")
            assert poison(channel) == "UNAVAILABLE"
        wait_for_crashes(crashing, number)
        wait_for_line(crashing, "worker restarted, 2 serving")  # till then the other one is alone
    with connected(crashing.address) as channel:
        for _ in range(50):
            assert poison(channel) == "UNAVAILABLE"
            assert infer(channel, "bad", x=LEAST, d=-MINUS_ONE) == "UNAVAILABLE", "it rests"
    outcomes = good.stop()
    assert outcomes["OK"] > 100
    assert outcomes.keys() <= {"OK", "UNAVAILABLE"}
    assert outcomes["UNAVAILABLE"] <= 2 * 8
    assert value(scrape(crashing), "serving_worker_restarts_total") == 2
    assert crashing.stop() == 0


@pytest.mark.slow
def test_server_outlives_callers_that_end_its_processes_for_9_s(crashing):
    good = Callers(crashing.address, lambda channel: infer(channel, "good", x=ONES), 4)
    bad = Callers(crashing.address, poison, 4)
    time.sleep(9.0)
    outcomes = bad.stop(), good.stop()
    assert outcomes[0].keys() == {"UNAVAILABLE"}
    assert outcomes[0]["UNAVAILABLE"] > 100
    assert outcomes[1]["OK"] > 100
    num_crashes = value(scrape(crashing), "serving_worker_restarts_total")
    assert 2 <= num_crashes <= 4, "callers that came together may end both workers at once"
    assert crashing.stop() == 0
