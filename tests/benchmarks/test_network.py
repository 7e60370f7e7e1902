"""The generators against real servers over real sockets."""

import http.server
import itertools
import os
import shutil
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress

import grpc
import numpy as np
import pytest

from benchmarks import network
from benchmarks.calls import CallRequest
from benchmarks.loops import Outcome, arrivals, closed, open_loop
from benchmarks.methods import encode_digits, encode_infer
from benchmarks.network import Demand, Generator, NetworkLoad, spread
from benchmarks.runner import TIMEOUT_S
from digit_classifier import wire
from digit_classifier.predictions import DIGITS
from digit_classifier.wire import encode_response
from tests.benchmarks.retries import SHORT_S, until_answered
from tests.support.raw import CLASSIFY
from tests.support.servers import fake_server

pytestmark = pytest.mark.process

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = CLASSIFY + "Stream"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
NOW = 0.0


def request(server, images, path=CLASSIFY):
    encode = encode_infer if path in (INFER, STREAM_INFER) else encode_digits
    return CallRequest(
        address=server.address, path=path, message=encode("digits", {"images": images})
    )


@pytest.mark.parametrize("path", [CLASSIFY, INFER])
@pytest.mark.parametrize("num_images", [1, 500])  # 500 do not fit a window of HTTP/2
def test_closed_loop_is_answered(server, images, path, num_images):
    question = request(server, images[:num_images], path)
    trace = until_answered(lambda seconds: closed(question, [2, 1], NOW, seconds))
    assert trace.num_errors == 0
    assert (trace.latencies_s > 0).all()


def test_each_call_has_the_next_message(images):
    asked = []

    def note(message, context):
        asked.append(wire.decode_request(message, 784, 1)[0])
        return encode_response(bytes(1), bytes(DIGITS.row_bytes), "1")

    with fake_server(note) as address:
        first, *others = (
            encode_digits("digits", {"images": np.full((1, 784), value, np.uint8)})
            for value in range(3)
        )
        question = CallRequest(address=address, path=CLASSIFY, message=first, others=others)
        while len(set(asked)) < 3:
            closed(question, [1], NOW, SHORT_S)
    following = itertools.pairwise(asked)
    assert all(value in (0, (before + 1) % 3) for before, value in following)


@contextmanager
def serving(answers):
    """Serve HTTP: answers[i] is sent to the request number i, the last one to all after it.

    Yields:
        The address, and the bodies that have come so far.
    """
    bodies = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.wfile.write(answers[min(len(bodies), len(answers)) - 1])

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()
            thread.join()


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nyes!"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3;x=1\r\nyes\r\n1\r\n!\r\n0\r\n\r\n"
)
FAILED = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED])
def test_calls_of_http_each_have_the_next_body(answer):
    with serving([answer]) as (address, bodies):
        question = CallRequest(
            address=address, path="/", message=b"0", others=[b"11", b"222"], is_http=True
        )
        trace = until_answered(lambda seconds: closed(question, [1], NOW, seconds))
        opened = open_loop(question, np.array([0.0, 0.001, 0.002]), NOW, 2)
    assert (trace.num_errors, opened.num_errors, len(opened.latencies_s)) == (0, 0, 3)
    assert bodies[:4] == [b"0", b"11", b"222", b"0"][: len(bodies)]
    assert set(bodies) == {b"0", b"11", b"222"}


def test_answers_of_http_that_fail_are_errors():
    with serving([WHOLE, WHOLE, FAILED]) as (address, _):
        question = CallRequest(address=address, path="/", message=b"0", is_http=True)
        trace = closed(question, [1], NOW, 10 * SHORT_S)
    assert trace.num_errors == len(trace.latencies_s) - 1 > 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(FAILED, "fails on /"), (b"HTTP/1.0 200 OK\r\n\r\nyes", "without a length")],
)
def test_server_of_http_that_answers_no_call_is_no_target(answer, reason):
    with serving([answer]) as (address, _):
        question = CallRequest(address=address, path="/", message=b"0", is_http=True)
        with pytest.raises(ConnectionError, match=reason):
            closed(question, [1], NOW, SHORT_S)


