"""The native transport: HTTP/2 and gRPC in Rust, outside the GIL (the pygrpc-native package).

The hot methods come to one Python thread as lists of calls, which it queues and then runs itself:
no event loop, no task, no message object per call. Everything else goes to the grpcio server behind
a unix socket.
"""

import threading
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from typing import Any

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from serving.batcher import Batcher
from serving.errors import ConfigurationError, DigitsError
from serving.images import IMAGE_BYTES
from serving.metrics import Metrics
from serving.requests import Request
from serving.rpc.native_calls import NativeCall, OneImageCalls
from serving.rpc.polling import Polling, Receive
from serving.rpc.status import STATUS
from serving.rpc.turns import Turns, yield_core
from serving.rpc.unary import MAX_HEAD_BYTES, UnaryMethod

_MAX_EVENTS = 4096
"""The most calls taken from the front at once."""
_SHORT_WAIT_S = 0.02
"""The wait from which on a deadline may pass in the queue."""
_NUM_FIELDS = 5
"""Of an event without details: kind, call, method, message, caller."""
_HEAD = slice(-IMAGE_BYTES - MAX_HEAD_BYTES, -IMAGE_BYTES)
"""Of a message: all before its last image, or of a larger one more than any head has."""


class NativeFront:
    """Listens on a TCP port and answers the hot methods; forwards what else comes."""

    def __init__(
        self,
        batcher: Batcher,
        metrics: Metrics,
        methods: Sequence[UnaryMethod[Any]],
        address: str,
        *,
        reuse_port: bool,
        poll_s: float,
    ) -> None:
        """Bind; `start` begins to answer.

        Args:
            batcher: answers the requests.
            metrics: counts them.
            methods: the hot methods.
            address: "host:port" to bind; port 0 lets the kernel choose.
            reuse_port: whether other processes share the port.
            poll_s: the longest wait for calls awake, in seconds; see `Polling`.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        self.calls: dict[int, Request] = {}
        """The calls that have no outcome yet, and what answers them."""
        self._batcher = batcher
        self._metrics = metrics
        self._methods = methods
        self._polling = Polling(poll_s)
        try:
            self._front = NativeGrpcFront(
                address,
                [(method.path, False) for method in methods],
                io_threads=1,
                # Costs 5 to 10 % of the front's own rate (h2load, 8 x 8), and without it nobody
                # tells that a unary caller has left or its deadline has passed.
                call_details=True,
                reuse_port=reuse_port,
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
        turns = Turns()
        timeout_ms: int | None = None  # wait for calls
        while (events := self._receive(timeout_ms)) is not None:
            if events:
                turns.expect(len(events))
            group = self._sole_group(events)
            if group is not None and self._batcher.run_at_once(group):
                timeout_ms = None
                continue
            self._batcher.submit_all(self._requests(events) if group is None else self._kept(group))
            timeout_ms = 0 if self._batcher.help() else None
            yield_core()

    def _receive(self, timeout_ms: int | None) -> list[Any] | None:
        """Take all that has come: the end of a call may lie thousands of events behind it.

        With the deadlines only when calls wait for long: to read them costs a quarter of the rate.
        """
        is_patience_tried = self._batcher.expected_wait_s > _SHORT_WAIT_S
        front = self._front
        receive: Receive = partial(
            front.recv_batch_details if is_patience_tried else front.recv_batch, _MAX_EVENTS
        )
        events = self._polling.wait(receive) if timeout_ms is None else receive(timeout_ms)
        taken = events
        while events is not None and taken and len(taken) == _MAX_EVENTS:
            taken = receive(0)
            events += taken or []
        return events

    def _sole_group(self, events: list[Any]) -> OneImageCalls | None:
        """Make one group of all that came, if it is calls of one image each, of one method.

        Its calls are not kept in `calls`: run at once, nobody leaves before they are answered.
        """
        if not 0 < len(events) <= self._batcher.max_batch_size or len(events[0]) > _NUM_FIELDS:
            return None
        if self._batcher.num_waiting:
            return None
        kind, _, method_id, message, _ = events[0]
        if kind != EVENT_CALL or message[_HEAD] not in self._methods[method_id].heads:
            return None
        kinds, call_ids, method_ids, messages, _ = zip(*events, strict=True)
        method = self._methods[method_id]
        if (
            kinds.count(EVENT_CALL) < len(events)
            or method_ids.count(method_id) < len(events)
            or not {message[_HEAD] for message in messages} <= method.heads
        ):
            return None
        group = OneImageCalls(self, method, None)
        group.keys += call_ids
        group.images += [message[-IMAGE_BYTES:] for message in messages]
        group.seal()
        return group

    def _kept(self, group: OneImageCalls) -> list[Request]:
        """Keep the calls of a group that has to wait."""
        self.calls.update(dict.fromkeys(group.keys, group))
        return [group]

    def _requests(self, events: list[Any]) -> list[Request]:
        """Turn calls into requests; refuse the bad ones, forget those whose callers left."""
        requests: list[Request] = []
        groups: dict[Hashable, OneImageCalls] = {}
        # What one run takes together needs no turns. Grouped across callers, any more would wait
        # in a queue of its own, where each caller's later calls overtake its earlier ones.
        is_crowded = len(events) > self._batcher.max_batch_size or self._batcher.num_waiting > 0
        for kind, call_id, method_id, data, caller, *details in events:
            if kind != EVENT_CALL:
                self._cancel(call_id)
                continue
            method = self._methods[method_id]
            remaining_s = details[0][2] if details else None
            if remaining_s is not None or data[_HEAD] not in method.heads:
                if call := self._read(method, call_id, data, caller):
                    if remaining_s is not None:
                        call.expire_in(remaining_s)
                    requests.append(call)
                continue
            key = (method_id, caller) if is_crowded else method_id
            group = groups.get(key)
            if group is None:
                group = groups[key] = OneImageCalls(self, method, caller if is_crowded else None)
                requests.append(group)
            group.keys.append(call_id)
            group.images.append(data[-IMAGE_BYTES:])
            self.calls[call_id] = group
        for group in groups.values():
            group.seal()
        return requests

    def _read(
        self, method: UnaryMethod[Any], call_id: int, data: bytes, caller: Hashable
    ) -> NativeCall | None:
        """Make a request of one call, or refuse it."""
        try:
            question = method.read(data)
        except DigitsError as err:
            self.fail(call_id, method, err)
            return None
        call = self.calls[call_id] = NativeCall(self, method, call_id, question, caller)
        return call

    def _cancel(self, call_id: int) -> None:
        request = self.calls.pop(call_id, None)
        if isinstance(request, OneImageCalls):
            self._batcher.withdraw(request, call_id)
        elif request is not None:
            self._batcher.cancel(request)

    def respond(self, call_ids: Sequence[int], responses: Iterable[bytes]) -> None:
        """Send answers; from any thread. Nothing happens if a caller has left."""
        if self.calls:
            for call_id in call_ids:
                self.calls.pop(call_id, None)
        for _ in map(self._front.respond, call_ids, responses):
            pass

    def fail(self, call_id: int, method: UnaryMethod[Any], error: DigitsError) -> None:
        """Send a status; from any thread.

        Without the pushback that `status.abort` adds: the front refuses metadata that starts with
        "grpc-".
        """
        self.calls.pop(call_id, None)
        code = STATUS[type(error)]
        number: tuple[int, str] = code.value
        self._front.fail(call_id, number[0], str(error))
        self._metrics.count(method.name, code.name)
