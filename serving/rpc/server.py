"""The server's life: load, listen, serve until told to stop, drain."""

import asyncio
import gc
import json
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from serving import logs, signals
from serving.address import check_free, with_port
from serving.classifier import Classifier
from serving.config import BatchingConfig, LogFormat, ModelConfig, ServerConfig
from serving.cores import may_poll
from serving.errors import ConfigurationError
from serving.exporter import Exporter, exporting
from serving.metrics import Report
from serving.model_info import ModelInfo
from serving.process import Usage
from serving.reload import Reloader
from serving.rpc.classify import Classify
from serving.rpc.exposure import choose_transport
from serving.rpc.grpcio import GrpcioServer
from serving.rpc.infer import ModelInfer
from serving.rpc.self_test import SelfTest

if TYPE_CHECKING:
    from serving.rpc.native import NativeFront

_log = logging.getLogger(__name__)

_QUIET_S = 0.1
"""How long no call may begin before a drain counts as over."""
_QUIESCE_TIMEOUT_S = 5.0
"""How long a drain looks for such a moment."""
_GOODBYE_S = 0.02
"""How long callers get to learn that the port closes, before those held are refused."""


def announce(
    info: ModelInfo, address: str, metrics_address: str, log_format: LogFormat, **more: object
) -> None:
    """Print the one line that says that it is ready, which tools may parse."""
    facts = {
        "model": info.name,
        "version": info.version,
        "precision": info.precision,
        "device": info.device,
        "transport": info.transport,
        "address": address,
        "metrics": metrics_address,
        "max_request_images": info.max_request_images,
        "max_batch_size": info.max_batch_size,
        **more,
    }
    if log_format == "json":
        line = json.dumps({"message": "serving", **facts})
    else:
        line = " ".join(["serving", *(f"{name}={fact}" for name, fact in facts.items())])
    logs.print_line(line, sys.stdout)  # that nobody reads it is no reason not to serve


def _announce(server: "Server") -> None:
    log_format = server.config.log_format
    announce(server.report().info, server.address, server.metrics_address, log_format)


async def serve(
    model_config: ModelConfig,
    batching: BatchingConfig,
    config: ServerConfig,
    on_ready: Callable[["Server"], None] = _announce,
) -> bool:
    """Load the model, serve it until SIGTERM or SIGINT, drain; SIGHUP looks for a new version.

    Calls `on_ready` when it answers; by default that prints the line that says so.

    Returns:
        True if every accepted request was answered.

    Raises:
        DigitsError: it can't start; see `load_model` and `Server.start`.
    """
    transport = choose_transport(config.transport, config.security)
    if config.access_log and transport == "native":
        raise ConfigurationError("access_log needs transport grpcio: native reads no metadata")
    if config.reload_interval_s and model_config.version is not None:
        raise ConfigurationError("reload_interval replaces versions, and --version pins one")
    with (
        exporting(config) as exporter,  # first: it says that the others are still starting
        Classifier.open(model_config, batching, config.workers) as classifier,
    ):
        server = Server(classifier, config, transport, exporter)
        try:
            await server.start()
        except ConfigurationError:
            await server.stop(grace_s=0)
            raise
        with Reloader(classifier, model_config, config.reload_interval_s) as reloader:
            signals.on_hang_up(reloader.request)
            return await server.run_until_signalled(on_ready)


