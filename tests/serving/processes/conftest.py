"""What the locks of processes guard."""

from serving.processes.child import Child
from serving.processes.pool import ProcessPool
from tests.support.guards import Guarded, fixtures

uses_without_locks, locks_are_held = fixtures(
    Guarded(Child, "_lock", ("_kill_group",), writes=("_end", "_is_killed")),
    Guarded(
        ProcessPool, "_changed",
        ("_waiting", "_running", "_busy", "_threads"), writes=("_is_closed",),
    ),
)  # fmt: skip
