"""The budget of requests that have not come whole: large ones wait, and each comes."""

import random
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from serving.system.libc import FREE_BYTES
from serving.transports import byte_budget
from serving.transports.byte_budget import Budget
from tests.support.fakes import FakeClock


class Request:
    """A request of some bytes, which come as long as it is read."""

    def __init__(self, budget, num_bytes, address="a"):
        self.budget, self.num_bytes = budget, num_bytes
        self.peer = SimpleNamespace(address=address)
        self.num_came = 0
        self.is_running = self.is_read = self.is_refused = False

    def resume_reading(self):
        self.is_read = True

    def refuse_bytes(self):
        self.is_refused, self.is_read = True, False
        self.budget.hold(self, 0)

    def come(self, num_bytes):
        """Let bytes come, and see whether more may."""
        self.num_came += num_bytes
        self.is_running = self.num_came == self.num_bytes
        if not self.is_running:
            self.is_read = self.budget.admit(self, self.num_bytes)
        self.budget.hold(self, self.num_came)

    def end(self):
        self.budget.hold(self, 0)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def budget(clock):
    made = Budget(clock, lambda: None)
    made.max_bytes, made.free_bytes = 100, 5
    return made


def test_large_requests_wait_and_come_one_after_the_other(budget):
    requests = [Request(budget, 40) for _ in range(4)]
    for request in requests:
        request.come(5)
    assert [each.is_read for each in requests] == [True, False, False, False]
    for number, request in enumerate(requests):
        assert request.is_read
        request.come(35)
        request.end()
        assert all(each.is_read for each in requests[: number + 2])
    assert not any(each.is_refused for each in requests)
    assert not budget.is_contended


class CountingPeer:
    """A caller that counts how often its address is read."""

    num_reads = 0

    @property
    def address(self):
        self.num_reads += 1
        return "a"


def test_the_end_of_a_connection_takes_a_step_for_each_of_its_calls(budget):
    budget.max_bytes = 10_000
    peer = CountingPeer()
    requests = [Request(budget, 5000) for _ in range(1000)]
    for request in requests:
        request.peer = peer
        request.come(5)
    assert not any(request.is_refused for request in requests)
    peer.num_reads = 0
    for request in requests:
        request.end()
    assert peer.num_reads < 20 * len(requests)
    assert not budget.is_contended


def test_one_that_is_larger_than_the_budget_comes_alone(budget):
    small, large, next_one = Request(budget, 30), Request(budget, 95), Request(budget, 30)
    for each in (small, large, next_one):
        each.come(5)
    assert [small.is_read, large.is_read, next_one.is_read] == [True, False, False]
    small.end()
    assert [large.is_read, next_one.is_read] == [True, False], "it is not overtaken for ever"
    large.come(90)
    large.end()
    assert next_one.is_read


def test_small_requests_come_beside_large_ones_that_wait(budget):
    large = [Request(budget, 70) for _ in range(3)]
    for each in large:
        each.come(5)
    small = Request(budget, 5)
    small.come(4)
    assert small.is_read


def test_addresses_take_turns(budget):
    first = Request(budget, 70, "a")
    first.come(5)
    many = [Request(budget, 30, "a") for _ in range(3)]
    few = Request(budget, 30, "z")
    for each in (*many, few):
        each.come(5)
    first.end()
    assert many[0].is_read
    assert few.is_read
    assert [each.is_read for each in many[1:]] == [False, False]


def test_slow_request_is_refused_once_others_have_waited(budget, clock):
    slow = Request(budget, 70, "attacker")
    slow.come(5)
    waiting = Request(budget, 70)
    clock.advance(4.0)
    waiting.come(5)
    clock.advance(4.0)
    budget.tick(clock())
    assert not slow.is_refused
    clock.advance(1.0)
    budget.tick(clock())
    assert slow.is_refused
    assert waiting.is_read


