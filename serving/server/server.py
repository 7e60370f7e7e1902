"""The server's life: load, listen, serve until told to stop, drain."""

import asyncio
import gc
import json
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

from serving.classifier import Classifier
from serving.config import BatchingConfig, LogFormat, ModelConfig, ServerConfig
from serving.errors import ConfigurationError
from serving.model.info import ModelInfo
from serving.protocols.digits_v1 import methods as digits_v1
from serving.protocols.digits_v1.methods import digits_methods
from serving.protocols.health import Health
from serving.protocols.oip import inference_pb
from serving.protocols.oip.methods import inference_methods
from serving.server.reloader import Reloader
from serving.server.self_test import SelfTest
from serving.system import signals
from serving.system.process import Usage
from serving.telemetry import logs
from serving.telemetry.exporter import Exporter, exporting
from serving.telemetry.metrics import Report
from serving.transports import choose_transport, open_transport

_log = logging.getLogger(__name__)


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
    with (
        exporting(config) as exporter,  # first: it says that the others are still starting
        Classifier.open(model_config, batching, config.workers) as classifier,
    ):
        server = Server(classifier, config, exporter)
        try:
            await server.start()
        except ConfigurationError:
            await server.stop(grace_s=0)
            raise
        with Reloader(classifier, model_config, config.reload_interval_s) as reloader:
            signals.on_hang_up(reloader.request)
            return await server.run_until_signalled(on_ready)


class Server:
    """A classifier behind one port."""

    def __init__(
        self, classifier: Classifier, config: ServerConfig, exporter: Exporter | None = None
    ) -> None:
        """Prepare on the running event loop; classifier and exporter are the caller's to close.

        Raises:
            ConfigurationError: the transport, a certificate or a token can't be used.
        """
        self._classifier = classifier
        self._exporter = exporter
        self.config = config
        self.transport = choose_transport(config.transport)
        self.health = Health((digits_v1.SERVICE, inference_pb.SERVICE))
        methods = [
            *digits_methods(classifier, self.transport),
            *inference_methods(classifier, self.health),
            *self.health.methods(),
        ]
        if config.reflection:
            from serving.protocols.reflection import reflection_methods

            methods += reflection_methods()
        self._transport = open_transport(self.transport, classifier, methods, config)
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
        self.address = await self._transport.start()
        self.health.set_serving(True)
        if self._exporter is not None:
            self._exporter.serve(self.report, lambda: self.health.is_serving)
        if interval_s := self.config.self_test_interval_s:
            ask, set_serving = self._transport.ask, self.health.set_serving
            test = SelfTest(self._classifier, ask, set_serving, interval_s)
            self._self_test = asyncio.create_task(test.run())

    def report(self) -> Report:
        """Say what is served and what was counted; from any thread."""
        classifier = self._classifier
        return Report(
            info=replace(classifier.model_info(), transport=self.transport),
            num_waiting=self._transport.num_waiting,
            queue_capacity=classifier.batching.queue_capacity,
            num_calls=self._transport.num_calls,
            is_serving=self.health.is_serving,
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
        reason = "accepted calls took longer than --drain" if drain.done() else "second signal"
        _log.warning("stopped by force: %s", reason)
        return signals.end_process(1)

    async def drain(self) -> bool:
        """Stop in the order that loses nothing; see `run_until_signalled` for the result.

        Health says NOT_SERVING, then new work is refused as UNAVAILABLE while the port still
        listens, and the port closes last.
        """
        self._end_self_test()  # first: nothing says SERVING from here on
        self.health.set_serving(False)
        if not await self._transport.drain(self.config.drain_s):
            return False
        await self.stop(grace_s=1.0)
        return True

    def _end_self_test(self) -> None:
        if self._self_test is not None:
            self._self_test.cancel()

    async def stop(self, grace_s: float) -> None:
        """Close the port and cut off what is pending; `drain` first to lose nothing."""
        self._end_self_test()
        await self._transport.stop(grace_s)
