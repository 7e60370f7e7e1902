"""A whole server with its clients, its models and their bad luck, in one thread and from one seed.

The loop is the real one. It waits in the simulation's selector, and reads the simulation's clock:
there the rest of the simulation goes on. So events come between any two steps that look at the
clock, as those of other threads do.
"""

import heapq
import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from itertools import count
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np

from digit_classifier.methods import methods as digits_methods
from serving.batching.batcher import Batcher
from serving.config import BatchingConfig, ServerConfig
from serving.errors import ModelError, Unavailable
from serving.http2.limits import Limits as Http2Limits
from serving.model.loaded import LoadedModel
from serving.model.manifest import Manifest
from serving.oip.infer import Infer
from serving.oip.queries import Queries
from serving.protocols.health import Health
from serving.protocols.method import BatchedStream, BatchedUnary, Method, Unary
from serving.router import Router
from serving.system.host import Host
from serving.tensors import Signature
from serving.transports.h2_server import H2Server
from serving.transports.port_limits import PortLimits
from serving.versions.served import Canary, ModelVersions
from tests.simulation import handled, invariants, neighbour
from tests.simulation.apps import App, clocks
from tests.simulation.attackers import Hostile
from tests.simulation.clients import INFER, PARTS, SLOW, STREAM, UNARY, Call, Polite
from tests.simulation.handled import MAX_HANDLER_S, NAME
from tests.simulation.network import Listener, Selector, bells
from tests.simulation.web import Browser, open_web

IMAGE_BYTES = 100
SIGNATURE = Signature((10, 10), 10)
BEGIN_S = 1000.0
CALM_S, PROBE_S, DRAIN_S, DRAIN_LIMIT_S = 30.0, 90.0, 98.0, 30.0
"""When faults end, when the server has to be as at the start, and when and how long it drains."""
MOST_TURNS = 30_000
"""Ten times those of a usual simulation."""
CALLERS = {"caller": Polite, "attacker": Hostile, "browser": Browser}


class Model:
    """An engine whose answers are the first bytes of each image, and its version."""

    device = "cpu"
    tensors = SIGNATURE.tensors

    def __init__(self, simulation, version, runners):
        self.simulation, self.version, self.max_concurrent_runs = simulation, version, runners

    def run(self, feeds):
        images, simulation, number = feeds["images"], self.simulation, len(feeds["images"])
        rows = [row.tobytes() for row in images]
        simulation.check_run(rows)
        simulation.spend(simulation.run_s * (1 + number / 16) * simulation.random.random())
        if any(row[8] == 0xFF for row in rows):
            raise RuntimeError("poison")
        if simulation.model_fault and simulation.random.random() < 0.7:
            if simulation.model_fault == "rubbish" and number > 1:
                return [np.zeros((number - 1, 10), np.float32)]
            raise ModelError() if simulation.random.random() < 0.5 else MemoryError()
        return [rows_of(rows, self.version)]

    def stoppable(self, *, is_alone=False):
        return self.run, lambda: None


def rows_of(images, version):
    """The answer of a version."""
    pixels = np.frombuffer(b"".join(image[:10] for image in images), np.uint8)
    return pixels.reshape(-1, 10).astype(np.float32) + 256 * int(version)


class Runners:
    """Does long work in simulated time: beside the loop, and at once as far as code can tell."""

    def __init__(self, simulation, number):
        self._simulation = simulation

    def put(self, work, post):
        simulation = self._simulation
        delay_s = simulation.random.choice((1e-6, 1e-5, 1e-3)) * simulation.random.random()
        simulation.after(delay_s, self._work, work, post, simulation.turn_s)

    def _work(self, work, post, given_s):
        simulation = self._simulation
        simulation.given_s = given_s
        take = work()
        simulation.given_s = None

        def finish():
            late_s = simulation.now_s - max(end_s, simulation.thawed_s)
            simulation.require(
                late_s < simulation.patience_s, f"a result was left lying for {late_s:g} s"
            )
            take()

        end_s = simulation.now_s + simulation.beside_s
        simulation.after(simulation.beside_s, post, finish)

    def close(self): ...


_MANIFEST = Manifest(
    name="digits", version="1", test_accuracy=None, digests={}, golden_probabilities={},
    golden_images=np.empty((0, 0), np.uint8),
)  # fmt: skip


