"""A loop that the test turns: when it looks again, who is read first, what is done in one round."""

import math
import selectors
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from serving.errors import Unavailable
from serving.system.host import Host
from serving.transports import loop as module
from serving.transports.draining import Drain
from serving.transports.loop import Loop, LoopPhase, Reader
from serving.transports.peer import READ, WRITE, Peer, State
from tests.support.fakes import FakeClock

READY = selectors.EVENT_READ


class World:
    """A loop without ports, and what its router is asked for."""

    def __init__(self, *, poll=False, slo_s=1.0):
        self.clock = FakeClock(100.0)
        self.router: Any = SimpleNamespace(
            batching=SimpleNamespace(slo_s=slo_s), attach=lambda loop: None, served=(),
            is_busy=False, keeps_headers=False, prune=lambda: None,
        )  # fmt: skip
        self.loop: Any = Loop(self.router, poll=poll, host=Host(clock=self.clock))
        self.woken = 0
        self.loop._wake = self._wake

    def _wake(self):
        self.woken += 1

    def turn(self, seconds=0.0):
        self.clock.advance(seconds)
        self.loop.turn([])
        return self.loop.timeout_s()

    def close(self):
        self.loop._close()


@pytest.fixture
def world():
    made = World()
    yield made
    made.close()


def test_loop_looks_once_a_second_and_while_work_is_on_its_way_each_10_ms(world):
    assert world.turn() == 1.0
    assert world.turn(0.25) == pytest.approx(0.75)
    world.loop.hurry()
    assert world.loop.timeout_s() == pytest.approx(0.01)
    world.loop.hurry(0.002)
    assert world.loop.timeout_s() == pytest.approx(0.002)
    world.loop.hurry(0.5)
    assert world.loop.timeout_s() == pytest.approx(0.002), "it looks no later for that"
    world.router.is_busy = True
    assert world.turn(0.01) == pytest.approx(0.01)
    world.router.is_busy = False
    assert world.turn(0.01) == pytest.approx(1.0)


def test_task_is_there_before_the_loop_wakes_for_it(world):
    """Else it might sleep again, without having seen it."""
    world.turn()
    found: list[Any] = []
    world.loop._wake = lambda: found.append([*world.loop._posted])
    world.loop.post(task := lambda: None)
    assert found == [[task]]
    world.loop.post(task)
    assert len(found) == 1, "it is awake already"


def test_connections_are_swept_once_a_second(world, monkeypatch):
    swept: list[float] = []
    monkeypatch.setattr(module, "sweep", lambda port, now_s: swept.append(now_s))
    world.loop._ports = (SimpleNamespace(tick=lambda now_s: None),)
    for seconds in (0.0, 0.99, 0.011, 0.5, 0.51):
        world.loop.hurry(0.0)
        world.turn(seconds)
    assert swept == pytest.approx([100.0, 101.0, 102.0], abs=0.02)


def test_loop_polls_for_60_microseconds_once_it_has_written():
    world = World(poll=True)
    world.turn()
    assert world.loop.timeout_s() > 0.0
    world.loop.defer(lambda: None)
    assert world.turn() == 0.0
    assert world.turn(59e-6) == 0.0
    assert world.turn(2e-6) > 0.0
    world.close()


@pytest.mark.parametrize(("slo_s", "round_s"), [(1.0, 0.01), (0.04, 0.01), (0.02, 0.005)])
def test_round_takes_10_ms_or_a_quarter_of_the_objective(slo_s, round_s):
    world = World(slo_s=slo_s)
    assert world.loop._round_s == pytest.approx(round_s)
    world.close()


def test_deferred_tasks_have_two_milliseconds_of_a_round(world):
    done: list[str] = []

    def task(name):
        done.append(name)
        world.clock.now_s += 0.0011

    for name in "abcd":
        world.loop.defer(lambda name=name: task(name))
    assert world.turn() == 0.0, "there is more to do"
    assert done == ["a", "b"]
    world.turn()
    assert done == ["a", "b", "c", "d"]
    world.loop.defer(lambda: world.loop.defer(lambda: task("later")))
    world.turn()
    assert done[4:] == [], "what they defer is for the next round"
    world.turn()
    assert done[4:] == ["later"]


