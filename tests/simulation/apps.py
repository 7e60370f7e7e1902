"""Services of the simulation that call by an `AsyncClient`, on event loops that run in its time."""

import asyncio
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, patch

import numpy as np

from digit_classifier.predictions import Predictions
from digit_classifier.remote import AsyncRemoteDigits
from serving.client.client import AsyncClient
from serving.errors import (
    DeadlineExceeded,
    ModelError,
    ModelNotFound,
    Overloaded,
    ServingError,
    Unavailable,
)
from tests.simulation.clients import UNLIMITED
from tests.simulation.network import Link

_MOST_ROUNDS = 10_000


class Wire(asyncio.Transport):
    """A client's socket."""

    def __init__(self, loop, link, protocol):
        super().__init__()
        self._loop, self.link, self._protocol = loop, link, protocol
        self._out = b""
        self.is_open = True
        link.resume = self._push

    def write(self, data):
        self._out += bytes(data)
        self._push()

    def _push(self):
        try:
            while self._out and self.is_open:
                self._out = self._out[self.link.up.push(self._out) :]
        except BlockingIOError:
            pass

    def arrived(self):
        data = self.link.down.pop(UNLIMITED)
        if self.is_open:
            if data:
                self._protocol.data_received(data)
            if self.link.down.is_ended:
                self._lose(None)
            self._loop.turn()

    def abort(self):
        self._loop.call_soon(self._lose, None)

    def reset(self):
        """Lose the connection, as both sides see."""
        self.link.reset()
        self._lose(ConnectionResetError(104, "Connection reset by peer"))
        self._loop.turn()

    def _lose(self, error):
        if self.is_open:
            self.is_open = False
            self.link.up.shut()
            self._protocol.connection_lost(error)


class EventLoop(asyncio.BaseEventLoop):
    """asyncio's own, in the simulation's time and on its network."""

    def __init__(self, app):
        super().__init__()
        self._app = app
        self._selector = self
        self._wakes_s = float("inf")
        self.set_exception_handler(
            lambda _, context: app.simulation.fail(f"in a client: {context}")
        )

    def time(self):
        return float(self._app.simulation.now_s)

    def select(self, timeout_s):
        return []

    def _process_events(self, event_list): ...

    def _write_to_self(self): ...

    async def create_connection(self, factory, *args, **kwargs):  # type: ignore[override]
        simulation, wire = self._app.simulation, None
        link = Link(simulation, self._app.random, "10.0.1.1", lambda: wire and wire.arrived())
        if simulation.is_calm:
            link.calm()
        await asyncio.sleep(2 * link.latency_s)
        if simulation.listener.is_closed:
            raise ConnectionRefusedError(111, "Connection refused")
        protocol = factory()
        wire = Wire(self, link, protocol)
        self._app.wires.append(wire)
        simulation.listener.connect(link)
        protocol.connection_made(wire)
        return wire, protocol

    def turn(self):
        """Run the ready tasks, and return for the later ones."""
        simulation = self._app.simulation
        with self.running():
            num_rounds = 0
            while self._ready or (self._scheduled and self._scheduled[0].when() <= self.time()):  # type: ignore[attr-defined]
                self._run_once()  # type: ignore[attr-defined]
                num_rounds += 1
                if num_rounds > _MOST_ROUNDS:
                    simulation.fail(f"the loop of app {self._app.number} never sleeps")
                    return
        if self._scheduled and (next_s := self._scheduled[0].when()) < self._wakes_s:  # type: ignore[attr-defined]
            self._wakes_s = next_s
            simulation.after(next_s - simulation.now_s, self._wake)

    def _wake(self):
        self._wakes_s = float("inf")
        self.turn()

    @contextmanager
    def running(self):
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(before)


