"""When a call is sent again, how often, and when it is not."""

import os
import signal
import socket
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

from digit_classifier import AsyncClassifier, Classifier
from digit_classifier.pb.digits.v1 import digits_pb2
from serving.client import retries
from serving.client.retries import RetryBudget, RetryState
from serving.errors import DeadlineExceeded, ModelError, Overloaded, TooLarge, Unavailable
from serving.protocols.status import Failure, StatusCode
from tests.support.fakes import TIMEOUT_S
from tests.support.fleet.replicas import Router
from tests.support.servers import ONE, fake_server

NUM_CALLS = 300
PATIENT_S = 60.0


class Refusing:
    """A server's method that answers UNAVAILABLE, and counts."""

    def __init__(self, *trailers):
        self.trailers = trailers
        self.num_attempts = 0
        self.lock = threading.Lock()

    def __call__(self, _, context):
        with self.lock:
            self.num_attempts += 1
        context.set_trailing_metadata(self.trailers)
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


def from_threads(address, image, num_calls):
    with Classifier.connect(address, timeout_s=PATIENT_S) as client, ThreadPoolExecutor(30) as pool:
        calls = [pool.submit(client.classify, image) for _ in range(num_calls)]
        return [call.exception() for call in calls]


def test_server_that_fails_most_calls_gets_few_of_them_twice(image):
    refuse = Refusing()
    with fake_server(refuse) as address:
        outcomes = from_threads(address, image, NUM_CALLS)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert NUM_CALLS < refuse.num_attempts <= 1.2 * NUM_CALLS


@pytest.mark.usefixtures("client_transport")
def test_call_that_is_only_refused_is_made_five_times(image):
    refuse = Refusing()
    with fake_server(refuse) as address, Classifier.connect(address, timeout_s=PATIENT_S) as client:
        with pytest.raises(Unavailable):
            client.classify(image)
        assert refuse.num_attempts == 5


def test_answers_bring_the_retries_back():
    now_s = 0.0
    budget = RetryBudget(lambda: now_s)
    assert sum(budget.take() for _ in range(200)) == 50
    for _ in range(9):
        budget.put()
    assert not budget.take()
    budget.put()
    assert budget.take()
    now_s = 9.9
    assert not budget.take()
    now_s = 10.1  # the first second is out of the window
    assert sum(budget.take() for _ in range(200)) == 50
    now_s = 1000.0
    assert sum(budget.take() for _ in range(200)) == 50


def test_answers_of_each_second_of_the_window_count():
    now_s = 0.0
    budget = RetryBudget(lambda: now_s)
    assert sum(budget.take() for _ in range(50)) == 50
    for now_s in (1.0, 2.0, 3.0):  # noqa: B007 - the clock
        for _ in range(10):
            budget.put()
    now_s = 4.0
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


REFUSED = Failure(StatusCode.UNAVAILABLE, "no", is_answer=True)
GONE = Failure(StatusCode.UNAVAILABLE, "gone")
LATE = Failure(StatusCode.DEADLINE_EXCEEDED, "late")
FULL = Failure(StatusCode.RESOURCE_EXHAUSTED, "full", reason="OVERLOADED", pushback_s=0.3)
COURSES: dict[str, tuple[dict[str, Any], list[Failure], list[Any]]] = {
    # name: (options of the state, failures, what follows each of them, at 0, 1, 2 ... s)
    "pauses double to half a second": (
        {}, [GONE] * 7, [0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5]
    ),
    "five attempts that a server answers": ({}, [REFUSED] * 5, [0.05, 0.1, 0.2, 0.4, Unavailable]),
    "those that none answers don't count": (
        {}, [GONE, *[REFUSED] * 5], [0.05, 0.1, 0.2, 0.4, 0.5, Unavailable]
    ),
    "cut off": ({}, [Failure(StatusCode.CANCELLED, "cut")], [0.05]),
    "permanent": ({}, [GONE._replace(is_permanent=True)], [Unavailable]),
    "asked to stay away": ({}, [GONE._replace(pushback_s=-0.001)], [Unavailable]),
    "asked to come at once": ({}, [GONE._replace(pushback_s=0.0)], [0.05]),
    "not retryable": (
        {}, [Failure(StatusCode.INTERNAL, "bug", reason="MODEL_ERROR")], [ModelError]
    ),
    "until the timeout": ({"timeout_s": 2.15}, [GONE] * 3, [0.05, 0.1, Unavailable]),
    "the pause ends with the timeout": ({"timeout_s": 2.2}, [GONE] * 3, [0.05, 0.1, Unavailable]),
    "the pause ends before the timeout": ({"timeout_s": 2.21}, [GONE] * 3, [0.05, 0.1, 0.2]),
    "first contact": ({"first_contact": True}, [GONE] * 6, [0.05, 0.1, 0.2, 0.4, 0.5, Unavailable]),
    "first contact of less": (
        {"first_contact": True, "timeout_s": 1.0}, [GONE] * 2, [0.05, Unavailable]
    ),
    "late after a failure": ({}, [GONE, LATE], [0.05, "gone"]),
    "late": ({}, [LATE], [DeadlineExceeded]),
    "attempts that are late": (
        {"attempt_timeout_s": 1.0, "timeout_s": 3.5}, [LATE] * 4, [0.0, 0.0, 0.0, 0.0]
    ),
    "attempts that are late at the end": (
        {"attempt_timeout_s": 1.0, "timeout_s": 2.0}, [LATE] * 3, [0.0, 0.0, DeadlineExceeded]
    ),
    "a full queue": ({}, [FULL] * 3, [0.375, 0.375, 0.375]),
    "a full queue that asks for little": (
        {}, [FULL._replace(pushback_s=0.01)] * 3, [0.0625, 0.125, 0.25]
    ),
    "a full queue that asks for no pause": ({}, [FULL._replace(pushback_s=0.0)], [0.0625]),
    "a full queue that asks for none": ({}, [FULL._replace(pushback_s=-1.0)], [Overloaded]),
    "a full queue that says nothing": ({}, [FULL._replace(pushback_s=None)], [Overloaded]),
    "a full queue at the end": ({"timeout_s": 1.375}, [FULL] * 2, [0.375, Overloaded]),
    "a full queue at first contact": (
        {"first_contact": True}, [FULL] * 7, [0.375, 0.375, 0.375, 0.5, 0.625, 0.625, 0.625]
    ),
    "late after a full queue": ({}, [FULL, LATE], [0.375, "full"]),
}  # fmt: skip


