"""What a process uses, as Linux writes it under /proc."""

import os
import time
from types import SimpleNamespace

import pytest

from serving.system import usage
from serving.system.usage import (
    DATA,
    RESIDENT,
    SHARED,
    VIRTUAL,
    Activity,
    Usage,
    memory,
    num_killed_for_memory,
    start_time_s,
    waited_for_cores_s,
)

PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


def stat(state, *, user=0, system=0, start=0):
    """A line of stat(5); the command has what may mislead."""
    fields = ["0"] * 50
    fields[0], fields[11], fields[12], fields[19] = state, str(user), str(system), str(start)
    return f"17 (a) R (b) {' '.join(fields)}\n"


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A folder in the place of /proc/self, of a process with two threads and three files."""
    (tmp_path / "statm").write_text("100 50 20 5 0 70 0\n")
    (tmp_path / "fd").mkdir()
    for number in range(4):  # one is that of the listing
        (tmp_path / "fd" / str(number)).touch()
    for number, waited_ns in ("17", 1_500_000_000), ("18", 500_000_000):
        (tmp_path / "task" / number).mkdir(parents=True)
        (tmp_path / "task" / number / "schedstat").write_text(f"7 {waited_ns} 9\n")
    (tmp_path / "stat").write_text(stat("S", start=30 * TICKS))
    monkeypatch.setattr(usage, "_PROC", tmp_path)
    return tmp_path


def test_memory_is_in_bytes(proc):
    found = [memory(field) for field in (VIRTUAL, RESIDENT, SHARED, DATA)]
    assert found == [100 * PAGE, 50 * PAGE, 20 * PAGE, 70 * PAGE]


def test_usage_is_whole(proc, monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (
        1024 if which == resource.RLIMIT_NOFILE else 0, 4096))  # fmt: skip
    assert Usage.now() == Usage(50 * PAGE, 100 * PAGE, 3, 1024)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (
        10 * 100 * PAGE if which == resource.RLIMIT_DATA else 0, 4096))  # fmt: skip
    assert usage.free_bytes() == (1000 - 70) * PAGE
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert usage.free_bytes() == float("inf")


def test_waits_of_all_threads_are_seconds(proc):
    assert waited_for_cores_s() == 2.0


def test_start_is_in_seconds_since_1970(proc, monkeypatch):
    clock = SimpleNamespace(time=lambda: 1000.0, clock_gettime=lambda which: 130.0,
                            CLOCK_BOOTTIME=time.CLOCK_BOOTTIME)  # fmt: skip
    monkeypatch.setattr(usage, "time", clock)
    assert start_time_s() == 900.0


def test_without_proc_all_is_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(usage, "_PROC", tmp_path / "none")
    found = Usage.now(), memory(RESIDENT), waited_for_cores_s(), start_time_s()
    assert found == (Usage(0, 0, 0, 0), 0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("states", "is_waiting"),
    [("S", False), ("R", True), ("SD", True), ("SS", False), ("SRS", True), ("Z", False)],
)
def test_activity_of_a_process(states, is_waiting, tmp_path, monkeypatch):
    for number, state in enumerate(states):
        (tmp_path / "17" / "task" / str(number)).mkdir(parents=True)
        (tmp_path / "17" / "task" / str(number) / "stat").write_text(stat(state))
    (tmp_path / "17" / "stat").write_text(stat("S", user=3 * TICKS, system=TICKS // 2))
    monkeypatch.setattr(usage, "Path", lambda path: tmp_path / path.removeprefix("/proc/"))
    (tmp_path / "17" / "task" / "gone").mkdir()  # it has ended since it was listed
    assert Activity.of(17) == Activity(3.5, is_waiting)
    assert Activity.of(18) == Activity(0.0, True)


def test_kills_are_counted_where_there_is_a_count(tmp_path):
    events, vmstat = tmp_path / "memory.events", tmp_path / "vmstat"
    assert num_killed_for_memory(tmp_path, vmstat) == 0
    vmstat.write_text("pgfault 9\noom_kill 4\n")
    assert num_killed_for_memory(tmp_path, vmstat) == 4
    events.write_text("low 0\noom 5\noom_kill 3\n")
    assert num_killed_for_memory(tmp_path, vmstat) == 3
    events.write_text("low 0\n")  # an old kernel's
    assert num_killed_for_memory(tmp_path, vmstat) == 0


def test_available_memory_is_that_of_the_machine_or_of_the_container(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  300 kB\n")
    monkeypatch.setattr(usage, "Path", lambda path: tmp_path / path.removeprefix("/proc/"))
    for limit, expected in (1 << 30, 300 << 10), (100 << 10, 100 << 10):
        monkeypatch.setattr(usage, "memory_limit", lambda limit=limit: limit)
        assert usage.available_bytes() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor: 0\nmodel name : A\nflags : b c\n\nprocessor: 1\nmodel name : A\nflags : b c\n"
         "rest", "model name : A\nflags : b c"),
        ("Features : neon\nrest", "Features : neon"),
        ("model name : A\nflags : cut", "model name : A"), ("", ""),
        (f"{'x' * (6 << 10)}\nflags : late\n\n", ""),
    ],
)  # fmt: skip
def test_processor_has_a_name_and_what_it_is_able_to_do(text, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(usage, "_CPUINFO", tmp_path / "cpuinfo")
    assert usage.processor() == ""
    (tmp_path / "cpuinfo").write_text(text)
    assert usage.processor() == expected


def test_nothing_is_used_where_nothing_is_known():
    assert tuple(Usage()) == (0, 0, 0, 0)
    assert tuple(Activity()) == (0.0, True)
