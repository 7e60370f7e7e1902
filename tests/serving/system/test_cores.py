import os

import pytest

from serving.system.cores import may_poll, usable_cores
from serving.system.usage import num_killed_for_memory


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """Eight cores are allowed, as on a host of eight."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("10000 100000", 1),
        ("50000 50000", 1),
        ("6400000 100000", 8),
        ("nonsense", 8),
        ("0 0", 8),
        ("", 8),
    ],
)
def test_quota_of_version_2_limits_the_cores(tmp_path, cpu_max, cores):
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("quota_us", "period_us", "cores"),
    [(-1, 100_000, 8), (150_000, 100_000, 2), (100_000, 50_000, 2), (1_000, 100_000, 1)],
)
def test_quota_of_version_1_limits_the_cores(tmp_path, quota_us, period_us, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota_us}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(f"{period_us}\n")
    assert usable_cores(tmp_path) == cores


def test_without_control_groups_the_affinity_counts(tmp_path):
    assert usable_cores(tmp_path) == 8


@pytest.mark.parametrize(
    ("cpu_max", "num_processes", "may"),
    [("max 100000", 1, True), ("max 100000", 8, True), ("max 100000", 9, False),
     ("400000 100000", 1, False)],
)  # fmt: skip
def test_who_has_a_quota_or_shares_a_core_may_not_poll(tmp_path, cpu_max, num_processes, may):
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    assert may_poll(num_processes, tmp_path) is may


def test_kernels_kills_for_want_of_memory_are_those_of_the_container_or_of_the_machine(tmp_path):
    machine = tmp_path / "vmstat"
    assert num_killed_for_memory(tmp_path, machine) == 0
    machine.write_text("nr_free_pages 5\noom_kill 7\n")
    assert num_killed_for_memory(tmp_path, machine) == 7
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert num_killed_for_memory(tmp_path, machine) == 2