@pytest.mark.parametrize("name", COURSES)
def test_course_of_a_call_that_fails(name, monkeypatch):
    """With the middle of each spread, the first attempt fails at once, and the next in seconds."""
    options, failures, expected = COURSES[name]
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: now.s))
    middle = SimpleNamespace(uniform=lambda low, high: (low + high) / 2)
    monkeypatch.setattr(retries, "random", middle)
    state = RetryState("x:1", **{"timeout_s": 100.0, **options})
    for failure, after in zip(failures, expected, strict=True):
        if isinstance(after, float):
            assert state.backoff_s(failure) == pytest.approx(after)
        elif isinstance(after, str):
            with pytest.raises((Unavailable, Overloaded), match=f"^x:1: {after}$"):
                state.backoff_s(failure)
        else:
            with pytest.raises(after, match=f"^x:1: {failure.text}$"):
                state.backoff_s(failure)
        now.s += 1.0


@pytest.mark.parametrize(
    ("failures", "num_charged"),
    [([GONE] * 3, 0), ([REFUSED] * 3, 3), ([FULL] * 3, 3), ([LATE] * 3, 2)],
    ids=["gone", "refused", "full", "late"],
)
def test_budget_is_charged_for_what_servers_answer(failures, num_charged):
    budget = RetryBudget(lambda: 0.0)
    state = RetryState("x:1", 1e12, attempt_timeout_s=1.0, budget=budget)
    for failure in failures:
        state.backoff_s(failure)
    assert sum(budget.take() for _ in range(100)) == 50 - num_charged


def test_attempt_has_its_own_time_and_never_more_than_the_calls(monkeypatch):
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: now.s))
    both, endless = RetryState("x:1", 5.0, attempt_timeout_s=2.0), RetryState("x:1", float("inf"))
    found = []
    for now.s in (0.0, 4.0, 6.0):
        found.append((both.timeout_s(), endless.timeout_s()))
    assert found == [(2.0, 1e9), (1.0, 1e9 - 4), (0.0, 1e9 - 6)]


def test_retries_after_a_full_queue_are_those_of_the_budget():
    budget = RetryBudget(lambda: 0.0)
    state = RetryState("127.0.0.1:1", timeout_s=1e6, budget=budget)
    full = Failure(StatusCode.RESOURCE_EXHAUSTED, "full", reason="OVERLOADED", pushback_s=0.001)
    for _ in range(50):
        state.backoff_s(full)
    with pytest.raises(Overloaded):
        state.backoff_s(full)
    assert budget.is_spent


@pytest.mark.usefixtures("client_transport")
def test_each_message_of_a_request_has_attempts_of_its_own():
    """Six messages that are each refused once: together that is more than one call may be."""
    refused = set()

    def refuse_once(request, context):
        if request not in refused:
            refused.add(request)
            context.abort(grpc.StatusCode.UNAVAILABLE, "any text")
        return ONE

    one_image = digits_pb2.GetModelResponse(max_request_images=1).SerializeToString()
    images = np.repeat(np.arange(6, dtype=np.uint8)[:, np.newaxis], 784, axis=1)
    server = fake_server(refuse_once, one_image)
    with server as address, Classifier.connect(address, timeout_s=PATIENT_S) as client:
        assert len(client.classify(images)) == 6
    assert len(refused) == 6