def test_slow_request_is_refused_for_the_one_that_waited_longest(budget, clock):
    slow = Request(budget, 70, "attacker")
    slow.come(5)
    for second, address in ((0, "a"), (2, "b"), (4, "c")):
        clock.advance(second and 2.0)
        Request(budget, 70, address).come(5)
    clock.advance(1.0)
    budget.tick(clock())
    assert slow.is_refused, "the first has waited for 5 s, others came later"


def test_request_that_comes_at_a_good_rate_is_not_refused_for_others(budget, clock):
    steady = Request(budget, 70)
    steady.come(5)
    Request(budget, 70).come(5)
    for _ in range(12):
        clock.advance(1.0)
        steady.come(5)
        budget.tick(clock())
    assert not steady.is_refused


def test_halves_of_small_requests_are_refused_before_those_that_were_let_in(budget):
    large = Request(budget, 70)
    large.come(69)
    halves = [Request(budget, 5, "attacker") for _ in range(20)]
    for each in halves:
        each.come(4)
    assert not large.is_refused
    assert sum(each.is_refused for each in halves) >= 13
    assert budget._num_held <= 100


@pytest.mark.parametrize("seed", range(20))
def test_memory_is_bounded_and_everybody_comes_in_the_end(seed):
    chance, clock = random.Random(seed), FakeClock()
    budget = Budget(clock, lambda: None)
    budget.max_bytes, budget.free_bytes = 100, 5
    todo = [Request(budget, chance.randint(6, 60), chance.choice("abc")) for _ in range(12)]
    for request in todo:
        request.come(1)
    running: list[Request] = []
    for _ in range(5_000):
        clock.advance(0.01)
        budget.tick(clock())
        able = [each for each in todo if each.is_read]
        assert able or running, "nobody may go on"
        if able and chance.random() < 0.8:
            request = chance.choice(able)
            request.come(min(5, request.num_bytes - request.num_came))
            if request.is_running:
                todo.remove(request)
                running.append(request)
        elif running:
            running.pop(chance.randrange(len(running))).end()
        assert budget._num_held <= 100
        if not todo and not running:
            break
    assert not todo
    assert not budget._num_held
    assert not budget._num_reserved


def test_room_of_a_request_that_has_come_is_three_quarters(budget):
    one, another = Request(budget, 70), Request(budget, 5)
    budget.hold(one, 70)
    assert budget.has_room(another, 5)
    assert not budget.has_room(another, 6)
    budget.hold(another, 3)
    assert budget.has_room(another, 5), "its own bytes are not counted twice"
    assert not budget.has_room(another, 6)
    assert budget.has_room(one, 72)
    assert not budget.has_room(one, 73)


def test_slowest_request_is_refused_for_those_who_wait_and_no_other(budget, clock):
    slow, slower = Request(budget, 35, "a"), Request(budget, 35, "b")
    slow.come(4)
    slower.come(1)
    clock.advance(5.0)
    Request(budget, 35).come(1)
    clock.advance(4.9)
    budget.tick(clock())
    assert not slower.is_refused
    clock.advance(0.1)
    budget.tick(clock())
    assert (slow.is_refused, slower.is_refused) == (False, True)


def test_nobody_is_refused_while_none_is_slow(budget, clock):
    quick, late = Request(budget, 70), Request(budget, 70)
    quick.come(5)
    late.come(1)
    clock.advance(4.0)
    budget.tick(clock())
    quick.come(65)
    clock.advance(100.0)
    budget.tick(clock())
    assert (quick.is_refused, late.is_refused) == (False, False)
    quick.end()
    assert late.is_read


def test_room_is_made_of_those_who_have_most(budget):
    """Of the address with the most bytes, and of its requests the largest first."""
    few = Request(budget, 5, "few")
    few.come(4)
    small, large = ([Request(budget, 5, "many") for _ in range(number)] for number in (8, 23))
    for each in small:
        each.come(1)
    for each in large:
        each.come(4)
    assert budget._num_held <= 100
    assert not few.is_refused
    assert not any(each.is_refused for each in small)
    assert sum(each.is_refused for each in large) > 0