class Server:
    """A classifier behind one TCP port."""

    def __init__(
        self,
        classifier: Classifier,
        config: ServerConfig,
        transport: str,
        exporter: Exporter | None = None,
    ) -> None:
        """Prepare on the running event loop; classifier and exporter are the caller's to close."""
        self._classifier = classifier
        self._exporter = exporter
        self.config = config
        self.transport = transport
        self._methods = (Classify(classifier.batching), ModelInfer(classifier))
        self._grpcio = GrpcioServer(classifier, *self._methods, transport, config)
        self._native: NativeFront | None = None
        self._sockets: tempfile.TemporaryDirectory[str] | None = None
        self._self_test: asyncio.Task[None] | None = None
        self._stops: asyncio.Queue[int] = asyncio.Queue()
        self.address = ""
        self.metrics_address = "off" if exporter is None else exporter.address

    async def start(self) -> None:
        """Bind and begin to answer.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        self._stops = signals.queue_stops()  # from the first call on, a stop drains
        config = self.config
        if config.workers == 1:  # else the supervisor holds the port
            check_free(config.host, config.port)
        wanted = with_port(config.host, config.port)
        if self.transport == "native":
            port = await self._start_native(wanted)
        else:
            port = await self._grpcio.start(wanted)
        self.address = with_port(config.host, port)
        self._grpcio.health.set_serving(True)
        if self._exporter is not None:
            self._exporter.serve(self.report, lambda: self._grpcio.health.is_serving)
        if interval_s := self.config.self_test_interval_s:
            test = SelfTest(self._classifier, self._grpcio.health.set_serving, interval_s)
            self._self_test = asyncio.create_task(test.run())

    async def _start_native(self, address: str) -> int:
        from serving.rpc.native import NativeFront
        from serving.rpc.polling import LONGEST_S

        self._native = NativeFront(
            self._classifier.batcher,
            self._classifier.metrics,
            self._methods,
            address,
            reuse_port=self.config.workers > 1,
            poll_s=LONGEST_S if may_poll(self.config.workers) else 0.0,
        )
        try:
            self._sockets = tempfile.TemporaryDirectory(prefix="digits-")
        except OSError as err:
            raise ConfigurationError(f"can't make a temporary directory: {err}") from err
        fallback = str(Path(self._sockets.name, "grpcio.sock"))
        await self._grpcio.start(f"unix:{fallback}")
        self._native.start(fallback)
        return self._native.port

    def report(self) -> Report:
        """Tell what is served and what was counted; from any thread."""
        classifier = self._classifier
        num_native = 0 if self._native is None else len(self._native.calls)
        return Report(
            info=replace(classifier.model_info(), transport=self.transport),
            num_waiting=classifier.batcher.num_waiting,
            queue_capacity=classifier.batching.queue_capacity,
            num_calls=self._grpcio.calls.num_active + num_native,
            is_serving=self._grpcio.health.is_serving,
            usage=Usage.now(),
            counts=classifier.metrics.snapshot(),
        )

    async def run_until_signalled(self, on_ready: "Callable[[Server], None]") -> bool:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process, exit code 1.

        Calls `on_ready` once signals are heeded: whoever reads that it is ready may stop it.

        Of several workers none heeds a second signal: each may get one from the terminal or from
        systemd, and the same again from the supervisor, which ends them itself.

        Returns:
            True: every accepted request was answered. What takes longer than `drain_s` ends the
            process, too.
        """
        signals.heed()
        gc.freeze()  # what start-up made stays: else each full collection looks at all of it
        on_ready(self)
        _log.info("draining: %s", signal.Signals(await self._stops.get()).name)
        drain = asyncio.create_task(self.drain())
        is_alone = self.config.workers == 1
        forced = asyncio.create_task(self._stops.get() if is_alone else asyncio.Event().wait())
        await asyncio.wait((drain, forced), return_when=asyncio.FIRST_COMPLETED)
        if drain.done() and drain.result():
            forced.cancel()
            return True
        reason = "not every call was answered in time" if drain.done() else "a second signal"
        _log.warning("stopped: %s", reason)
        self._remove_sockets()
        return signals.end_process(1)

    async def drain(self) -> bool:
        """Stop in the order that loses nothing; see `run_until_signalled` for the result.

        Health says NOT_SERVING, and new work is refused as UNAVAILABLE while the port still
        listens. Calls that the stop finds pending are cut off, so it comes last, in a moment when
        no call begins.
        """
        self._end_self_test()  # first: nothing says SERVING from here on
        self._grpcio.health.set_serving(False)
        is_drained = await asyncio.to_thread(self._classifier.batcher.drain, self.config.drain_s)
        if not is_drained:
            return False
        await self._quiesce()
        stopping = asyncio.create_task(self.stop(grace_s=1.0))
        await asyncio.sleep(_GOODBYE_S)
        self._grpcio.calls.release()
        await stopping
        return True

    async def _quiesce(self) -> None:
        """Wait for a moment without new calls; the native front needs none: it cuts what is left.

        Its last answers leave meanwhile.
        """
        calls = self._grpcio.calls
        calls.hold_refused()
        give_up_s = time.monotonic() + _QUIESCE_TIMEOUT_S
        while time.monotonic() < give_up_s:
            num_begun = calls.num_begun
            await asyncio.sleep(_QUIET_S)
            if num_begun == calls.num_begun and not calls.num_active:
                return

    def _end_self_test(self) -> None:
        if self._self_test is not None:
            self._self_test.cancel()

    async def stop(self, grace_s: float) -> None:
        """Close the port and cut off what is pending; `drain` first to lose nothing."""
        self._end_self_test()
        if self._native is not None:
            await asyncio.to_thread(self._native.close)
        await self._grpcio.stop(grace_s)
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        if self._sockets is not None:
            self._sockets.cleanup()