def test_thread_that_sleeps_is_woken_once(world):
    done: list[int] = []
    world.loop.post(lambda: done.append(0))
    assert world.woken == 0, "it has not slept yet"
    assert world.turn() == 1.0
    assert done == [0]
    for number in (1, 2):
        world.loop.post(lambda number=number: done.append(number))
    assert world.woken == 1
    world.loop.turn([])
    assert done == [0, 1, 2]
    world.loop.timeout_s()
    world.loop.turn([])  # for a socket, not for a task
    world.loop.post(lambda: done.append(3))
    assert world.woken == 1, "it is awake in its turn"
    assert world.loop.timeout_s() == 0.0
    world.loop.turn([])
    world.loop.timeout_s()
    world.loop.post(lambda: None)
    assert world.woken == 2


class Flushed:
    """A connection as a flush sees it."""

    def __init__(self, world, *, output=b"", is_paused=False, is_there=True, state=State.OPEN):
        self.state, self.mask, self.active_s = state, READ, 0.0
        self.output, self.is_paused, self._is_there = output, is_paused, is_there
        self.num_flushes = 0
        self.done: list[Any] = []
        self.port = SimpleNamespace(
            watch=lambda peer, mask: self.done.append(mask),
            abort=lambda peer: self.done.append("abort"),
        )

    def flush(self):
        self.num_flushes += 1
        return self._is_there


@pytest.mark.parametrize(
    ("facts", "num_flushes", "done", "active_s"),
    [
        ({}, 1, [], 0.0), ({"output": b"x"}, 1, [WRITE], 100.0), ({"is_paused": True}, 1, [0], 0.0),
        ({"output": b"x", "is_paused": True}, 1, [WRITE], 100.0),
        ({"is_there": False}, 1, ["abort"], 0.0), ({"state": State.CLOSED}, 0, [], 0.0),
    ],
)  # fmt: skip
def test_connection_is_flushed_once_a_round_and_then_watched(
    facts, num_flushes, done, active_s, world
):
    peer = Flushed(world, **facts)
    world.loop.schedule_flush(peer)
    world.loop.schedule_flush(peer)
    world.turn()
    world.turn()
    assert (peer.num_flushes, peer.done, peer.active_s) == (num_flushes, done, active_s)


@pytest.mark.parametrize(
    ("active_s", "is_draining", "seconds", "has_left"),
    [
        (99.5, False, 0.0, True), (98.9, True, 0.0, True), (99.1, True, 0.0, False),
        (99.1, True, 0.99, False), (99.1, True, 1.0, True),
    ],
)  # fmt: skip
def test_end_waits_a_second_for_peers_that_were_there_a_second_before_the_drain(
    active_s, is_draining, seconds, has_left, world
):
    peer = SimpleNamespace(active_s=active_s)

    class Port:
        def __iter__(self):
            return iter([peer])

        def close(self): ...

    assert not world.loop._have_left()
    world.loop._ports = (Port(),)
    if is_draining:
        world.loop._drain = Drain(Unavailable("the end"), 100.0)
    world.loop._begin_closing()
    assert world.loop.phase == LoopPhase.CLOSING
    world.clock.now_s += seconds
    assert world.loop._have_left() is has_left


def test_thread_of_a_loop_does_not_keep_the_program_alive(world):
    assert (world.loop._thread.daemon, world.loop._thread.name) == (True, "h2")


def test_loop_that_is_new_knows_nothing(world):
    assert (world.loop.phase, world.loop.num_calls) == (LoopPhase.SERVING, 0)
    assert (world.loop.drained.is_set(), world.loop.keeps_headers) == (False, False)
    budget = world.loop.calls.budget
    limits = SimpleNamespace(max_buffered_bytes=500, http2=SimpleNamespace(stream_window_bytes=50))
    port: Any = SimpleNamespace(limits=limits, listen=lambda: None, is_stale=False,
                                keeps_layouts=True)  # fmt: skip
    world.loop.add(port)
    other: Any = SimpleNamespace(
        limits=SimpleNamespace(max_buffered_bytes=600,
                               http2=SimpleNamespace(stream_window_bytes=60)),
        listen=lambda: None, is_stale=False, keeps_layouts=False,
    )  # fmt: skip
    world.loop.add(other)
    assert (budget.max_bytes, budget.free_bytes) == (500, 50), "the least of all ports'"
    world.loop.forget_layouts()
    assert (port.is_stale, other.is_stale) == (True, False)


# Who is read


