"""Python's clients, each calling a server of ours: the client is measured.

It runs on the generator's cores, and its processor time is measured; the server on the target's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter

from benchmarks.load.callers import AwaitedCall, Call
from benchmarks.targets.in_process import in_own_process
from benchmarks.targets.servers import command_of, server_process
from benchmarks.targets.target import Running, Setting, Spec

CLIENTS = {
    "client-grpcio": "Client on grpcio, by threads",
    "client-h2": "Client on h2, by threads",
    "client-async-grpcio": "AsyncClient on grpcio, by tasks",
    "client-async-h2": "AsyncClient on h2, by tasks",
}
"""By name, with a description; the server is our h2."""


@contextmanager
def open_client(spec: Spec, setting: Setting) -> Iterator[Running]:
    """Start a server, and one of CLIENTS in a process of its own.

    Raises:
        NotMeasured: it can't run here.
    """
    begin_s = perf_counter()
    command = command_of(Spec(target="h2"), setting)
    with server_process(command, None, setting.cores) as (_, facts):
        connect = partial(_connect, spec.target, facts["address"])
        cores = setting.generator.cores
        with in_own_process(connect, setting.images, cores) as (load, pid):
            startup_s = perf_counter() - begin_s
            yield Running(load=load, startup_s=startup_s, parallel_calls=len(cores), pid=pid)


def _connect(target: str, address: str) -> Call | AwaitedCall:
    """Return the callable of the client's threads or tasks; they share one client."""
    from serving import AsyncClient, Client

    transport = target.rpartition("-")[2]
    if target.startswith("client-async"):
        return AsyncClient(address, transport=transport).classify  # type: ignore[arg-type]
    return Client(address, transport=transport).classify  # type: ignore[arg-type]
