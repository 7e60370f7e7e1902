"""Several worker processes on one port: they share the work, and none is missed when it dies."""

import asyncio
import mmap
import os
import queue
import select
import signal
import socket
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from digit_classifier.wire import encode_request
from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.router import Router
from serving.server.ready_line import announce
from serving.server.worker import Orders, Worker
from serving.system import listening
from serving.system.host import Host
from serving.system.listening import bind
from serving.system.shared_port import refuse_callers, reserved_port
from serving.system.usage import Usage
from serving.telemetry.metrics import (
    NO_MODEL,
    Counts,
    Metrics,
    QueueUsage,
    Report,
    Served,
    total,
)
from serving.transports.http_port import open_port
from serving.transports.http_routing import App
from serving.transports.loop import Loop
from serving.transports.pools import OneThread
from serving.transports.port_limits import PortLimits
from tests.serving.telemetry.test_metrics import of_digits, scrape, value
from tests.serving.telemetry.test_metrics_alone import observe
from tests.serving.transports.test_faults import stream_of
from tests.support.load import OWN_CONNECTION, ClosedLoop
from tests.support.raw import TIMEOUT_S, Raw
from tests.support.servers import (
    Footprint,
    ended,
    freeze,
    running_server,
    serve_command,
    wait_until,
)

NUM_CONNECTIONS = 24
"""That all land on the same one of two workers has a chance of 2^-23."""


@contextmanager
def two_workers(models, transport):
    options = ("--workers", "2", "--transport", transport, "--self-test-interval", "0")
    with running_server(models, *options) as server:
        assert server.facts["workers"] == "2"
        yield server


