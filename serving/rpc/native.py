"""The native transport: HTTP/2 and gRPC in Rust, outside the GIL (the pygrpc-native package).

The hot methods come to one Python thread as lists of calls, which it queues and then runs itself:
no event loop, no task, no message object per call. Everything else goes to the grpcio server behind
a unix socket.
"""

import threading
import time
from typing import Any

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from serving.batcher import Batcher
from serving.errors import ConfigurationError, DigitsError
from serving.metrics import Metrics
from serving.requests import Answer, Request
from serving.rpc import wire
from serving.rpc.status import STATUS

_CLASSIFY = "/digits.v1.DigitClassifier/Classify"
_MAX_EVENTS = 4096
"""The most calls taken from the front at once."""
_SHORT_WAIT_S = 0.02
"""The wait from which on a deadline may pass in the queue."""


class NativeFront:
    """Listens on a TCP port and answers Classify; forwards what else comes."""

    def __init__(
        self, batcher: Batcher, metrics: Metrics, max_request_images: int, address: str
    ) -> None:
        """Bind; `start` begins to answer.

        Args:
            batcher: answers the requests.
            metrics: counts them.
            max_request_images: the most images in one request.
            address: "host:port" to bind; port 0 lets the kernel choose.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        self.num_begun = 0
        self._batcher = batcher
        self._metrics = metrics
        self._calls: dict[int, _NativeCall] = {}
        self._max_request_images = max_request_images
        try:
            self._front = NativeGrpcFront(
                address,
                [(_CLASSIFY, False)],
                io_threads=1,
                # Costs 5 to 10 % of the front's own rate (h2load, 8 x 8), and without it nobody
                # tells that a unary caller has left or its deadline has passed.
                call_details=True,
            )
        except OSError as err:
            raise ConfigurationError(f"can't listen on {address}: is the port taken?") from err
        self.port = self._front.bound_port
        self._thread = threading.Thread(target=self._pump, name="native-front", daemon=True)

    def start(self, fallback: str) -> None:
        """Begin to answer.

        Args:
            fallback: path of the unix socket of a grpcio server with every method.
        """
        self._front.set_fallback(fallback)
        self._front.start()
        self._thread.start()

    def close(self) -> None:
        """Close the port; what is in flight is cut, so drain first."""
        self._front.close()
        self._thread.join()

    def _pump(self) -> None:
        """Queue what comes and run it, batch by batch, on this thread."""
        timeout_ms: int | None = None  # wait for calls
        while (events := self._receive(timeout_ms)) is not None:
            self.num_begun += len(events)
            self._batcher.submit_all(self._requests(events))
            timeout_ms = 0 if self._batcher.help() else None

    def _receive(self, timeout_ms: int | None) -> list[Any] | None:
        """Take all that has come: the end of a call may lie thousands of events behind it.

        With the deadlines only when calls wait for long: to read them costs a quarter of the rate.
        """
        is_patience_tried = self._batcher.expected_wait_s > _SHORT_WAIT_S
        front = self._front
        receive: Any = front.recv_batch_details if is_patience_tried else front.recv_batch
        events: list[Any] | None = receive(_MAX_EVENTS, timeout_ms)
        taken = events
        while events is not None and taken and len(taken) == _MAX_EVENTS:
            taken = receive(_MAX_EVENTS, 0)
            events += taken or []
        return events

    def _requests(self, events: list[Any]) -> list[Request]:
        """Decode calls; refuse the bad ones, cancel those whose callers left."""
        requests: list[Request] = []
        for kind, call_id, _, data, caller, *details in events:
            if kind == EVENT_CALL:
                assert data is not None
                try:
                    pixels = wire.decode_request(data, self._max_request_images)
                except DigitsError as err:
                    self.fail(call_id, err)
                    continue
                call = self._calls[call_id] = _NativeCall(self, call_id, pixels, caller)
                if details and (remaining_s := details[0][2]) is not None:
                    call.deadline_s = time.monotonic() + remaining_s
                requests.append(call)
            elif (cancelled := self._calls.pop(call_id, None)) is not None:
                self._batcher.cancel(cancelled)
        return requests

    def respond(self, call_id: int, response: bytes) -> None:
        """Send an answer; from any thread. Nothing happens if the caller has left."""
        self._calls.pop(call_id, None)
        self._front.respond(call_id, response)

    def fail(self, call_id: int, error: DigitsError) -> None:
        """Send a status; from any thread.

        Without the pushback that `status.abort` adds: the front refuses metadata that starts with
        "grpc-".
        """
        self._calls.pop(call_id, None)
        code = STATUS[type(error)]
        number: tuple[int, str] = code.value
        self._front.fail(call_id, number[0], str(error))
        self._metrics.count("Classify", code.name)


class _NativeCall(Request):
    __slots__ = ("_call_id", "_native")
    method = "Classify"

    def __init__(
        self, native: NativeFront, call_id: int, pixels: bytes | memoryview, caller: object
    ) -> None:
        super().__init__(pixels, caller=caller)
        self._native = native
        self._call_id = call_id

    def resolve(self, answer: Answer) -> None:
        version = answer.batch.model.version
        response = wire.encode_response(answer.digits, answer.probabilities, version)
        self._native.respond(self._call_id, response)

    def reject(self, error: DigitsError) -> None:
        self._native.fail(self._call_id, error)
