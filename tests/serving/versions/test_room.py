"""Models load beside one another, so many at a time, and only as the memory allows."""

import threading

import pytest

from serving.versions.room import LoadingRoom
from tests.support.fakes import FakeClock
from tests.support.servers import wait_until

MIB = 1 << 20


def room_with(free_bytes, most=4):
    clock = FakeClock()
    return LoadingRoom(most, lambda: free_bytes, clock), clock


def test_so_many_load_at_a_time():
    room, _ = room_with(1 << 40, most=2)
    with room.of(MIB):
        assert room.has_room(MIB)
        with room.of(MIB):
            assert not room.has_room(0)
        assert room.has_room(MIB)


def test_three_times_the_files_of_all_fit_the_memory():
    room, _ = room_with(12 * MIB)
    with room.of(2 * MIB):
        assert room.has_room(6 * MIB)
        assert not room.has_room(6 * MIB + 1)


@pytest.mark.parametrize("free_bytes", [1, 0])
def test_one_alone_may_always_load_and_so_do_all_where_memory_is_not_known(free_bytes):
    room, _ = room_with(free_bytes)
    with room.of(100 * MIB):
        assert room.has_room(MIB) is (free_bytes == 0)


def test_one_that_hangs_does_not_count_for_ever():
    room, clock = room_with(12 * MIB, most=1)
    with room.of(2 * MIB):
        clock.advance(5.0)
        assert not room.has_room(0)
        clock.advance(0.2)
        assert room.has_room(100 * MIB), "what it has taken is not free"


def test_large_one_counts_for_longer():
    room, clock = room_with(1 << 40, most=1)
    with room.of(500_000_000):
        clock.advance(14.9)
        assert not room.has_room(0)
        clock.advance(0.2)
        assert room.has_room(0)


def test_one_that_waits_loads_once_there_is_room():
    room, _ = room_with(1 << 40, most=1)
    loaded = threading.Event()

    def load():
        with room.of(0):
            loaded.set()

    with room.of(0):
        thread = threading.Thread(target=load)
        thread.start()
        assert not loaded.wait(0.05)
    wait_until(loaded.is_set)
    thread.join()


def test_load_that_fails_gives_its_room_back():
    room, _ = room_with(1 << 40, most=1)
    with pytest.raises(RuntimeError), room.of(MIB):
        raise RuntimeError
    assert room.has_room(MIB)


def test_one_that_waits_looks_at_the_memory_twice_a_second(monkeypatch):
    """Nobody says that there is more of it."""
    free, waits = [1, 1 << 40], []
    room = LoadingRoom(4, lambda: free[0], FakeClock())

    def wait(timeout_s):
        waits.append(timeout_s)
        if len(waits) == 3:
            free.pop(0)
        return False

    monkeypatch.setattr(room._changed, "wait", wait)
    with room.of(MIB), room.of(MIB):
        assert waits == [0.5] * 3
