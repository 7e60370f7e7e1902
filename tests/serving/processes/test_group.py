"""Groups of processes."""

import os

from serving.processes import group as groups_module
from serving.processes.group import ProcessGroup


def test_group_of_a_process_is_read_once(monkeypatch):
    """Also those of the kernel's own threads, which have none: there are hundreds."""
    read: list[int] = []
    groups = {2: 0, 3: 0, 40: 40, 41: 40}

    def group_of(pid):
        read.append(pid)
        return groups[pid]

    monkeypatch.setattr(groups_module, "_group_of", group_of)
    monkeypatch.setattr(os, "listdir", lambda path: ["self", *map(str, groups)])
    group = ProcessGroup(40)
    assert [group._members() for _ in range(3)] == [[40, 41]] * 3
    assert read == [2, 3, 40, 41]
    del groups[41]
    groups[42] = 40
    assert group._members() == [40, 42]
    assert read[4:] == [42]