class Read:
    """Connections on real sockets, each read of which takes as long as the test says."""

    def __init__(self, number, cost_s=0.0, round_s=0.01):
        self.clock = FakeClock(100.0)
        self.cost_s = cost_s
        self.read: list[Any] = []
        self.flushed: list[Any] = []
        self.aborted: list[Any] = []
        self.host = Host(clock=self.clock)
        self.sockets: list[Any] = []
        self.peers: list[Peer] = []
        engine = SimpleNamespace(streams={})
        for _ in range(number):
            ours, its = socket.socketpair()
            ours.setblocking(False)
            self.sockets += (ours, its)
            self.peers.append(Peer(ours, engine, None, self))
        self.reader = Reader(self.clock, round_s, self.flushed.append)

    def receive(self, peer, data, now_s):
        self.read.append((self.peers.index(peer), len(data)))
        self.clock.now_s += self.cost_s

    def abort(self, peer):
        self.aborted.append(peer)

    def send(self, number, size):
        self.sockets[2 * number + 1].sendall(bytes(size))

    def round(self, *numbers):
        ready: list[Any] = [(SimpleNamespace(data=self.peers[at]), READY) for at in numbers]
        self.read.clear()
        self.reader.read(ready, self.clock())
        return [at for at, _ in self.read]

    def close(self):
        for each in self.sockets:
            each.close()


@pytest.fixture
def reading():
    made: list[Read] = []

    def make(*args, **options):
        made.append(Read(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_who_was_not_read_in_a_round_is_first_in_the_next(reading):
    own = reading(3, 0.006)
    for number in range(3):
        own.send(number, 100)
    assert (own.round(0, 1, 2), own.reader.is_overrun) == ([0, 1], True)
    for number in range(2):
        own.send(number, 100)
    assert (own.round(0, 1, 2), own.reader.is_overrun) == ([2, 0], True)
    own.cost_s = 0.0
    assert (own.round(0, 1, 2), own.reader.is_overrun) == ([1], False)
    assert own.flushed == [own.peers[at] for at in (0, 1, 2, 0, 1, 2, 0)]


@pytest.mark.parametrize(("size", "is_telling"), [(1023, False), (1024, True)])
def test_reads_of_a_kibibyte_tell_what_a_byte_costs(size, is_telling, reading):
    own = reading(1, 1e-4)
    own.send(0, size)
    (peer,), before_s = own.peers, 2e-3 / 4096
    assert peer.cost_per_byte_s == pytest.approx(before_s)
    own.round(0)
    expected_s = before_s + (1e-4 / size - before_s) / 4 if is_telling else before_s
    assert peer.cost_per_byte_s == pytest.approx(expected_s)
    assert peer.start_tag_s == pytest.approx(1e-4)


def test_turn_that_was_interrupted_is_not_charged_in_full(reading):
    own = reading(1, 0.5)
    own.send(0, 1)
    own.round(0)
    assert own.peers[0].start_tag_s == pytest.approx(2e-4 + 2e-3 / 4096)


def test_bytes_that_a_read_leaves_wait_since_then(reading):
    own = reading(1)
    (peer,) = own.peers
    own.send(0, 4096 + 10)
    own.round(0)
    assert own.read == [(0, 4096)], "as much as its turn may cost"
    assert peer.behind_s == 100.0
    own.clock.now_s = 101.0
    own.round(0)
    assert (own.read, peer.behind_s) == ([(0, 10)], math.inf)
    own.send(0, 4096)
    peer.cost_per_byte_s = 2e-3 / 4096
    own.round(0)
    assert peer.behind_s == 101.0
    own.round(0)
    assert (own.read, peer.behind_s) == ([], math.inf), "there was no more"


def test_cheap_peer_is_read_up_to_512_kib_in_a_turn(reading):
    own = reading(1)
    own.peers[0].cost_per_byte_s = 1e-12
    buffer = own.reader._buffer
    assert len(buffer) == 524_288
    own.send(0, 100_000)
    own.round(0)
    assert own.read == [(0, 100_000)]


def test_peer_that_has_left_is_closed_and_one_that_is_not_read_any_more_is_not(reading):
    own = reading(3)
    own.sockets[1].close()
    own.send(1, 5)
    own.peers[1].end_reading()
    own.clock.now_s = 105.0
    own.send(2, 5)
    own.peers[2].is_paused = True
    assert own.round(0, 1, 2) == []
    assert own.aborted == [own.peers[0]]
    assert [each.active_s for each in own.peers] == [100.0, 105.0, 100.0]
    assert own.flushed == own.peers[1:]
