"""When the native transport waits awake, by a clock that moves with each look."""

from typing import Any

from serving.rpc.polling import LONGEST_S, Polling

LOOK_S = 0.000_01
CALL = ["a call"]


class Front:
    """Has a call ready at given times; a look takes `look_s`, a sleep all the time until it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.look_s = LOOK_S
        self.comes_s = 0.0
        self.num_looks = self.num_sleeps = 0
        self.is_closed = False

    def clock(self) -> float:
        return self.now_s

    def receive(self, timeout_ms: int | None) -> list[Any] | None:
        if self.is_closed:
            return None
        if timeout_ms == 0:
            self.num_looks += 1
            self.now_s += self.look_s
        else:
            assert timeout_ms is None
            self.num_sleeps += 1
            self.now_s = max(self.now_s, self.comes_s)
        return CALL if self.now_s >= self.comes_s else []

    def wait(self, polling: Polling, seconds: float) -> tuple[int, int]:
        """Wait for a call that comes in so many seconds; give the looks and sleeps it took."""
        before = self.num_looks, self.num_sleeps
        self.comes_s = self.now_s + seconds
        assert polling.wait(self.receive) is CALL
        return self.num_looks - before[0], self.num_sleeps - before[1]


def awake() -> tuple[Front, Polling]:
    """A front, and a polling that has just waited for a moment."""
    front = Front()
    polling = Polling(LONGEST_S, front.clock)
    assert front.wait(polling, 0.000_05) == (0, 1), "begins asleep"
    return front, polling


def test_calls_that_come_soon_are_waited_for_awake() -> None:
    front, polling = awake()
    for _ in range(3):
        looks, sleeps = front.wait(polling, 0.000_1)
        assert looks == 10
        assert sleeps == 0


def test_a_long_wait_ends_asleep_and_the_next_one_begins_so() -> None:
    front, polling = awake()
    looks, sleeps = front.wait(polling, 0.05)
    assert 20 <= looks <= 22
    assert sleeps == 1
    assert front.wait(polling, 0.000_1) == (0, 1)
    assert front.wait(polling, 0.000_1) == (10, 0)


def test_beside_another_program_it_sleeps_for_a_second() -> None:
    front, polling = awake()
    front.look_s = 0.004
    assert front.wait(polling, 0.004_1) == (2, 0)
    front.look_s = LOOK_S
    end_s = front.now_s + 0.99
    while front.now_s < end_s:
        assert front.wait(polling, 0.000_1) == (0, 1)
    front.now_s += 0.02
    assert front.wait(polling, 0.000_1) == (10, 0)


def test_no_time_awake_stays_asleep() -> None:
    front = Front()
    polling = Polling(0.0, front.clock)
    for _ in range(3):
        assert front.wait(polling, 0.000_1) == (0, 1)


def test_a_closed_front_ends_either_wait() -> None:
    front, polling = awake()
    front.is_closed = True
    assert polling.wait(front.receive) is None
    assert Polling(LONGEST_S, front.clock).wait(front.receive) is None