def workers_of(server):
    """The process ids of the workers that live."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    command_of = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, command in command_of.items() if b"serving.server.worker" in command]


class Conversation:
    """A stream that stays open, on a connection of its own."""

    def __init__(self, address, closing):
        self._raw = Raw(address, *OWN_CONNECTION)
        closing.callback(self._raw.channel.close)
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        self._responses = stream_of(self._raw)(iter(self._requests.get, None), timeout=TIMEOUT_S)
        closing.callback(self._requests.put, None)

    def ask(self, image):
        """Send an image; return its digit, or how the stream ended."""
        self._requests.put(encode_request(image.tobytes()))
        try:
            return int(next(self._responses).digits[0])
        except grpc.RpcError as err:
            code: grpc.StatusCode = err.code()
            return code


def test_killed_worker_fails_its_own_calls_and_comes_back(models, images, classifier):
    expected = classifier.classify(images[:NUM_CONNECTIONS]).digits.tolist()
    with two_workers(models, "h2") as server, ExitStack() as closing:
        before = workers_of(server)
        talks = [Conversation(server.address, closing) for _ in range(NUM_CONNECTIONS)]
        assert [talk.ask(image) for talk, image in zip(talks, images, strict=False)] == expected
        wait_until(lambda: of_digits(scrape(server), "serving_rows_total") == NUM_CONNECTIONS)

        os.kill(before[0], signal.SIGKILL)
        again = [talk.ask(image) for talk, image in zip(talks, images, strict=False)]
        num_lost = again.count(grpc.StatusCode.UNAVAILABLE)
        assert 0 < num_lost < NUM_CONNECTIONS, "one worker had all the connections"
        for answer, digit in zip(again, expected, strict=True):
            assert answer in (digit, grpc.StatusCode.UNAVAILABLE)

        wait_for_line(server, "worker restarted, 2 serving")
        after = workers_of(server)
        assert before[1] in after
        assert len(set(after) - set(before)) == 1
        fresh = [Conversation(server.address, closing) for _ in range(NUM_CONNECTIONS)]
        assert [talk.ask(image) for talk, image in zip(fresh, images, strict=False)] == expected
        num_answered = 3 * NUM_CONNECTIONS - num_lost
        wait_until(lambda: of_digits(scrape(server), "serving_rows_total") == num_answered)
        samples = scrape(server)
        assert value(samples, "serving_worker_restarts_total") == 1
        assert of_digits(samples, "serving_queue_capacity_rows") == 2 * 16_384
        one = max(Footprint.of(pid).resident_bytes for pid in after)
        assert value(samples, "process_resident_memory_bytes") > 1.5 * one, "not of all workers"
        assert of_digits(samples, "serving_batch_rows_sum") == num_answered
        assert of_digits(samples, "serving_queue_rows") == 0


def wait_for_line(server, text):
    """Read the log up to a line that holds `text`."""
    while text not in server.process.stderr.readline():
        assert server.process.poll() is None


@pytest.mark.slow
def test_callers_of_a_frozen_worker_go_to_the_other_and_it_is_replaced(models, images, classifier):
    expected = classifier.classify(images[:NUM_CONNECTIONS]).digits.tolist()
    with two_workers(models, "h2") as server, ExitStack() as closing:
        before = workers_of(server)
        freeze(before[0])
        talks = [Conversation(server.address, closing) for _ in range(NUM_CONNECTIONS)]
        assert [talk.ask(image) for talk, image in zip(talks, images, strict=False)] == expected
        wait_for_line(server, "worker 0 is frozen")
        wait_for_line(server, "worker restarted, 2 serving")
        assert before[0] not in workers_of(server)
        assert before[1] in workers_of(server)
        assert [talk.ask(image) for talk, image in zip(talks, images, strict=False)] == expected


def test_callers_that_a_killed_worker_had_not_taken_are_answered(models, images, classifier):
    expected = classifier.classify(images[:NUM_CONNECTIONS]).digits.tolist()
    with two_workers(models, "h2") as server, ExitStack() as closing:
        workers = workers_of(server)
        port = int(server.address.rpartition(":")[2])
        for pid in workers:  # neither takes a caller
            freeze(pid)
        talks = [Conversation(server.address, closing) for _ in range(NUM_CONNECTIONS)]
        asked = [
            closing.enter_context(ThreadPoolExecutor(1)).submit(talk.ask, image)
            for talk, image in zip(talks, images, strict=False)
        ]
        wait_until(lambda: num_connected(port) == NUM_CONNECTIONS)
        os.kill(workers[0], signal.SIGKILL)
        os.kill(workers[1], signal.SIGCONT)
        assert [answer.result() for answer in asked] == expected


def num_connected(port):
    """How many connections to a port the kernel has, whether a worker has taken them or not."""
    fields = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        local == f"0100007F:{port:04X}" and state == "01" for _, local, _, state, *_ in fields
    )


def test_signal_drains_all_workers_under_load(models, images):
    requests = [encode_request(image.tobytes()) for image in images[:50]]
    with two_workers(models, "h2") as server:
        loads = [ClosedLoop(server.address, requests, in_flight=8) for _ in range(4)]
        with loads[0], loads[1], loads[2], loads[3]:
            loads[0].wait_for(100)
            assert server.stop() == 0
    codes = {call.code for load in loads for call in load.calls}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert grpc.StatusCode.OK in codes


def test_workers_end_when_their_supervisor_is_killed(models):
    """One that is stopped, too."""
    with two_workers(models, "h2") as server:
        pids = workers_of(server)
        files = [os.pidfd_open(pid) for pid in pids]
        freeze(pids[0])
        server.process.kill()
        for file in files:
            assert select.select([file], [], [], TIMEOUT_S)[0], "it outlives its supervisor"
            os.close(file)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_same_command_serves_at_once_after_a_stop_and_after_a_crash(number, models, images):
    with two_workers(models, "h2") as server, ExitStack() as closing:
        address = server.address
        for image in images[:8]:
            talk = Conversation(address, closing)
            talk.ask(image)
        assert server.stop(number) == (0 if number == signal.SIGTERM else -number)
        options = ("--workers", "2", "--port", address.rpartition(":")[2])
        with running_server(models, *options) as again:
            assert again.address == address


def run_to_its_end(models, *options, **environment):
    """Start a server that can't serve; its exit code, stdout and stderr."""
    command = serve_command(models, "--workers", "2", *options)
    result = ended(command, env=os.environ | environment)
    return result.returncode, result.stdout, result.stderr