def test_open_loop_is_answered_call_by_call(server, images):
    offsets = arrivals("poisson", rate=300, seconds=SHORT_S, seed=1)
    trace = open_loop(request(server, images[:1]), offsets, NOW, 2)
    assert trace.num_errors == 0
    assert len(trace.latencies_s) == len(trace.lag_s) == len(offsets)


def test_calls_with_a_deadline_are_all_accounted_for(server, images):
    def offer(rate, seconds):
        offsets = arrivals("constant", rate, seconds, seed=0)
        return open_loop(request(server, images[:1]), offsets, NOW, 4, TIMEOUT_S)

    trace = until_answered(lambda seconds: offer(500, seconds))
    assert trace.outcomes[Outcome.FAILED] == 0
    assert len(trace.latencies_s) == trace.outcomes[Outcome.IN_TIME]
    assert (trace.latencies_s <= TIMEOUT_S).all()
    trace = offer(100_000, 3 * SHORT_S)  # more than a busy machine answers
    ends = (Outcome.IN_TIME, Outcome.REFUSED, Outcome.LATE, Outcome.FAILED)
    assert sum(trace.outcomes[end] for end in ends) == trace.outcomes[Outcome.SENT]
    assert trace.outcomes[Outcome.SENT] <= trace.outcomes[Outcome.DUE] == 30_000
    assert trace.duration_s == pytest.approx(3 * SHORT_S)


def test_calls_that_are_never_answered_count_as_errors(images):
    numbers, is_measured = itertools.count(), threading.Event()

    def first_only(message, context):
        if next(numbers):
            is_measured.wait()
        return encode_response(bytes(1), bytes(DIGITS.row_bytes), "1")

    with fake_server(first_only) as address:
        question = CallRequest(
            address=address, path=CLASSIFY, message=encode_digits("digits", {"images": images[:1]})
        )
        trace = open_loop(question, np.array([0.0, 0.01]), NOW, 1)
        is_measured.set()
    assert (len(trace.latencies_s), trace.num_errors) == (2, 2)
    assert (trace.latencies_s > 1.5).all()


def test_wrong_answers_are_not_load(server, images):
    with pytest.raises(ConnectionError, match="fails on"):
        closed(request(server, images[:1], CLASSIFY[:-8] + "Nope"), [1], NOW, SHORT_S)


def test_h2load_is_not_believed_where_the_server_refuses():
    def refused(request):
        raise ConnectionError("no")

    with Generator([0], "h2load") as generator:
        load = NetworkLoad(generator, lambda _: CallRequest(address="x:1", path="/", message=b""),
                           refused)  # fmt: skip
        with pytest.raises(ConnectionError, match="no"):
            load.closed(Demand(1, 1, SHORT_S))


def test_answers_that_turn_bad_are_errors(images):
    numbers = itertools.count()

    def every_other(message, context):
        if next(numbers) % 2:
            context.abort(grpc.StatusCode.INTERNAL, "no")
        return encode_response(bytes(1), bytes(DIGITS.row_bytes), "1")

    with fake_server(every_other) as address:
        question = CallRequest(
            address=address, path=CLASSIFY, message=encode_digits("digits", {"images": images[:1]})
        )
        trace = until_answered(lambda seconds: closed(question, [1], NOW, seconds))
    assert 0 <= 2 * trace.num_errors - len(trace.latencies_s) <= 1


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
def test_h2load_is_answered(server, images):
    question, cores = request(server, images[:1]), sorted(os.sched_getaffinity(0))
    trace = network.run_h2load(question, 2, 2, 10 * SHORT_S, cores)
    assert trace.generator == "h2load"
    assert trace.num_errors == 0
    assert trace.calls_per_s == pytest.approx(len(trace.latencies_s) / 10 / SHORT_S)


