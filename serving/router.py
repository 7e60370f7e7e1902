"""The models of a server by their names."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from serving.batching.batcher import Batcher, Net
from serving.batching.entry import Entry
from serving.batching.run import Group, Owner, RunnableModel
from serving.batching.spot_check import TOLERANCES, Closeness
from serving.config import BatchingConfig
from serving.errors import ModelNotFound, ServingError, Unavailable
from serving.model import verdicts
from serving.model.loaded import LoadedModel
from serving.model.manifest import FILES
from serving.pictures import reader
from serving.processes.pool import BoundedPool, JobLimits, ProcessPool
from serving.system.cores import usable_cores
from serving.system.crash_record import number_of
from serving.system.host import Host
from serving.telemetry.metrics import HandlerUsage, Metrics, QueueUsage
from serving.tensors import ModelInfo, Signature, TensorSignature
from serving.versions.served import ModelVersions

if TYPE_CHECKING:
    from serving.handlers.model import HandledModel

_log = logging.getLogger(__name__)
_CHANGED = Unavailable("the model has changed")
"""Why a call is not run whose version has gone since it was read."""
_MAX_SHOWN = 80
"""Names from callers are cut to this length in errors."""
_TOLERANCES_OF_DEVICES = {2: 1e-2, 4: 1e-2, 8: 1e-3}
"""`TOLERANCES` on other devices than the CPU, as `acceptance.py` has them: their runs of several
rows take other algorithms."""
_NUM_READERS = 3
"""Processes that read what strangers send: JSON, forms, pictures."""
_PICTURES = JobLimits(1280 << 20, 10.0)
"""Limits of a handler's pictures: the largest one, 80 million transparent pixels, takes some 1,200
MiB with the copy to be sent."""
_TWO, _SMALL_BYTES = 2, 256 << 20
"""Processes of a handler on as many cores, if one has at most this memory after `setup`."""


def _record(key: str, reason: str) -> None:
    """Keep a verdict for the next start, on a thread of its own: it writes a file."""
    if key:
        verdict = verdicts.Verdict(reason)
        threading.Thread(target=verdicts.keep, args=(key, verdict), daemon=True).start()


class ServedVersion:
    """A version in service: OPEN, BLOCKED for a reason, or CLOSED."""

    def __init__(self, model: LoadedModel, entry: Entry) -> None:
        """Open it; `entry` takes its calls."""
        self.model, self.entry = model, entry
        self._is_closed = False

    @property
    def is_blocked(self) -> bool:
        """Whether its calls are refused for now."""
        return self.entry.is_refusing and not self._is_closed

    def block(self, reason: ServingError | None) -> None:
        """Refuse all calls that have not begun to run, and later ones; None runs them again."""
        if not self._is_closed:
            self.entry.refuse(reason)

    def close(self) -> None:
        """End its runners once they are idle; later calls are asked to retry."""
        self._is_closed = True
        self.entry.refuse(_CHANGED)
        self.entry.close()


class _State(NamedTuple):
    """The versions of a route at one moment."""

    versions: ModelVersions
    served: Mapping[str, ServedVersion]
    """By version, the newest first."""
    default: Entry | None
    """None once the model is gone."""
    canary: Entry | None
    share: float


class Route:
    """One model as long as it keeps its signature: an entry for each version in service.

    Calls that name no version are for its default, or for the canary's share of them; a route takes
    them as an entry does.
    """

    def __init__(
        self,
        name: str,
        versions: ModelVersions,
        batching: BatchingConfig,
        random: Random,
        open_version: Callable[[LoadedModel], ServedVersion],
        gone: Callable[[], ServingError],
    ) -> None:
        """Serve these versions of a model.

        Args:
            name: the model's name for callers.
            versions: its versions.
            batching: sizes and limits.
            random: draws the canary's calls.
            open_version: opens a version that is new.
            gone: called when a call comes after `end`; returns why it is not answered.
        """
        self.name = name
        """The model's name for callers."""
        self._batching, self._random = batching, random
        self._open, self._gone = open_version, gone
        self._state = _State(versions, {}, None, None, 0.0)
        self.submit: Callable[[Group], int] = self._refuse
        """Queue calls for the default version or its canary; return how many were taken."""
        self.serve(versions)

    def serve(self, versions: ModelVersions) -> None:
        """Serve other versions, labels and shares from now on; from any thread."""
        known = {each.model: each for each in self._state.served.values()}
        served = {
            version: known.get(model) or self._open(model)
            for version, model in versions.versions.items()
        }
        default, canary = served[versions.default_version].entry, versions.canary
        self._state = _State(
            versions,
            served,
            default,
            served[canary.version].entry if canary else None,
            canary.share if canary else 0.0,
        )
        # The only receiver of all calls is called without a way through here.
        self.submit = self._submit if canary else default.submit

    def end(self) -> None:
        """Answer no more calls."""
        self._state = self._state._replace(default=None, canary=None)
        self.submit = self._refuse

    @property
    def versions(self) -> ModelVersions:
        """The versions in service, and their labels."""
        return self._state.versions

    @property
    def served(self) -> Mapping[str, ServedVersion]:
        """Each version in service, the newest first."""
        return self._state.served

    @property
    def is_blocked(self) -> bool:
        """Whether the default version is not run for now."""
        state = self._state
        return state.default is not None and state.served[self.label[1]].is_blocked

    @property
    def model(self) -> LoadedModel:
        """The default version."""
        return self._state.versions.default

    @property
    def label(self) -> tuple[str, str]:
        """The name and the default version."""
        return self.name, self._state.versions.default_version

    @property
    def tensors(self) -> TensorSignature:
        """The inputs and outputs of the default version."""
        return self.model.tensors

    @property
    def signature(self) -> Signature | None:
        """The signature of a classifier of images, else None."""
        return self.model.signature

    def find(self, version: str) -> "Route | Entry":
        """Return the receiver of calls for a version or a label; "" for calls that name none.

        Raises:
            ModelNotFound: there is none.
        """
        state = self._state
        return state.served[state.versions.find(version).version].entry if version else self

    def describe(self, version: str = "") -> ModelInfo:
        """Describe a version, or the default one.

        Raises:
            ModelNotFound: there is no such version.
        """
        versions = self.versions
        model = versions.find(version) if version else versions.default
        return replace(
            model.describe(self._batching),
            name=self.name,
            versions=tuple(self.served),
            default_version=versions.default_version,
            canary_version=versions.canary.version if versions.canary else None,
            not_served=versions.reasons,
        )

    # As an entry

    def _submit(self, group: Group) -> int:
        """Submit calls to the default and to the canary, as long as there are both."""
        _, _, default, canary, share = self._state
        if default is None:
            return self._refuse(group)
        if canary is None:  # it has gone since
            return default.submit(group)
        number, taken = self._drawn(group, share), 0
        if number:
            taken = canary.submit(group.cut(0, number), is_final=False)
        if taken < len(group.streams):
            taken += default.submit(group.cut(taken, len(group.streams)))
        return taken

    def add(self, group: Group) -> None:
        _, _, default, canary, share = self._state
        if default is None:
            self._refuse(group)
            return
        if canary is None:
            default.add(group)
            return
        number = self._drawn(group, share)
        if number:
            canary.add(group.cut(0, number))
        if number < len(group.streams):
            default.add(group.cut(number, len(group.streams)))

    def room_for_stream(self, num_rows: int) -> int:
        both = (self._state.default, self._state.canary)
        return min((each.room_for_stream(num_rows) for each in both if each is not None), default=1)

    def _drawn(self, group: Group, share: float) -> int:
        """Return how many of some calls are the canary's."""
        return sum(self._random.random() < share for _ in group.streams)

    def _refuse(self, group: Group) -> int:
        """End calls that were recognised as ones for a model that is gone."""
        group.sink.fail(group, self._gone())
        return len(group.streams)


