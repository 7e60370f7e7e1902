"""How the native transport's threads are scheduled: read back from the kernel."""

import ctypes
import os
import platform
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving import Client
from serving.rpc.turns import Turns
from tests.servers import running_server

GET_ATTRIBUTES = {"x86_64": 315, "aarch64": 275}.get(platform.machine())
LINUX = tuple(int(part) for part in platform.release().split(".")[:2])

pytestmark = pytest.mark.skipif(GET_ATTRIBUTES is None, reason="turns are left to the kernel here")


def scheduling(thread: int) -> tuple[int, int, int]:
    """Policy, nice value and slice in ns of a thread."""
    attributes = ctypes.create_string_buffer(48)
    assert not ctypes.CDLL(None).syscall(GET_ATTRIBUTES, thread, attributes, 48, 0)
    _, policy, _, nice, _, slice_ns, _, _ = struct.unpack("=IIQiIQQQ", attributes.raw)
    return policy, nice, slice_ns


def beside_an_io_thread(test: Callable[[int], None]) -> None:
    """Call `test` with the id of a thread that looks like the front's, on a thread of its own."""
    ended = threading.Event()
    started: list[int] = []
    errors: list[BaseException] = []

    def io() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("grpc-native-io")
        started.append(threading.get_native_id())
        ended.wait()

    def pump() -> None:
        try:
            test(started[0])
        except BaseException as err:  # told by the main thread
            errors.append(err)

    threads = [threading.Thread(target=io), threading.Thread(target=pump)]
    threads[0].start()
    while not started:
        pass
    threads[1].start()
    threads[1].join()
    ended.set()
    threads[0].join()
    for err in errors:
        raise err


def test_the_io_thread_waits_for_its_turn_while_many_calls_come() -> None:
    def test(io: int) -> None:
        turns = Turns()
        for num_calls, policy in [
            (1, os.SCHED_OTHER),
            (3, os.SCHED_BATCH),
            (64, os.SCHED_BATCH),
            (2, os.SCHED_OTHER),
        ]:
            turns.expect(num_calls)
            assert os.sched_getscheduler(io) == policy
            assert os.sched_getscheduler(0) == os.SCHED_OTHER

    beside_an_io_thread(test)


@pytest.mark.skipif(LINUX < (6, 12), reason="the kernel has no slices of a thread's own")
def test_few_calls_have_short_slices() -> None:
    usual_ns = scheduling(0)[2]

    def test(io: int) -> None:
        turns = Turns()
        for num_calls, slice_ns in [(1, 100_000), (15, 100_000), (16, usual_ns), (1, 100_000)]:
            turns.expect(num_calls)
            assert scheduling(io)[2] == scheduling(0)[2] == slice_ns

    beside_an_io_thread(test)


def test_nice_values_stay() -> None:
    def test(io: int) -> None:
        os.setpriority(os.PRIO_PROCESS, io, 5)
        os.setpriority(os.PRIO_PROCESS, 0, 7)
        Turns().expect(64)
        assert scheduling(io)[:2] == (os.SCHED_BATCH, 5)
        assert scheduling(0)[:2] == (os.SCHED_OTHER, 7)

    beside_an_io_thread(test)


def test_a_policy_that_somebody_chooses_stays() -> None:
    def test(io: int) -> None:
        turns = Turns()
        turns.expect(64)
        for thread in (0, io):
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        turns.expect(1)
        assert os.sched_getscheduler(0) == os.sched_getscheduler(io) == os.SCHED_IDLE

    beside_an_io_thread(test)


def test_a_thread_that_has_ended_does_no_harm() -> None:
    left: list[Turns] = []
    beside_an_io_thread(lambda _: left.append(Turns()))
    left[0].expect(64)


def test_the_front_has_an_io_thread_of_that_name(models: Path) -> None:
    with running_server(models, "--transport", "native") as server:
        with Client(server.address) as client:
            client.classify(np.zeros((1, 784), np.uint8))
        slices = {
            (task / "comm").read_text().strip(): scheduling(int(task.name))[2]
            for task in Path(f"/proc/{server.process.pid}/task").iterdir()
        }
    assert "grpc-native-io" in slices
    if LINUX >= (6, 12):
        assert slices["grpc-native-io"] == 100_000
