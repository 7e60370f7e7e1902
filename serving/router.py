"""The models of a server by their names."""

import threading
from collections.abc import Mapping
from functools import partial

from serving.batching.batcher import CHANGED, Batcher
from serving.batching.execution import Model
from serving.batching.group import Owner
from serving.batching.route import Route
from serving.catalog.versions import ModelVersions
from serving.config import BatchingConfig
from serving.errors import DigitsError, ModelNotFound
from serving.model.loaded_model import LoadedModel
from serving.system.cores import usable_cores
from serving.system.host import Host
from serving.telemetry.metrics import Metrics

_MAX_SHOWN = 80
"""Names from callers are cut to this length in errors."""


class Router:
    """The models of a server; `change` may be called from any thread, and the rest by the owner."""

    def __init__(
        self, batching: BatchingConfig | None = None, num_processes: int = 1,
        host: Host | None = None,
    ) -> None:  # fmt: skip
        """Start without a model.

        Args:
            batching: sizes and limits, of each model.
            num_processes: how many servers share this machine's cores.
            host: clock, network and random numbers.
        """
        self.host = host or Host()
        """Clock, network and random numbers."""
        self.batching = batching or BatchingConfig()
        self.metrics = Metrics()
        self.routes: Mapping[str, Route] = {}
        """The models in service by name; replaced as a whole."""
        self.batchers: tuple[Batcher, ...] = ()
        """Of all versions, including those that only finish accepted calls."""
        self._num_processes = num_processes
        self._lock = threading.Lock()
        """Held while `routes` and `batchers` are replaced."""
        self.owner: Owner | None = None
        """The thread that the batchers belong to, once `attach` was called."""

    def attach(self, owner: Owner) -> None:
        """Set the thread that the batchers belong to."""
        self.owner = owner
        for batcher in self.batchers:
            batcher.attach(owner)

    def change(self, name: str, versions: ModelVersions | None) -> None:
        """Serve these versions of a model from now on; None: none."""
        with self._lock:
            before = self.classifier
            routes = dict(self.routes)
            route = routes.get(name)
            if route is not None and (
                versions is None or _facts(versions.default) != _facts(route.model)
            ):
                route.end()
                del routes[name]
            if versions is not None and name in routes:
                routes[name].serve(versions)
            elif versions is not None:
                routes[name] = Route(
                    name, versions, self.batching, self.host.random,
                    partial(self._new_batcher, name), partial(self._gone, name),
                )  # fmt: skip
            self.routes = routes
            is_other = self.classifier is not before
        if self.owner is not None and (is_other or name not in routes):
            self.owner.post(self.owner.forget_layouts)  # some are for models that are gone

    def _new_batcher(self, name: str, model: LoadedModel) -> Batcher:
        cores = model.engine.max_concurrent_runs or max(1, usable_cores() // self._num_processes)
        runners = self.host.runners
        batcher = Batcher(model, self.batching, self.metrics, cores, name, runners)
        if self.owner is not None:
            batcher.attach(self.owner)
        self.batchers = (*self.batchers, batcher)
        return batcher

    def prune(self) -> None:
        """Drop the batchers of versions that are gone and have answered all they accepted."""
        with self._lock:
            serving = {each for route in self.routes.values() for each in route.batchers.values()}
            kept = tuple(each for each in self.batchers if each in serving or each.is_busy)
            gone, self.batchers = set(self.batchers) - set(kept), kept
        for batcher in gone:
            batcher.close()

    def find(self, name: str) -> Route:
        """Return a model.

        Raises:
            ModelNotFound: there is none of this name.
        """
        route = self.routes.get(name)
        if route is None:
            there = ", ".join(map(repr, list(self.routes)[:8])) or "none"
            shown = repr(name) if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]!r}..."
            raise ModelNotFound(f"no model {shown}: this server serves {there}")
        return route

    @property
    def classifier(self) -> Route | None:
        """The model of digits.v1: the one called digits, or the only one that classifies images."""
        able = [route for route in self.routes.values() if route.signature is not None]
        named = [route for route in able if route.name == "digits"]
        return named[0] if named else able[0] if len(able) == 1 else None

    @property
    def num_waiting(self) -> int:
        """The rows that wait for a run; a moment old on other threads."""
        return sum(batcher.num_waiting for batcher in self.batchers)

    @property
    def is_busy(self) -> bool:
        """Whether calls wait or run."""
        return any(batcher.is_busy for batcher in self.batchers)

    def _gone(self, name: str) -> DigitsError:
        """Return why a call that was recognised is not run: its model is gone, or another one."""
        if self.owner is not None:
            self.owner.forget_layouts()
        try:
            self.find(name)
        except ModelNotFound as err:
            return err
        return CHANGED

    def close(self) -> None:
        """End the threads of the batchers once they are idle."""
        for batcher in self.batchers:
            batcher.close()


def _facts(model: Model) -> object:
    """Return the facts that callers rely on."""
    return model.signature, model.tensors
