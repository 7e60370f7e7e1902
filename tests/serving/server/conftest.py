"""What the locks of a server's parts guard."""

from serving.server.metrics_port import _Server
from serving.server.supervisor import Supervisor
from tests.support.guards import Guarded, fixtures

uses_without_locks, locks_are_held = fixtures(
    Guarded(_Server, "_changed", ("_exchanges", "_end_late")),
    Guarded(Supervisor, "_lock", ("_dead",), writes=("_last",)),
)