def test_budget_has_no_limit_until_it_gets_one(clock):
    budget = Budget(clock, lambda: None)
    request = Request(budget, 1 << 40)
    request.come(1 << 39)
    assert (request.is_read, request.is_refused, budget.is_contended) == (True, False, False)


class Long(bytearray):
    """An answer whose end can be waited for."""


def test_answer_that_the_end_of_the_program_finds_is_not_waited_for(budget, monkeypatch):
    made: list[Any] = []
    finalize = weakref.finalize

    def noted(*args):
        made.append(finalize(*args))
        return made[-1]

    monkeypatch.setattr(weakref, "finalize", noted)
    answer = Long(30)
    budget.hold_answer(answer)
    assert [each.atexit for each in made] == [False]
    assert budget.num_unsent == 30
    del answer
    assert budget.num_unsent == 0


def test_newest_request_may_be_the_one_that_gives_way(budget):
    """Its own bytes count for its address."""
    first, second = Request(budget, 40, "a"), Request(budget, 70, "b")
    first.come(40)
    first.is_running = False
    budget.hold(second, 70)
    assert (first.is_refused, second.is_refused) == (False, True)


def test_request_that_was_let_in_gives_way_last(budget):
    """However large it is, and its caller's others."""
    large = Request(budget, 95, "a")
    large.come(90)
    small = [Request(budget, 5, "b") for _ in range(3)]
    for each in small:
        each.come(4)
    assert not large.is_refused
    assert all(each.is_refused for each in small)
    assert budget._num_held == 90


class Asking(Request):
    """A request that asks again as soon as it is let in, as those over HTTP do."""

    def resume_reading(self):
        self.found = self.budget.is_waiting(self), self.budget.admit(self, self.num_bytes)
        super().resume_reading()


def test_request_that_is_let_in_waits_no_more_and_has_its_room(budget):
    first, second, third = Request(budget, 70), Asking(budget, 70), Asking(budget, 70)
    for each in (first, second, third):
        each.come(5)
    first.end()
    assert second.found == (False, True)
    assert (second.is_read, third.is_read) == (True, False)
    assert budget._num_reserved == 70
    second.end()
    assert third.found == (False, True)


def test_request_that_ends_while_it_waits_for_more_room_is_not_let_in(budget):
    """A stream's next message may be larger than its last one."""
    stream = Request(budget, 40)
    stream.come(5)
    assert not budget.admit(stream, 90)
    stream.is_read = False
    stream.end()
    assert not stream.is_read
    assert (budget._num_reserved, budget.is_contended) == (0, False)


@pytest.fixture
def trimmed(monkeypatch, clock):
    """When memory was given back to the kernel."""
    times: list[float] = []
    monkeypatch.setattr(byte_budget, "trim_memory", lambda: times.append(clock()))
    return times


@pytest.mark.parametrize("is_contended", [False, True])
def test_memory_is_given_back_a_second_after_much_of_it_was_left(
    is_contended, budget, clock, trimmed
):
    """Whether others wait for room or not, and once for all that was left by then."""
    budget.max_bytes = FREE_BYTES * 10
    if is_contended:
        for _ in range(2):
            Request(budget, FREE_BYTES * 6).come(5)
        assert budget.is_contended
    begun_s = clock()
    for size in (FREE_BYTES + 1, FREE_BYTES):
        gone = Long(size)
        budget.hold_answer(gone)
        del gone
        budget.tick(clock())
        clock.advance(0.5)
    assert trimmed == []
    gone = Long(FREE_BYTES + 1)
    budget.hold_answer(gone)
    del gone
    budget.tick(clock())
    assert trimmed == [begun_s + 1.0]
    clock.advance(1.0)
    budget.tick(clock())
    assert trimmed == [begun_s + 1.0]