def test_crash_loop_ends_the_server(models, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif any('server.worker' in each for each in sys.orig_argv): os._exit(3)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, out, err = run_to_its_end(models, PYTHONPATH=path)
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("digit-serving: worker ")
    assert last.endswith("died 5 times in a row (exit code 3), and no other one serves")


@pytest.mark.slow
def test_workers_that_are_killed_again_and_again_end_the_server(models):
    with two_workers(models, "grpcio") as server:
        log = server.process.stderr
        is_back = True
        while is_back:
            for pid in workers_of(server):
                os.kill(pid, signal.SIGKILL)
            is_back = any("worker restarted, 2 serving" in line for line in log)
        assert server.process.wait(TIMEOUT_S) == 1


def test_workers_that_cannot_start_say_why_in_one_line(tmp_path):
    code, out, err = run_to_its_end(tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"digit-serving: no model in {tmp_path}: expected ")
    assert err.count("\n") == 1


async def test_worker_that_dies_before_it_is_told_anything_has_ended(monkeypatch):
    """A signal to the whole process group can kill one that is only just forked."""

    popen = subprocess.Popen

    def dead(command, **options):
        process = popen(["false"], **options)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return process

    monkeypatch.setattr("serving.processes.child.subprocess.Popen", dead)
    configs = ModelConfig(), BatchingConfig(), ServerConfig()
    worker = Worker({}, 0, configs, lambda: None, Orders())
    assert (await asyncio.wait_for(worker.ended, TIMEOUT_S)).code == 1


def test_port_without_workers_refuses_callers_until_one_listens_again():
    with reserved_port("127.0.0.1", 0) as (listener, _):
        address = listener.getsockname()
        for _ in range(2):
            listener.listen()
            socket.create_connection(address).close()
            refuse_callers(listener)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)


def test_reserved_port_may_be_shared():
    with (
        reserved_port("127.0.0.1", 0) as (ours, _),
        socket.create_server(ours.getsockname(), reuse_port=True) as of_grpc,
        socket.create_connection(ours.getsockname()),
    ):
        assert of_grpc.accept()


def serving_loop(address):
    """A loop that serves HTTP on an address, as one of its workers."""
    router = Router()
    loop = Loop(router, poll=False, host=Host())
    app, limits = App([], None, (), ()), PortLimits(max_message_bytes=0)
    listener = bind(*address, backlog=64)
    loop.add(open_port(loop, listener, app, router, limits, OneThread("unused")))
    loop.start()
    return loop


@pytest.mark.parametrize("num_frozen", [0, 1])
def test_connections_are_taken_by_who_has_fewest(num_frozen, monkeypatch):
    """There are two ports; where one is frozen, the other takes all connections."""
    if not num_frozen:
        monkeypatch.setattr("serving.transports.accepting._LEFT_S", 60.0)
    with ExitStack() as stack:
        shared = stack.enter_context(reserved_port("127.0.0.1", 0, 2))
        address = shared.socket.getsockname()
        numbers = memoryview(mmap.mmap(shared.file, 0)).cast("q")
        for place in range(2 - num_frozen):
            monkeypatch.setitem(listening.shares, address, shared.share(place))
            stack.callback(serving_loop(address).stop)
        if num_frozen:
            shared.share(1).note(0)
        for number in range(1, 9):
            stack.enter_context(socket.create_connection(address))
            wait_until(lambda number=number: sum(numbers) == number)
            assert num_frozen or max(numbers) - min(numbers) <= 1