class Router:
    """The models of a server; `change` may be called from any thread, and the rest by the owner."""

    def __init__(
        self,
        batching: BatchingConfig | None = None,
        num_processes: int = 1,
        host: Host | None = None,
    ) -> None:
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
        self.served: tuple[ServedVersion, ...] = ()
        """All versions, including those that only finish accepted calls."""
        self._num_processes = num_processes
        self._lock = threading.Lock()
        """Held while `routes` and `served` are replaced."""
        self._blocked: Mapping[int, float] = {}
        """The versions that `block` has named."""
        self._alone: frozenset[int] = frozenset()
        """The versions that `stop_batching` has named."""
        self.owner: Owner | None = None
        """The thread that the entries belong to, once `attach` was called."""
        self.on_block: Callable[[], object] = lambda: None
        """Called when `blocked_models` may have changed, on that thread."""
        self.on_end: Callable[[Any], object] = lambda model: None
        """Called with a version that has answered its last call, on that thread."""
        self.keeps_headers = False
        """Whether a handler wants the headers of calls."""
        self._pool = ProcessPool(_NUM_READERS)
        self._pictures: BoundedPool | None = None
        """The pool, with the limits of pictures for handlers; None if no handler takes any."""

    def attach(self, owner: Owner) -> None:
        """Set the thread that the entries belong to."""
        self.owner = owner
        for each in self.served:
            each.entry.attach(owner)
        self._start_pictures()

    def change(self, name: str, versions: ModelVersions | None) -> None:
        """Serve these versions of a model from now on; None: none."""
        with self._lock:
            routes = dict(self.routes)
            before = route = routes.get(name)
            if route is not None and (
                versions is None or _facts(versions.default) != _facts(route.model)
            ):
                route.end()
                del routes[name]
            if versions is not None and name in routes:
                routes[name].serve(versions)
            elif versions is not None:
                routes[name] = Route(
                    name,
                    versions,
                    self.batching,
                    self.host.random,
                    partial(self._open, name),
                    partial(self._gone, name),
                )
            self.routes = routes
            models = (
                each for route in routes.values() for each in route.versions.versions.values()
            )
            self.keeps_headers = any("metadata" in each.options for each in models)
            is_other = routes.get(name) is not before
        if self.owner is not None and is_other:
            self.owner.post(self.owner.forget_layouts)  # some are for models that are gone

    def _open(self, name: str, model: LoadedModel) -> ServedVersion:
        """Take a version into service."""
        entry = model.entry(name, self)
        served = ServedVersion(model, entry)
        served.block(self._refusal_of(entry.label))
        self._stop_batching(entry)
        if self.owner is not None:
            entry.attach(self.owner)
        self.served = (*self.served, served)
        return served

    def batcher_of(self, name: str, model: LoadedModel, *, counts_calls: bool = True) -> Batcher:
        """Return where the calls of a model come in; see `EntryMaker`."""
        cores = model.session.max_concurrent_runs or model.settings.instances
        num_threads = self._num_processes * max(1, model.settings.num_threads)
        cores = cores or max(1, usable_cores() // num_threads)
        batching = model.settings.of(self.batching)
        facts = model, batching, self.metrics, cores, name, self.host, self._net(model, batching)
        return Batcher(*facts, counts_calls=counts_calls)

    def pipeline_of(self, name: str, model: "HandledModel") -> Entry:
        """Return where the calls of a model with a handler come in."""
        from serving.handlers.pipeline import HandlerRuntime, Pipeline  # late: few have one

        handler, inside, network = model.handler, model.inside, None
        if inside is not None:
            network = self.batcher_of(name, inside, counts_calls=False)
        if handler.signature.has_pictures:
            self._picture_pool()
        number = self.batching.handler_processes or self._usual_processes(name, handler)
        runtime = HandlerRuntime(
            handler.signature,
            network,
            handler,
            handler.take_first,
            max(1, number // self._num_processes),
            self._receiver,
            self._picture_pool,
            lambda: self.on_block(),
        )
        batching, label = model.settings.of(self.batching), (name, model.version)
        return Pipeline(label, model.tensors, batching, self.metrics, runtime)

    def _net(self, model: LoadedModel, batching: BatchingConfig) -> Net | None:
        """Return how the answers of a version's batches are checked; None if they are not."""
        if batching.spot_checks == "off" or not model.tensors.is_batchable:
            return None
        relative = TOLERANCES if model.device == "cpu" else _TOLERANCES_OF_DEVICES
        digest = model.manifest.digests.get(FILES[model.precision], "unknown")
        return Net(
            self.host.checks_random,
            Closeness(relative, model.output_step),
            digest,
            model.is_proved,
            partial(_record, model.verdict_key),
        )

    def _usual_processes(self, name: str, handler: Any) -> int:
        """Return how many processes a handler has by default: on two cores two small ones."""
        cores = usable_cores()
        if cores != _TWO or self._num_processes > 1:
            return max(1, cores - 1)
        if handler.first_bytes <= _SMALL_BYTES:
            return _TWO
        _log.info(
            "model %s: its handler has one process, which takes %d MiB after setup; "
            "--handler-processes 2 starts a second one",
            name,
            handler.first_bytes >> 20,
        )
        return 1

    def _receiver(self, name: str) -> tuple[Route, TensorSignature]:
        """Return another model, for a handler that calls it."""
        route = self.find(name)
        return route, route.tensors

    def bounded_pool(self, modules: Iterable[str], limits: JobLimits) -> BoundedPool:
        """Return the processes that read what strangers send, with limits; all users share them.

        Args:
            modules: imports of these jobs.
            limits: of each.
        """
        self._pool.prepare(modules)
        return BoundedPool(self._pool, limits)

    def _picture_pool(self) -> BoundedPool:
        """Return the processes for pictures of handlers, with their limits."""
        if self._pictures is None:
            modules = (*reader.modules(), "serving.handlers.pictures")
            self._pictures = self.bounded_pool(modules, _PICTURES)
            self._start_pictures()
        return self._pictures

    def _start_pictures(self) -> None:
        """Have a process started, so that no call waits for it, once all modules are known."""
        if self._pictures is not None and self.owner is not None:
            self._pictures.submit("", int)

    def close_pool(self) -> None:
        """End the processes that read what strangers send."""
        self._pool.close()

    def prune(self) -> None:
        """Close the versions that are gone and have answered all they accepted."""
        with self._lock:
            serving = {each for route in self.routes.values() for each in route.served.values()}
            kept = tuple(each for each in self.served if each in serving or each.entry.is_busy)
            gone, self.served = set(self.served) - set(kept), kept
        for each in gone:
            each.close()
            self.on_end(each.model)

    def block(self, blocked: Mapping[int, float]) -> None:
        """Refuse the calls of versions whose runs have ended processes; of all others, none.

        Args:
            blocked: until when, in monotonic seconds, by the number of a version; see `number_of`.
        """
        self._blocked = blocked
        for each in self.served:
            each.block(self._refusal_of(each.entry.label))

    def stop_batching(self, versions: frozenset[int]) -> None:
        """Run each call of these versions alone: other workers found that rows depend on others.

        Args:
            versions: their numbers; see `number_of`.
        """
        self._alone = versions
        for each in self.served:
            self._stop_batching(each.entry)

    def _stop_batching(self, entry: Entry) -> None:
        if self._alone and number_of(entry.label) in self._alone:
            entry.stop_batching()

    def _refusal_of(self, label: tuple[str, str]) -> ServingError | None:
        if not self._blocked:
            return None
        until_s = self._blocked.get(number_of(label))
        if until_s is None:
            return None
        name, version = label
        rest_s = max(1.0, until_s - self.host.clock())
        return Unavailable(
            f"model {name} version {version} has ended a server process: "
            f"it is not run for {rest_s:.0f} s"
        )

    @property
    def blocked_models(self) -> frozenset[str]:
        """The models whose default version is not run for now."""
        routes = self.routes.items()
        return frozenset(name for name, each in routes if each.is_blocked)

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

    def queues(self) -> dict[tuple[str, str], QueueUsage]:
        """Return what waits, by name and version; from any thread."""
        found: dict[tuple[str, str], QueueUsage] = {}
        for each in self.served:  # one that was replaced by another of its version may wait
            entry, label = each.entry, each.entry.label
            num_rows = entry.num_waiting + found.get(label, QueueUsage()).num_rows
            found[label] = QueueUsage(num_rows, entry.capacity)
        return found

    def handlers(self) -> dict[tuple[str, str], HandlerUsage]:
        """Return the processes of handlers, by name and version; from any thread."""
        usages = ((each.entry.label, each.entry.usage()) for each in self.served)
        return {label: usage for label, usage in usages if usage is not None}

    @property
    def num_waiting(self) -> int:
        """The rows that wait for a run; a moment old on other threads."""
        return sum(each.entry.num_waiting for each in self.served)

    @property
    def is_busy(self) -> bool:
        """Whether calls wait or run."""
        return any(each.entry.is_busy for each in self.served)

    def _gone(self, name: str) -> ServingError:
        """Return why a call that was recognised is not run: its model is gone, or another one."""
        if self.owner is not None:
            self.owner.forget_layouts()
        try:
            self.find(name)
        except ModelNotFound as err:
            return err
        return _CHANGED

    def close(self) -> None:
        """Close all versions: their threads end once they are idle."""
        for each in self.served:
            each.close()
        self.close_pool()


def _facts(model: RunnableModel) -> object:
    """Return the facts that callers rely on."""
    return model.signature, model.tensors