class Simulation:
    """The whole simulation of a seed; `run` returns its failure, or None."""

    manifest = _MANIFEST

    def __init__(self, seed, kept=None, **fixed):
        """Draw a simulation, of which some is `fixed` and of whose plan some may be `kept`."""
        self.seed = seed
        self.random = random = Random(f"digits {seed}")
        self.now_s, self.turn_s, self.beside_s = BEGIN_S, BEGIN_S, 0.0
        self.thawed_s = BEGIN_S
        """When the server last stood still."""
        self.busy_s = 0.0
        """Seconds of this turn that went to runs and standstills."""
        self.is_stirred = False
        """Whether a socket may be ready that was not."""
        self.given_s: float | None = None
        """When the run in progress was handed to a runner; None for the loop's own."""
        self.longest_s = self.patience_s = 0.05
        """The longest turn so far; events may be late by a few of them."""
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order, self._numbers = count(), count(1)
        self._is_inside = False
        self.story: list[str] = []
        self.failure = ""
        self.num_sockets = self.num_turns = 0
        self.is_file_table_full = self.is_over = self.is_calm = False
        self.model_fault = ""
        self.usual_run_s = self.run_s = random.choice((1e-4, 1e-3, 0.02))
        self.poison_share = random.choice((0.0, 0.05))
        self.calls: dict[bytes, tuple[Polite, Call]] = {}
        """By the first bytes of their images."""
        self.batchers: dict[Batcher, None] = {}
        """All that there have been."""
        self.clients: list[Polite | Hostile | Browser] = []
        self.apps: list[App] = []
        self.draining_s = self.refusing_s = self.drained_s = float("inf")
        """When it was told to drain, when it does, and when it has."""
        self.failing: list[tuple[float, float]] = []
        """When the model has failed."""
        self.listener, self.web = Listener(self), Listener(self)
        host = Host(
            clock=self.clock, selector=lambda: Selector(self, random),  # type: ignore[return-value]
            listen=lambda host, port: self.listener, socketpair=lambda: bells(self), random=random,  # type: ignore[return-value]
            runners=lambda number: Runners(self, number), checks_random=Random(seed),
        )  # fmt: skip
        capacity = random.choice((16, 64, 1000))
        self.batching = BatchingConfig(
            max_batch_size=random.choice((4, 16, 64)), queue_capacity=capacity,
            max_request_rows=random.choice((4, 16)),
            max_queue_delay_s=random.choice((0, 0, 0.004, 0.3)), max_handler_s=MAX_HANDLER_S,
            handler_processes=2,
        )  # fmt: skip
        self.limits = PortLimits(
            max_message_bytes=5_000, max_connections=random.choice((6, 12)), message_s=5.0,
            max_buffered_bytes=random.choice((8_000, 20_000)), max_unread_bytes=5_000, idle_s=20.0,
            max_stream_unread_bytes=random.choice((100, 1_000)), handshake_s=2.0,
            age_s=random.choice((0.0, 10.0)),
            http2=Http2Limits(max_streams=random.choice((5, 40)),
                              stream_window_bytes=random.choice((2_000, 1 << 20)),
                              connection_window_bytes=random.choice((1 << 17, 1 << 30))),
        )  # fmt: skip
        self.inline_rows = random.choice((0, 1, 64))
        self.runners = random.choice((1, 2))
        self.__dict__.update(fixed)
        self.router = Router(self.batching, host=host)
        self.states: list[tuple[float, ModelVersions | None]] = []
        self.reload(["2", "1"], "1", random.choice((0.0, 0.3, 1.0)))
        health = Health(models=lambda: self.router.routes)
        self.queries = Queries(self.router, health)
        infer, stream = Infer(self.router), Infer(self.router, is_stream=True)
        self.methods: list[Method] = [
            *digits_methods(self.router, "h2"), *health.methods(),
            BatchedUnary(path=INFER, name="ModelInfer", read=infer.read, known=infer.known),
            BatchedStream(path=PARTS, name="ModelStreamInfer", read=stream.read,
                          known=stream.known, error_message=stream.error_message),
            Unary(path=SLOW, name="Slow", answer=lambda message: b"", is_slow=True),
        ]  # fmt: skip
        config = ServerConfig(port=0)
        self.server = H2Server(self.router, self.methods, config, self.limits, host)
        self.plan = plan(random, kept) | more(seed, kept)
        is_alone = Random(f"alone {seed}").random() < 0.75 or (kept is not None and 200 not in kept)
        self.neighbour = None if is_alone else neighbour.Neighbour(self, health)
        if self.neighbour is not None:
            self.plan[200] = (PROBE_S, "neighbour")
        bare = Random(f"bare {seed}").random() < 0.75 or (kept is not None and 300 not in kept)
        self.handled = None if bare else handled.Handled(self)
        if self.handled is not None:
            self.plan[300] = (self.handled.random.random(), NAME)

    # Time

    def clock(self):
        if self._is_inside:
            return self.now_s + self.beside_s
        self.now_s += 1e-6
        if self._events and self._events[0][0] <= self.now_s:
            self._run_until(self.now_s)
        return self.now_s

    def after(self, seconds, action, *args):
        heapq.heappush(self._events, (self.now_s + seconds, next(self._order), action, args))

    def spend(self, seconds):
        """Let time pass: for all, or only for the runner whose work this is."""
        if self._is_inside:
            self.beside_s += seconds
        else:
            self.busy_s += seconds
            self._run_until(self.now_s + seconds)

    def _run_until(self, end_s):
        while self._events and self._events[0][0] <= end_s:
            at_s, _, action, args = heapq.heappop(self._events)
            self.now_s, self._is_inside = max(self.now_s, at_s), True
            action(*args)
            self._is_inside, self.beside_s = False, 0.0
        self.now_s = max(self.now_s, end_s)

    def sleep(self, timeout_s, is_ready):
        """Let the loop wait, and begin its next turn."""
        self.end_turn()
        end_s = self.now_s + timeout_s
        if timeout_s:
            invariants.check_sleep(self, end_s)
        self.now_s += 1e-5
        self.is_stirred = True
        while not (self.is_stirred and is_ready()):
            self.is_stirred = False
            if self.failure or self.is_over or self._events[0][0] > end_s:
                self.now_s = max(self.now_s, end_s)
                break
            self._run_until(self._events[0][0])
        self.turn_s, self.busy_s = self.now_s, 0.0

    def end_turn(self):
        self.longest_s = max(self.longest_s, self.now_s - self.turn_s)
        self.patience_s = 0.05 + 4 * self.longest_s

    # Events

    def count(self):
        return next(self._numbers)

    def image(self):
        return self.count().to_bytes(8, "big") + b"\0" + bytes(range(IMAGE_BYTES - 9))

    def tell(self, text):
        self.story.append(f"{self.now_s - BEGIN_S:10.6f} s: {text}")

    def fail(self, text):
        if not self.failure:
            self.failure = text
            self.tell(f"WRONG: {text}")

    def require(self, holds, text):
        if not holds:
            self.fail(text)

    def reload(self, versions, default="", share=0.0):
        """Serve other versions; none unloads the model."""
        state = None
        if versions:
            manifest = replace(self.manifest, signature=SIGNATURE)
            old = self.states[-1][1] if self.states else None
            models = {} if old is None else old.versions
            made = {
                v: models.get(v) or LoadedModel(
                    Model(self, v, self.runners), replace(manifest, version=v), "fp32",
                    self.inline_rows, 1 << 20,
                )
                for v in versions
            }  # fmt: skip
            default = default or versions[0]
            canary = Canary(versions[0], share) if share else None
            state = ModelVersions("digits", made, default, {"stable": default}, canary)
        self.states.append((self.now_s, state))
        self.tell(f"the server serves {state or 'nothing'}")
        self.router.change("digits", state)

    def act(self, kind, random):
        """Do a step of the plan."""
        if kind in CALLERS:
            client = CALLERS[kind](self, len(self.clients), random)
            self.clients.append(client)
            steps = ("calls",) * 6 + ("widen", "pause", "cancel")
            at_s = self.let_act(client, steps, random)
            if isinstance(client, Polite):
                client.tell(f"comes: windows of {client.engine.limits.stream_window_bytes}")
                client.is_slow_reader = random.random() < 0.2
            if random.random() < 0.6:
                self.after(at_s * random.random() * 2, client.leave,
                           random.choice(("close", "reset", "vanish")))  # fmt: skip
        elif kind == "app":
            app = App(self, random)
            self.apps.append(app)
            self.let_act(app, ("calls",) * 5 + ("cancel", "reset", "vanish"), random)
        elif kind == "neighbour":
            self.neighbour.begin()
        elif kind == NAME:
            self.handled.begin()
        elif kind == "reload":
            versions = sorted(random.sample("123456789", random.choice((1, 2, 3))), reverse=True)
            share = random.choice((0.0, 0.3, 1.0))
            self.reload([] if random.random() < 0.1 else versions, random.choice(versions), share)
        elif kind == "model":
            fault = random.choice(("fails", "rubbish", "", ""))
            self.model_fault, self.run_s = fault, random.choice((self.run_s, 0.1, 0.5))
            self.tell(f"the model {fault or 'works'}, and takes {self.run_s:g} s")
            end_s = random.choice((0.01, 1.0))
            self.failing += [(self.now_s, self.now_s + end_s)] if fault else []
            self.after(end_s, self.heal)
        elif kind == "freeze":
            seconds = random.choice((0.05, 1.0, 7.0))
            self.tell(f"the server stands still for {seconds:g} s")
            self.now_s += seconds
            self.busy_s += seconds
            self.thawed_s = self.now_s
        elif kind == "files":
            self.tell("the table of files is full")
            self.is_file_table_full = True
            self.after(random.choice((0.5, 5.0)), setattr, self, "is_file_table_full", False)

    def let_act(self, client, steps, random):
        """Have a caller do some steps; return when it has done them."""
        at_s = 0.0
        for _ in range(random.choice((1, 4, 10))):
            self.after(at_s, client.act, random.choice(steps))
            at_s += random.choice((0.001, 0.1, 3.0)) * random.random()
        return at_s

    def heal(self):
        self.model_fault, self.run_s = "", self.usual_run_s

    def check_run(self, images):
        """Find those that should not be run: nobody wants the answer any more."""
        since_s = self.turn_s if self.given_s is None else self.given_s
        for image in images:
            if image[:8] in self.calls:
                invariants.check_run(self, *self.calls[image[:8]], since_s)

    def states_since(self, since_s):
        """Return the versions served from a time on."""
        after = [at_s for at_s, _ in self.states[1:]] + [float("inf")]
        return [s for (_, s), end_s in zip(self.states, after, strict=True) if end_s >= since_s]

    def served_since(self, since_s, label=""):
        """Return the versions that may have answered calls for a label since then."""
        states = self.states_since(since_s)
        served = {invariants.find(state, label) for state in states}
        if not label:
            served |= {state.canary.version for state in states if state and state.canary}
        return served

    def has_failed_since(self, since_s):
        """Return whether the model may have failed a run since then."""
        return any(end_s + 1 >= since_s for _, end_s in self.failing)

    def judge(self, client, call):
        invariants.judge(self, client, call)

    def judge_answer(self, call):
        invariants.judge_answer(self, call)

    # From the start to the end

    def run(self):
        """Let it all happen; return the first thing that is wrong, if any."""
        polls = self.random.random() < 0.2
        with (
            _errors(self), clocks(self), neighbour.clocks(self),
            patch("serving.transports.h2_server.may_poll", return_value=polls),
        ):  # fmt: skip
            self.server.open()
            self.loop = self.server.loop
            self.loop.add(open_web(self, self.queries))
            for number, (at_s, kind) in self.plan.items():
                self.after(at_s, self.act, kind, Random(f"{self.seed} {number}"))
            self.after(CALM_S, self.calm)
            more_s = 0.0 if self.neighbour is None else neighbour.LAST_S
            self.after(PROBE_S + more_s, self.probe)
            self.after(DRAIN_S + more_s, self.drain)
            while not self.failure and not self.is_over:
                try:
                    self.num_turns += 1
                    self.loop.turn(self.loop.selector.select(self.loop.timeout_s()))
                except Exception as err:
                    self.fail(f"a turn failed: {type(err).__name__}: {err}")
                invariants.check(self)
                self.require(self.num_turns < MOST_TURNS, "the loop never sleeps")
            for app in self.apps:
                app.close()
            if not self.failure:
                self.loop._begin_closing()
                self.loop._run()
                self._run_until(self.now_s + 5.0)
                self.require(not self.num_sockets, f"{self.num_sockets} sockets are open")
                invariants.check_parted(self)
        return self.failure

    def calm(self):
        """End all faults; polite callers leave once they have their answers."""
        self.tell("all is calm from here on")
        self.heal()
        self.is_file_table_full, self.poison_share, self.is_calm = False, 0.0, True
        self.reload(["9"])
        for app in self.apps:
            app.keep_calling()
        for client in self.clients:
            client.link.calm()
            if isinstance(client, Browser):
                self.after(19.9, client.check_answered)
                self.after(20.0, client.leave, "close")
            if isinstance(client, Polite) and not client.is_over:
                client.is_leaving = True
                client.is_slow_reader = False
                client.engine.widen(1 << 20)
                client.read_on()
                self.after(20.0, client.leave, "close")
                self.after(19.9, invariants.check_answered, self, client)

    def probe(self):
        """Check that nothing is left, and that a new caller is served as the first one was."""
        invariants.check_start(self)
        if not self.apps and all(isinstance(each, Polite) for each in self.clients):
            invariants.check_counts(self)
        probe = Polite(self, len(self.clients), Random(f"probe {self.seed}"), is_quick=True)
        self.clients.append(probe)
        probe.gives_up = False
        calls: list[Call | None] = []
        for at_s in (1.0, 2.0):
            for path in (UNARY, UNARY, SLOW):
                self.after(at_s, self.probe_by, probe, path, calls)
        self.after(3.0, self.probe_by, probe, STREAM, calls)
        self.after(6.0, invariants.check_probe, self, calls)
        self.after(7.0, probe.leave, "close")
        browser = Browser(self, len(self.clients), Random(f"browser {self.seed}"))
        self.clients.append(browser)
        self.after(1.0, browser.probe)
        self.after(6.0, browser.check_answered)
        self.after(7.0, browser.leave, "close")

    def probe_by(self, probe, path, calls):
        calls.append(probe.begin(path, 1, b"5S"))
        probe.flush()

    def drain(self):
        """Drain under load, and stop once that is over."""
        for _ in range(3):
            random = Random(f"{self.seed} {len(self.clients)}")
            client = Polite(self, len(self.clients), random, is_quick=True)
            client.engine.widen(1 << 20)
            client.link.latency_s = random.choice((1e-4, 0.05))
            self.clients.append(client)
            for at in range(0, 25, 2):
                self.after(at * 0.05, client.act, "calls")
            browser = Browser(self, len(self.clients), Random(f"{self.seed} {len(self.clients)}"))
            self.clients.append(browser)
            for at in range(0, 25, 2):
                self.after(at * 0.05, browser.act, "calls")
        self.after(1.0, self.begin_drain)

    def begin_drain(self):
        self.tell("the server drains")
        self.draining_s = self.now_s
        self.num_to_answer = self.router.num_waiting
        self.loop.drain(Unavailable("the server is shutting down"))
        self.after(0.01, self.look_at_drain)

    def look_at_drain(self):
        if self.loop.drained.is_set() or self.now_s > self.draining_s + DRAIN_LIMIT_S:
            self.drained_s = self.now_s
            self.tell("the drain is over, the server stops")
            invariants.check_drained(self)
            self.is_over = True
        else:
            self.after(0.01, self.look_at_drain)

    @property
    def digest(self):
        """The digest of a simulation: its story and all bytes that arrived."""
        # HTTP's answers have a date.
        told = [each for each in self.clients if not isinstance(each, Browser)]
        crcs = [(each.link.up.crc, each.link.down.crc) for each in told]
        return blake2b(repr((self.story, crcs, self.now_s)).encode(), digest_size=8).hexdigest()


