"""The life of a server in this process: load, listen, serve until a signal, drain."""

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

from serving.config import BatchingConfig, ModelConfig, ServerConfig, TransportName
from serving.errors import ConfigurationError, Unavailable
from serving.router import Router
from serving.server.metrics_port import MetricsPort
from serving.server.ready_line import announce
from serving.server.server import Server
from serving.system import signals
from serving.system.addresses import first_free
from serving.system.cores import usable_cores
from serving.system.host import Host
from serving.system.libc import limit_free_memory
from serving.system.systemd import keep_watchdog_fed, notify
from serving.versions.catalog import Catalog

_log = logging.getLogger(__name__)


@contextmanager
def exporting(config: ServerConfig) -> Iterator[Any]:
    """Open the metrics port; None if the configuration disables it."""
    if config.metrics_port is None:
        yield None
        return

    host, names = config.metrics_host, config.http_host_names
    ports = config.ports_to_try("metrics_port")
    exporter = first_free(lambda port: MetricsPort(host, port, names), ports, "--metrics-port")
    try:
        yield exporter
    finally:
        exporter.close()


def _announce(server: Server) -> None:
    more = {} if server.http_url is None else {"http": server.http_url}
    announce(server.report(), server.address, server.metrics_address, server.config, **more)


async def serve(
    model_config: ModelConfig,
    batching: BatchingConfig,
    config: ServerConfig,
    on_ready: Callable[[Server], None] = _announce,
    host: Host | None = None,
    blocked: Mapping[int, float] = MappingProxyType({}),
    alone: frozenset[int] = frozenset(),
) -> bool:
    """Load the model, serve it until SIGTERM or SIGINT, drain; SIGHUP looks for a new version.

    Args:
        model_config: the models.
        batching: sizes and limits.
        config: how to listen, reload and stop.
        on_ready: called once the server answers; by default it prints the ready line.
        host: guards the models' runs.
        blocked: versions that are not run at first; see `Router.block`.
        alone: versions of which each call runs alone; see `Router.stop_batching`.

    Returns:
        True if every accepted request was answered.

    Raises:
        ServingError: the server can't start; see `load_model` and `Server.start`.
    """
    limit_free_memory()  # first: loading counts the pages that runs unmap and map again
    with ExitStack() as stack:
        # First: it answers 503 while the rest starts.
        exporter = stack.enter_context(exporting(config))
        most_threads = max(1, usable_cores() // config.workers)
        catalog = Catalog(model_config, batching.max_batch_size, most_threads)
        router = Router(batching, config.workers, host)
        router.block(blocked)
        router.stop_batching(alone)
        for name, versions in catalog.models.items():
            router.change(name, versions)
        catalog.count_reload = router.metrics.count_reload
        catalog.on_change = router.change  # before a call may load or unload a model
        router.on_end = catalog.end_version
        stack.callback(router.close)
        server = Server(router, config, exporter, catalog)
        stops = signals.queue_stops()  # before the first call, so that every stop drains
        try:
            await server.start()
        except (ConfigurationError, Unavailable):
            await server.stop(grace_s=0)
            raise
        with catalog.following(config.reload_interval_s):
            signals.on_hang_up(partial(_reload, catalog))
            return await drain_when_signalled(server, stops, on_ready)


def _reload(catalog: Catalog) -> None:
    notify("RELOADING=1")
    catalog.request(partial(notify, "READY=1"))


def run_loop(main: Coroutine[None, None, bool], transport: TransportName) -> bool:
    """Run `serve` on an event loop: grpcio answers its calls there, so it gets a faster one."""
    if transport != "grpcio":
        return asyncio.run(main)
    import uvloop

    return bool(uvloop.run(main))


async def drain_when_signalled(
    server: Server, stops: "asyncio.Queue[int]", on_ready: Callable[[Server], None]
) -> bool:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process, exit code 1.

    A worker ignores a second signal: it may get the first from the terminal or from systemd, and
    the same one from the supervisor, which ends its workers itself.

    Args:
        server: a started server.
        stops: the queue of signals; see `signals.queue_stops`.
        on_ready: called once signals are handled: the reader of the ready line may send one.

    Returns:
        True: every accepted request was answered. A drain that takes longer than `drain_s` ends the
        process too.
    """
    signals.install()
    gc.freeze()  # else each full collection looks at all that start-up made
    on_ready(server)
    watched = asyncio.create_task(keep_watchdog_fed(server.beat))
    _log.info("draining: %s", signal.Signals(await stops.get()).name)
    num_calls, begun_s = server.num_calls, time.monotonic()
    watched.cancel()
    notify("STOPPING=1")
    drain = asyncio.create_task(server.drain())
    is_alone = server.config.workers == 1
    forced = asyncio.create_task(stops.get() if is_alone else asyncio.Event().wait())
    await asyncio.wait((drain, forced), return_when=asyncio.FIRST_COMPLETED)
    if drain.done() and drain.result():
        forced.cancel()
        took_s = time.monotonic() - begun_s
        _log.info("drained in %.1f s: %d calls were in progress", took_s, num_calls)
        return True
    reason = "accepted calls took longer than --drain" if drain.done() else "second signal"
    _log.warning("stopped by force: %s; calls cut off: %d", reason, server.num_calls)
    return signals.end_process(1)
