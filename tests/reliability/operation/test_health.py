"""Health follows the state of the engine."""

import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from time import perf_counter

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.calls import CallRequest
from benchmarks.loops import arrivals, closed, open_loop
from benchmarks.methods import encode_digits
from digit_classifier import Classifier
from serving import Client
from serving.system.cores import usable_cores
from tests.support.fakes import image_with
from tests.support.raw import CLASSIFY
from tests.support.servers import TIMEOUT_S, is_serving, paced_server, running_server, wait_until

INTERVAL_S = 0.3


def test_model_that_hangs_is_not_serving_by_its_name_while_another_goes_on():
    with paced_server(self_test_interval_s=INTERVAL_S, with_other=True) as server:
        with grpc.insecure_channel(server.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check

            def are_serving(*names):
                answers = [check(health_pb2.HealthCheckRequest(service=name)) for name in names]
                return [each.status == health_pb2.HealthCheckResponse.SERVING for each in answers]

            assert are_serving("digits", "other", "digits.v1.DigitClassifier") == 3 * [True]
            server.tell("hold")
            wait_until(lambda: not all(are_serving("digits")))
            names = ("digits", "digits.v1.DigitClassifier", "other", "", INFERENCE)
            assert are_serving(*names) == [False, False, True, True, True]
            assert ready(server) == (200, "SERVING\nNOT_SERVING model digits\n")
            with Client(server.address) as client:
                assert client.infer("other", {"images": image_with(7)}) is not None
            server.tell("release")
            wait_until(lambda: all(are_serving("digits")))
            assert ready(server) == (200, "SERVING\n")
        assert_answers(server)
        assert server.stop() == 0


INFERENCE = "inference.GRPCInferenceService"


def ready(server):
    with urllib.request.urlopen(f"http://{server.facts['metrics']}/readyz") as answer:
        return answer.status, answer.read().decode()


def test_engine_that_hangs_with_a_full_queue_is_not_serving():
    options = {"queue_capacity": 1, "self_test_interval_s": INTERVAL_S}
    with paced_server(**options) as server:
        server.tell("hold")
        with grpc.insecure_channel(server.address) as channel:
            method = channel.unary_unary(CLASSIFY)
            request = b"\x0a\x90\x06" + image_with(1).tobytes()
            calls = [method.future(request, timeout=TIMEOUT_S) for _ in range(5)]
            wait_until(lambda: not is_serving(server.address))
            server.tell("release")
            wait_until(lambda: is_serving(server.address))
            assert {call.code() for call in calls} >= {grpc.StatusCode.OK}
        assert server.stop() == 0


def test_engine_that_answers_wrongly_is_not_serving_until_it_is_right():
    with paced_server(self_test_interval_s=INTERVAL_S) as server:
        with grpc.insecure_channel(server.address) as channel:
            states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(states).status == health_pb2.HealthCheckResponse.SERVING
            server.tell("lie")
            assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
            server.tell("be honest")
            assert next(states).status == health_pb2.HealthCheckResponse.SERVING
        assert_answers(server)
        assert server.stop() == 0


def test_server_that_is_merely_busy_stays_serving():
    options = {"queue_capacity": 50, "max_batch_size": 8, "service_s": 0.02,
               "self_test_interval_s": INTERVAL_S}  # fmt: skip
    with (
        paced_server(**options) as server,
        grpc.insecure_channel(
            server.address, options=(("grpc.use_local_subchannel_pool", 1),)
        ) as channel,
    ):
        states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(states).status == health_pb2.HealthCheckResponse.SERVING
        method = channel.unary_unary(CLASSIFY)
        request = b"\x0a\x90\x06" + image_with(1).tobytes()
        for _ in range(20):  # some 2 s with a full queue
            calls = [method.future(request, timeout=TIMEOUT_S) for _ in range(100)]
            assert {call.code() for call in calls} <= {
                grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
            }  # fmt: skip
        server.process.send_signal(signal.SIGTERM)
        # The first change that the watcher gets is the drain.
        assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.process.wait(TIMEOUT_S) == 0


def test_server_that_lacks_cores_stays_serving():
    seen: list[int] = []
    with (
        paced_server(self_test_interval_s=0.02) as server,
        grpc.insecure_channel(server.address) as channel,
        ExitStack() as stack,
    ):
        states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())

        def watch():
            with suppress(grpc.RpcError):  # it is cancelled
                seen.extend(state.status for state in states)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(30 * usable_cores()):
            burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(burner.wait)
            stack.callback(burner.kill)
        time.sleep(3.0)
        states.cancel()
        watcher.join()
        stack.close()
        assert seen == [health_pb2.HealthCheckResponse.SERVING]
        assert server.stop() == 0


def assert_answers(server):
    with Classifier.connect(server.address) as client:
        assert client.classify(image_with(7)).digits.tolist() == [7]


# A server whose process stands still for a while, measured by the two kinds of load


STALL_S = 0.2
CONNECT_S = 3.0
"""How long connecting, and collecting the garbage of this process, may take."""


def test_open_loop_shows_a_stall_of_a_server_and_closed_loop_hides_it(models, images):
    with running_server(models, "--device", "cpu") as server:
        message = encode_digits("digits", {"images": images[:1]})
        question = CallRequest(address=server.address, path=CLASSIFY, message=message)
        offsets = arrivals("constant", rate=200, seconds=1.0, seed=0)

        @contextmanager
        def stalled():
            """Stop the server's process half a second after the time that is returned."""
            begin_s, stop_s = perf_counter() + CONNECT_S, CONNECT_S + 0.5
            stop = threading.Timer(stop_s, server.process.send_signal, (signal.SIGSTOP,))
            resume = threading.Timer(
                stop_s + STALL_S, server.process.send_signal, (signal.SIGCONT,)
            )
            stop.start()
            resume.start()
            yield begin_s
            stop.join()
            resume.join()

        with stalled() as begin_s:
            opened = open_loop(question, offsets, begin_s, 2)
        with stalled() as begin_s:
            hidden = closed(question, [1], begin_s, 1.0)
    # 40 of 200 calls were due during the stall. Of a closed loop's one was.
    assert np.quantile(opened.latencies_s, 0.99) > 0.9 * STALL_S
    assert hidden.latencies_s.max() > 0.9 * STALL_S
    assert np.quantile(hidden.latencies_s, 0.99) < 0.1 * STALL_S