@pytest.mark.usefixtures("client_transport")
def test_server_that_asks_for_another_attempt_gets_it(image):
    """Ours do as they end: a restart fails no call of however many."""
    refuse = Refusing(("grpc-retry-pushback-ms", "10"))

    def refuse_then_answer(request, context):
        return ONE if refuse.num_attempts >= 80 else refuse(request, context)

    with fake_server(refuse_then_answer) as address:  # more often than a client retries of itself
        assert from_threads(address, image, 80) == [None] * 80


class Full:
    """A method of a server whose queue is full for the first calls."""

    def __init__(self, num_refused, pushback_ms="20"):
        self.num_refused, self.num_attempts = num_refused, 0
        self.trailers = (("grpc-retry-pushback-ms", pushback_ms),) if pushback_ms else ()

    def __call__(self, _, context):
        self.num_attempts += 1
        if self.num_attempts <= self.num_refused:
            context.set_trailing_metadata(self.trailers)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "any text")
        return ONE


@pytest.mark.usefixtures("client_transport")
def test_full_queue_is_waited_for_and_then_answers(image, monkeypatch):
    monkeypatch.setattr(retries, "_LONGEST_BACKOFF_S", retries._SHORTEST_BACKOFF_S)
    full = Full(8)  # more often than a failing server is asked
    with fake_server(full) as address, Classifier.connect(address, timeout_s=PATIENT_S) as client:
        assert len(client.classify(image)) == 1
    assert full.num_attempts == 9


@pytest.mark.usefixtures("client_transport")
def test_full_queue_is_an_overload_if_no_time_is_left_for_the_pause(image):
    full = Full(1, pushback_ms="60000")
    with (
        fake_server(full) as address,
        Classifier.connect(address, timeout_s=10) as client,
        pytest.raises(Overloaded) as caught,
    ):
        client.classify(image)
    assert (full.num_attempts, caught.value.retry_after_s) == (1, 60.0)


@pytest.mark.usefixtures("client_transport")
@pytest.mark.parametrize("pushback_ms", ["-1", "soon"])
def test_server_that_wants_no_further_attempt_gets_none(pushback_ms, image):
    full = Full(9, pushback_ms)
    with (
        fake_server(full) as address,
        Classifier.connect(address, timeout_s=PATIENT_S) as client,
        pytest.raises(Overloaded),
    ):
        client.classify(image)
    assert full.num_attempts == 1


@pytest.mark.usefixtures("client_transport")
def test_message_that_is_too_large_is_sent_once(image):
    full = Full(9, pushback_ms="")
    with (
        fake_server(full) as address,
        Classifier.connect(address, timeout_s=PATIENT_S) as client,
        pytest.raises(TooLarge),
    ):
        client.classify(image)
    assert full.num_attempts == 1


def test_overload_of_all_calls_is_no_storm(image):
    full = Full(10**9, pushback_ms="1")
    with fake_server(full) as address:
        outcomes = from_threads(address, image, NUM_CALLS)
    assert all(isinstance(outcome, Overloaded) for outcome in outcomes)
    assert NUM_CALLS < full.num_attempts <= 1.2 * NUM_CALLS


@pytest.mark.slow
async def test_server_that_stands_still_is_left_before_the_deadline(server, image):
    """A call that waits finds out by a ping, and takes another connection."""
    router = Router(server.address)
    try:
        with Classifier.connect(router.address) as client:
            client.classify(image)
            router.forget()
            assert len(client.classify(image)) == 1
        async with AsyncClassifier.connect(router.address) as awaited:
            await awaited.classify(image)
            router.forget()
            assert len(await awaited.classify(image)) == 1
    finally:
        router.close()


@pytest.fixture
def alarm():
    """The signal by which programs limit a call's time; not SIGALRM, which pytest uses."""

    def ring(*_):
        raise TimeoutError("the program's own")

    before = signal.signal(signal.SIGVTALRM, ring)
    yield lambda: os.kill(os.getpid(), signal.SIGVTALRM)
    signal.signal(signal.SIGVTALRM, before)


def test_alarm_in_a_call_comes_out_as_itself(alarm, image):
    is_over = threading.Event()

    def hang(_, context):
        alarm()
        is_over.wait(TIMEOUT_S)
        return ONE

    with fake_server(hang) as address, Classifier.connect(address, timeout_s=PATIENT_S) as client:
        with pytest.raises(TimeoutError, match="the program's own"):
            client.classify(image)
        is_over.set()


def test_alarm_while_it_connects_comes_out_as_itself(alarm, tmp_path, image):
    authority = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(authority)

    def accept():
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)  # TLS has begun
            alarm()
            is_over.wait(TIMEOUT_S)

    is_over = threading.Event()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        ThreadPoolExecutor(1) as pool,
        Classifier.connect(f"127.0.0.1:{silent.getsockname()[1]}", tls_ca=authority) as client,
    ):
        pool.submit(accept)
        with pytest.raises(TimeoutError, match="the program's own"):
            client.classify(image)
        is_over.set()


def test_alarm_in_a_run_comes_out_as_itself(alarm, classifier, images):
    for _ in range(10):
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.02)
        with pytest.raises(TimeoutError, match="the program's own"):
            deque(iter(lambda: classifier.classify(images), None), maxlen=0)