def more(seed, kept):
    """Draw the applications' steps, from 100 on: apart, so that the others do not change."""
    random, actions = Random(f"more {seed}"), {}
    for number in range(100, 100 + random.choice((0, 0, 1, 3))):
        actions[number] = (
            random.choice((0.01, 1.0, CALM_S)) * random.random(),
            random.choice(("app", "browser")),
        )
    return {number: actions[number] for number in actions if kept is None or number in kept}


def plan(random, kept):
    """Draw the events and their times, by number: all of them, or those to keep."""
    kinds = ["caller"] * 8 + ["attacker"] * 3 + ["reload", "reload", "model", "freeze", "files"]
    actions = {}
    for number in range(random.choice((3, 6, 16))):
        near_s = random.choice((0.01, 1.0, CALM_S))
        actions[number] = near_s * random.random(), random.choice(kinds)
    return {number: actions[number] for number in actions if kept is None or number in kept}


@contextmanager
def _errors(simulation):
    """Have errors that the server logs fail the simulation, but those of its model."""
    log = logging.getLogger("serving")

    class Handler(logging.Handler):
        def emit(self, record):
            text = record.getMessage()
            starts = (
                "a batch of",
                f"model {neighbour.NAME} is NOT_SERVING",
                f"model {NAME} version 1",
            )
            is_expected = text.startswith(starts)
            if record.levelno >= logging.ERROR and not is_expected:
                error = record.exc_info[1] if record.exc_info else ""
                simulation.fail(f"logged: {text}: {error!r}")

    handler, before = Handler(), log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before
