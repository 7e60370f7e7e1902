"""The server: binds, serves until told to stop, drains."""

import asyncio
import logging
import signal

import grpc

from serving.classifier import Classifier
from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import ConfigurationError
from serving.images import IMAGE_BYTES
from serving.model_info import ModelInfo
from serving.predictions import NUM_CLASSES
from serving.rpc import digits
from serving.rpc.calls import Calls
from serving.rpc.digits import DigitsServicer
from serving.rpc.health import HealthServicer

_log = logging.getLogger(__name__)

_TRANSPORT = "grpcio"
_QUIESCE_TIMEOUT_S = 5.0
"""How long a drain looks for a moment without new calls."""
_SPARE_BYTES = 4096
"""Room for tags, lengths and names beside the images or answers of a message."""


async def serve(model_config: ModelConfig, batching: BatchingConfig, config: ServerConfig) -> bool:
    """Load the model, serve it until SIGTERM or SIGINT, drain.

    Prints one line when it is ready, which tools may parse:
    `serving model=... version=... precision=... device=... transport=... address=...`.

    Returns:
        True if every accepted request was answered.

    Raises:
        DigitsError: it can't start; see `load_model` and `Server.start`.
    """
    with Classifier.open(model_config, batching) as classifier:
        server = Server(classifier, config)
        await server.start()
        print(_start_line(classifier.model_info(), server.address), flush=True)
        return await server.run_until_signalled()


class Server:
    """A classifier behind one TCP port, on grpc.aio."""

    def __init__(self, classifier: Classifier, config: ServerConfig) -> None:
        """Prepare; `start` binds. The classifier stays the caller's to close."""
        self._classifier = classifier
        self._config = config
        self._server = grpc.aio.server(options=_options(classifier.batching.max_request_images))
        self._calls = Calls(classifier.batcher)
        self._health = HealthServicer((digits.SERVICE,))
        self.address = ""

    async def start(self) -> None:
        """Bind and begin to answer.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        from grpc_health.v1 import health_pb2_grpc

        wanted = f"{_bracketed(self._config.host)}:{self._config.port}"
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        servicer = DigitsServicer(self._classifier, self._calls, _TRANSPORT)
        self._server.add_generic_rpc_handlers((servicer.handlers(),))
        try:
            port = self._server.add_insecure_port(wanted)
        except RuntimeError as err:
            raise ConfigurationError(f"can't listen on {wanted}: is the port taken?") from err
        await self._server.start()
        self.address = f"{_bracketed(self._config.host)}:{port}"
        self._health.set_serving(True)

    async def run_until_signalled(self) -> bool:
        """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the drain short.

        Returns:
            True if every accepted request was answered.
        """
        signals: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signals.put_nowait, number)
        _log.info("draining: %s", signal.Signals(await signals.get()).name)
        drain = asyncio.create_task(self.drain())
        forced = asyncio.create_task(signals.get())
        await asyncio.wait((drain, forced), return_when=asyncio.FIRST_COMPLETED)
        if drain.done():
            forced.cancel()
            return drain.result()
        _log.warning("stopped by a second signal")
        await self._server.stop(grace=0)
        return False

    async def drain(self) -> bool:
        """Stop in the order that loses nothing; see `run_until_signalled` for the result.

        Health says NOT_SERVING, and new work is refused as UNAVAILABLE while the port still
        listens. Calls that `stop` finds pending are answered CANCELLED (grpc #41785), which no
        client retries: so it comes last, in a moment when no call begins.
        """
        self._health.set_serving(False)
        is_drained = await asyncio.to_thread(self._classifier.batcher.drain, self._config.drain_s)
        await self._calls.quiesce(_QUIESCE_TIMEOUT_S)
        await self._server.stop(grace=1.0)
        return is_drained


def _start_line(info: ModelInfo, address: str) -> str:
    return (
        f"serving model={info.name} version={info.version} precision={info.precision} "
        f"device={info.device} transport={_TRANSPORT} address={address} "
        f"max_request_images={info.max_request_images} max_batch_size={info.max_batch_size}"
    )


def _options(max_request_images: int) -> list[tuple[str, int]]:
    """Every limit of the transport, set rather than inherited."""
    return [
        # Twice the largest request: one that is a little too large is read, and told by how much.
        ("grpc.max_receive_message_length", 2 * max_request_images * IMAGE_BYTES + _SPARE_BYTES),
        ("grpc.max_send_message_length", max_request_images * (4 * NUM_CLASSES + 1) + _SPARE_BYTES),
        ("grpc.max_concurrent_streams", 1024),
        ("grpc.so_reuseport", 0),  # else a second server would share the port in silence
        ("grpc.compression_enabled_algorithms_bitset", 1),  # identity only: no gzip bombs
    ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