def test_worker_that_listens_as_callers_are_refused_listens_again(monkeypatch):
    """The supervisor saw the last ready worker die, and has not heard yet that this one is."""
    with ExitStack() as stack:
        shared = stack.enter_context(reserved_port("127.0.0.1", 0, 2))
        address = shared.socket.getsockname()
        monkeypatch.setitem(listening.shares, address, shared.share(0))
        stack.callback(serving_loop(address).stop)
        refuse_callers(shared.socket)
        number = memoryview(mmap.mmap(shared.file, 0)).cast("q")
        wait_until(lambda: not is_refused(address))
        stack.enter_context(socket.create_connection(address))
        wait_until(lambda: number[0] > 0)


def is_refused(address):
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


def test_each_connection_is_left_to_who_has_fewer(monkeypatch):
    """The other worker is this test, which takes all but the first."""
    monkeypatch.setattr("serving.transports.accepting._LEFT_S", 0.5)
    with ExitStack() as stack:
        shared = stack.enter_context(reserved_port("127.0.0.1", 0, 2))
        address, share = shared.socket.getsockname(), shared.share(0)
        monkeypatch.setitem(listening.shares, address, share)
        stack.callback(serving_loop(address).stop)
        shared.share(1).note(0)
        number = memoryview(mmap.mmap(shared.file, 0)).cast("q")
        stack.enter_context(socket.create_connection(address))
        wait_until(lambda: number[0] == 1)
        for _ in range(3):
            stack.enter_context(socket.create_connection(address))
            time.sleep(0.1)
            stack.enter_context(shared.socket.accept()[0])
            time.sleep(0.6)
        assert number[0] == 1


def test_reports_add_up():
    models = (Served("digits", "1", "cpu", "fp32", "h2", "default", 10),)
    metrics = [Metrics() for _ in range(3)]
    for each, (status, times) in zip(metrics, (("OK", 2), ("OK", 3), ("INTERNAL", 1)), strict=True):
        each.count("Classify", status, times)
        observe(each, 0, 1, 7, [(0, None, 1)], None, ("digits", str(times)))
    first, second, dead = (each.snapshot() for each in metrics)
    usage = Usage(resident_bytes=1_000, num_files=10)
    reports = [
        Report(models, BatchingConfig(), queues, 3, is_serving, usage, counts)
        for queues, is_serving, counts in (
            ({("digits", "1"): QueueUsage(4, 100)}, True, first),
            (
                {("digits", "1"): QueueUsage(5, 100), ("other", "1"): QueueUsage(1, 9)},
                False,
                second,
            ),
        )
    ]
    summed = total(reports, dead)
    assert (summed.num_calls, summed.is_serving) == (6, False)
    assert summed.usage.resident_bytes > 2_000, "the supervisor's own, too"
    assert summed.queues == {("digits", "1"): (9, 200), ("other", "1"): (1, 9)}
    assert summed.num_waiting == 10
    assert set(summed.ended().queues.values()) == {(0, 0)}
    assert summed.counts.requests == {("Classify", "OK"): 5, ("Classify", "INTERNAL"): 1}
    assert summed.counts.reloads == Counter()
    rows = {label: counts.num_rows for label, counts in summed.counts.models.items()}
    assert rows == {NO_MODEL: 0, **{("digits", version): 7 for version in "231"}}
    assert dead.models.keys() == {NO_MODEL, ("digits", "1")}, "an addend does not change"


def test_ready_line_of_workers_has_the_versions_that_wait(capsys):
    models = (Served("iris", "3", "cpu", "fp32", "h2", "default", 10),)
    report = Report(
        models,
        BatchingConfig(),
        {},
        0,
        True,
        Usage(),
        Metrics().snapshot(),
        waiting={"iris/4": "it is another"},
    )
    announce(total([report, report], Counts()), "127.0.0.1:1", "off", ServerConfig(), workers=2)
    line = capsys.readouterr().out.partition("\n")[0].split()
    assert {"version=3", "workers=2", "waiting=iris/4"} <= set(line)