class App:
    """Keeps calling; whatever happens to its connections, it gets each answer within its time."""

    def __init__(self, simulation, random):
        self.simulation, self.random = simulation, random
        self.number = len(simulation.apps)
        self.loop = EventLoop(self)
        self.wires: list[Wire] = []
        self.tasks: dict[asyncio.Task[None], None] = {}
        self.was_answered = False
        """Whether the call that ended last was."""
        self.timeout_s = random.choice((0.02, 1.0, 20.0))
        self.client = client = AsyncClient(
            "10.0.0.1:50051", timeout_s=self.timeout_s, transport="h2",
            attempt_timeout_s=random.choice((None, None, 0.5)),
        )  # fmt: skip
        self.classifier = AsyncRemoteDigits(client)

    def act(self, kind):
        """Begin calls, cancel some, or lose the connection."""
        if kind == "calls":
            for _ in range(self.random.choice((1, 5, 20))):
                self.begin(self.random.choice((1, 1, 3, 40)))
        elif kind == "call":
            self.begin(1)
        elif kind == "cancel":
            for task in list(self.tasks):
                if self.random.random() < 0.5:
                    task.cancel()
        else:
            for wire in [each for each in self.wires if each.is_open]:
                self.simulation.tell(f"app {self.number} loses its connection: {kind}")
                wire.link.vanish() if kind == "vanish" else wire.reset()
        self.loop.turn()

    def keep_calling(self):
        """Call each second, now that all is calm: whatever came before, it is answered soon."""
        for at_s in range(50):
            self.simulation.after(at_s, self.act, "call")
        self.simulation.after(49.9, self._check_served)
        self.simulation.after(50.0, self.close)

    def _check_served(self):
        is_served = self.was_answered or self.timeout_s < 1.0  # the network alone may take as long
        self.simulation.require(is_served, f"app {self.number} is not served any more")

    def begin(self, number):
        task = self.loop.create_task(self._call(self.simulation.count(), number))
        self.tasks[task] = None
        task.add_done_callback(lambda ended: self.tasks.pop(ended, None))
        return task

    async def _call(self, name, number):
        simulation, sent_s, knew = self.simulation, self.simulation.now_s, self.client._has_answered
        images = [simulation.image() for _ in range(number)]
        pixels = np.frombuffer(b"".join(images), np.uint8).reshape(number, 10, 10)
        simulation.tell(f"app {self.number} begins call {name}: {number} images")
        try:
            outcome: Predictions | ServingError = await self.classifier.classify(pixels)
        except ServingError as err:
            outcome = err
        except asyncio.CancelledError:
            simulation.tell(f"app {self.number} gives up call {name}")
            raise
        except Exception as err:
            simulation.fail(f"app {self.number}'s call {name} raises {err!r}")
            return
        self.was_answered = isinstance(outcome, Predictions)
        text = "is answered" if isinstance(outcome, Predictions) else f"fails: {outcome}"
        simulation.tell(f"app {self.number}'s call {name} {text}")
        self._judge(f"app {self.number}'s call {name}", images, sent_s, knew, outcome)

    def _judge(self, name, images, sent_s, knew, outcome):
        """Check that a call ended in its time, and as it may."""
        simulation = self.simulation
        took_s = simulation.now_s - sent_s
        late_s = simulation.now_s - max(sent_s + self.timeout_s, simulation.thawed_s)
        simulation.require(late_s < 0.05, f"{name} took {took_s:g} s")
        if isinstance(outcome, Predictions):
            served = simulation.served_since(sent_s)
            versions = (outcome.probabilities[:, 0] // 256).astype(int).astype(str).tolist()
            simulation.require(
                served >= {*versions, outcome.model_version}, f"{name}: of {versions}"
            )
            rows = np.frombuffer(b"".join(each[:10] for each in images), np.uint8).reshape(-1, 10)
            is_right = (outcome.probabilities % 256 == rows).all()
            simulation.require(
                is_right and len(outcome) == len(images), f"{name} has a wrong answer"
            )
        elif isinstance(outcome, DeadlineExceeded):
            is_slow = took_s > simulation.limits.message_s or self.client._budget.is_spent
            is_late = took_s >= self.timeout_s - 1e-3
            simulation.require(is_late or is_slow, f"{name} is said to be late after {took_s:g} s")
        elif isinstance(outcome, Unavailable):
            until_s = self.timeout_s if knew else min(5.0, self.timeout_s)
            is_spent = self.client._budget.is_spent
            simulation.require(
                is_spent or took_s >= until_s - 0.76, f"{name} is given up after {took_s:g} s"
            )
        elif isinstance(outcome, ModelError):
            simulation.require(
                simulation.has_failed_since(sent_s), f"{name} fails, but its model does not"
            )
        elif isinstance(outcome, ModelNotFound):
            simulation.require(
                None in simulation.states_since(sent_s), f"{name} finds no model, but there is one"
            )
        else:
            simulation.require(isinstance(outcome, Overloaded), f"{name} ends with {outcome!r}")

    def close(self):
        """End, and see that nothing is left."""
        if self.loop.is_closed():
            return
        for task in list(self.tasks):
            task.cancel()
        self.loop.turn()
        channel: Any = self.client._transport
        kept = (
            [each for wire in channel._connections for each in wire.session.calls]
            if channel
            else []
        )
        self.simulation.require(
            not kept, f"app {self.number} keeps {len(kept)} calls that have ended"
        )
        self.loop.create_task(self.client.close())
        self.loop.turn()
        self.simulation.require(not self.tasks, f"app {self.number} has calls after its end")
        is_quiet = all(handle.cancelled() for handle in self.loop._scheduled)  # type: ignore[attr-defined]
        self.simulation.require(is_quiet, f"app {self.number} has timers after its end")
        self.simulation.require(
            not any(each.is_open for each in self.wires), f"app {self.number} keeps connections"
        )
        self.loop.close()


@contextmanager
def clocks(simulation):
    """Give clients the simulation's time and chance."""
    time = SimpleNamespace(monotonic=lambda: simulation.now_s)
    with (
        patch("serving.client.h2.session.time", time),
        patch("serving.client.retries.time", time),
        # Whether a server speaks TLS is found out on a thread and a socket of the real world.
        patch("serving.client.client.AsyncClient._blocking", AsyncMock(return_value=None)),
        patch("serving.client.retries.random", Random(f"backoff {simulation.seed}")),
        patch("digit_classifier.remote.time", time),
        patch("digit_classifier.remote._are_distributions", return_value=True),  # see `rows_of`
    ):
        yield