def test_h2load_log_is_read():
    rows = np.array([[1, 200, 1500], [2, 200, 2500], [3, -1, 10]])
    output = "requests: 3 total, 3 started, 3 done, 2 succeeded, 1 failed, 0 errored, 0 timeout"
    trace = network.trace_of(rows, 2.0, 0.5, output)
    np.testing.assert_allclose(trace.latencies_s, [0.0015, 0.0025, 1e-5])
    assert (trace.num_errors, trace.calls_per_s, trace.busy) == (1, 1.0, 0.25)


TRAFFIC = "traffic: 1.40KB (1430) total, 12B (12) headers (space savings 95%), 780B (780) data"


@pytest.fixture
def h2load_stub(tmp_path, monkeypatch):
    """A program in h2load's place: 20 calls with HTTP status 200, and 780 bytes of data."""
    program = tmp_path / "h2load"
    program.write_text(f"""#!{sys.executable}
import sys
(log,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--log-file=")]
with open(log, "w") as file:
    file.writelines(f"{{number}}\\t200\\t1000\\n" for number in range(20))
print("requests: 20 total, 20 started, 20 done, 20 succeeded, 0 failed, 0 errored, 0 timeout")
print("{TRAFFIC}")
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


@pytest.mark.usefixtures("h2load_stub")
@pytest.mark.parametrize(
    ("answer_bytes", "counted", "num_errors"),
    [(34, [0, 0], 0), (73, [0, 0], 10), (34, [3, 8], 5), (73, [3, 18], 15)],
)
def test_refusals_behind_http_status_200_are_errors(answer_bytes, counted, num_errors):
    counts = iter(Counter(RESOURCE_EXHAUSTED=number) for number in counted)
    with Generator([0], "h2load") as generator:
        load = NetworkLoad(
            generator, lambda _: CallRequest(address="x:1", path="/", message=b""),
            lambda _: bytes(answer_bytes), lambda: next(counts),
        )  # fmt: skip
        trace = load.closed(Demand(2, 1, 1.0))
    assert (len(trace.latencies_s), trace.num_errors) == (20, num_errors)
    assert trace.calls_per_s == 20 - num_errors
    assert trace.num_refused == counted[1] - counted[0]


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
def test_refusals_are_counted_behind_h2load(images):
    numbers = itertools.count()

    def every_other(message, context):
        if next(numbers) % 2:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
        return encode_response(bytes(1), bytes(DIGITS.row_bytes), "1")

    answer = encode_response(bytes(1), bytes(DIGITS.row_bytes), "1")
    with fake_server(every_other) as address:
        question = CallRequest(
            address=address, path=CLASSIFY, message=encode_digits("digits", {"images": images[:1]})
        )
        cores = sorted(os.sched_getaffinity(0))
        size = 5 + len(answer)
        trace = network.run_h2load(question, 1, 1, 10 * SHORT_S, cores, size)
    assert abs(2 * trace.num_errors - len(trace.latencies_s)) <= 3


def test_server_of_ours_says_how_many_calls_it_failed(server, images):
    address = server.facts["metrics"]
    before = network.count_failed(address)
    with grpc.insecure_channel(server.address) as channel:
        for message in (b"\xff", b"", encode_digits("digits", {"images": images[:1]})):
            with suppress(grpc.RpcError):
                channel.unary_unary(CLASSIFY)(message, timeout=20)
    assert network.count_failed(address) - before == {"INVALID_ARGUMENT": 2}


@pytest.mark.parametrize(("number", "parts"), [(64, 8), (7, 3), (2, 4)])
def test_spread_loses_nothing(number, parts):
    shares = spread(number, parts)
    assert sum(shares) == number
    assert max(shares) - min(shares) <= 1
