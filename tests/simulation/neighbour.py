"""A second model beside the digits that is slow, stuck or mixes rows: it harms only its callers.

Its time begins once all other bad luck is over, so that any call of the digits that is late is late
because of it.
"""

from contextlib import contextmanager
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from unittest.mock import patch

from serving.model.loaded import LoadedModel
from serving.model.settings import ModelSettings
from serving.server.self_test import SelfTest
from serving.tensors import Tensor, TensorSignature
from serving.versions.served import ModelVersions
from tests.simulation.apps import EventLoop
from tests.simulation.clients import INFER, UNARY, Polite

NAME = "neighbour"
KINDS = ("slow", "stuck", "mixes")
LAST_S = 45.0
"""How long it is called, and looked at."""
_CALLERS_S, _STUCK_S, _MAX_RUN_S, _LOOK_S = 8.0, 22.0, 2.0, 5.0
_HELD_UP_S = 0.25
"""How late a call of the digits may be, beside the server's own rounds."""


class _Engine:
    """Answers as the digits' do; rows that it mixes are wrong if calls share a run."""

    device, max_concurrent_runs = "cpu", None

    def __init__(self, neighbour, *, is_batchable):
        self._neighbour = neighbour
        images = Tensor("images", "UINT8", (-1, 100))
        rows = Tensor("probabilities", "FP32", (-1, 10))
        self.tensors = TensorSignature((images,), (rows,), is_batchable)

    def run(self, feeds):
        from tests.simulation.simulation import rows_of

        rows = [row.tobytes() for row in feeds["images"]]
        return [rows_of(rows, "1") + self._neighbour.take(rows)]

    def stoppable(self, *, is_alone=False):
        return self.run, lambda: None  # it does not end between operators


class _Looks(SelfTest):
    """The server's self-test, without samples."""

    async def _wrong_answer(self, route):
        return None


class _ServerLoop(EventLoop):
    """The event loop of the server's own tasks, which the owner of the models wakes up."""

    def _write_to_self(self):
        self._app.simulation.after(1e-6, self._wake)


class Neighbour:
    """The model, its callers, and a caller of the digits who must not notice them."""

    def __init__(self, simulation, health):
        """Serve it."""
        self.simulation, self.health, self.number = simulation, health, NAME
        self.random = Random(f"neighbour {simulation.seed}")
        self.kind = self.random.choice(KINDS)
        self.begin_s = float("inf")
        engine = _Engine(self, is_batchable=self.kind != "mixes")
        manifest = replace(simulation.manifest, name=NAME, version="1", signature=None)
        settings = ModelSettings(max_run_s=_MAX_RUN_S)
        model = LoadedModel(engine, manifest, "fp32", settings=settings)
        simulation.router.change(NAME, ModelVersions(NAME, {"1": model}, "1", {}, None))
        simulation.tell(f"{NAME} is {self.kind}")

    @property
    def is_stuck(self):
        return self.kind == "stuck" and self.simulation.now_s < self.begin_s + _STUCK_S

    def take(self, rows):
        """Let a run take its time; return by how much its answers are wrong."""
        simulation = self.simulation
        calls = {simulation.calls[row[:8]][1].number for row in rows}
        simulation.require(
            simulation.given_s is not None, f"a run of {NAME} holds up the callers of all"
        )
        mixed = self.kind == "mixes" and len(calls) > 1
        simulation.require(not mixed, f"calls {sorted(calls)} of a model that mixes share a run")
        left_s = self.begin_s + _STUCK_S - simulation.now_s
        simulation.spend(left_s if self.is_stuck else 1.0 if self.kind == "slow" else 0.02)
        return 1000.0 * mixed

    def begin(self):
        """Call it and the digits."""
        simulation = self.simulation
        self.begin_s, simulation.longest_s = simulation.now_s, 0.05  # freezes are over
        self.health.set_serving(True)
        loop = _ServerLoop(self)
        self._task = loop.create_task(_Looks(simulation.router, self.health, _LOOK_S).run())
        loop.turn()
        for at in range(4):
            simulation.after(at * _CALLERS_S, self._come)
        for at_s in range(int(LAST_S) - 2):
            simulation.after(at_s + 0.5, self._look)
        simulation.after(LAST_S - 1.5, self._end, loop)

    def _come(self):
        """Have callers come: connections may not grow old."""
        simulation = self.simulation
        for name in ("digits", NAME, NAME):
            caller = Polite(simulation, len(simulation.clients), self.random, is_quick=True)
            caller.model, caller.gives_up = name, False
            simulation.clients.append(caller)
            at_s = 1.0
            while at_s < _CALLERS_S - 1.0:
                simulation.after(at_s, self._call, caller)
                at_s += self.random.choice((0.01, 0.5, 2.0))
            simulation.after(_CALLERS_S, caller.leave, "close")

    def _call(self, caller):
        path = INFER if caller.model == NAME else UNARY
        timeout = self.random.choice((b"1S", b"3S", b"50S")) if caller.model == NAME else b"5S"
        call = caller.begin(path, 1, timeout)
        caller.flush()
        if call is not None and caller.model != NAME:
            bound_s = _HELD_UP_S + self.simulation.patience_s
            self.simulation.after(bound_s, self._check_served, call, bound_s)

    def _check_served(self, call, bound_s):
        is_served = call.outcome == "0"
        self.simulation.require(
            is_served, f"call {call.number} is held up by {NAME} for {bound_s:g} s"
        )

    def _look(self):
        """Check that health says which model is stuck, and that it is this one alone."""
        stuck, since_s = self.health.stuck_models, self.simulation.now_s - self.begin_s
        may = {NAME} if self.kind == "stuck" else set()
        self.simulation.require(stuck <= may, f"{sorted(stuck)} are NOT_SERVING beside {self.kind}")
        self.simulation.require(self.health.is_serving, "the server is NOT_SERVING, for one model")
        if since_s > _MAX_RUN_S + 3 * _LOOK_S and self.is_stuck:
            self.simulation.require(stuck, f"{NAME} is stuck for {since_s:g} s, and SERVING")
        if since_s > _STUCK_S + 3 * _LOOK_S:
            self.simulation.require(not stuck, f"{NAME} goes on, and is NOT_SERVING")

    def _end(self, loop):
        self._task.cancel()
        loop.turn()
        loop.close()


@contextmanager
def clocks(simulation):
    """Give the self-test simulated time."""
    with (
        patch("serving.server.self_test.time", SimpleNamespace(monotonic=lambda: simulation.now_s)),
        patch("serving.server.self_test.waited_for_cores_s", return_value=0.0),
    ):
        yield
