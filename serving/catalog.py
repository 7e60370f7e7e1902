"""The models of a server by their names, and the thread that follows the repository.

As in Triton's poll mode, a model that appears in the repository is served from the next look on,
and one that disappears is dropped. Models that were asked for by name stay, and so does everything
if the repository can't be read or is empty.
"""

import errno
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from serving.config import BatchingConfig, ModelConfig, require_name
from serving.errors import (
    ConfigurationError,
    CorruptModel,
    DeviceError,
    ModelNotFound,
    ServingError,
    Unavailable,
)
from serving.handlers.cascades import trouble_of
from serving.handlers.loading import FILE as HANDLER
from serving.handlers.loading import HandlerSource, NeedsModel, assigned, named_sources
from serving.model import repository
from serving.model.loaded import LoadedModel
from serving.model.loading import load_model, settings_of
from serving.model.manifest import MANIFEST
from serving.model.remote import RemoteRepository
from serving.model.repository import CLASSIFIER, LABELS
from serving.model.settings import NO_SETTINGS, SETTINGS
from serving.model.signatures import GraphSignature, find_signature, unaccepted
from serving.model.version_labels import CANARY, STABLE, read_labels
from serving.system.cores import usable_cores
from serving.tensors import TensorSignature

_log = logging.getLogger(__name__)


# Versions in service

_NOT_THE_FILES = (ConfigurationError, DeviceError)
"""Errors at start for which no other version is tried."""
_PATIENCE_S = 5.0
"""How long a look at one model may take before others are looked at beside it: it may hang."""
_MAX_BESIDE = 4
"""Models that are looked at beside one another."""
_LASTING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM,
            errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EFBIG)  # fmt: skip
"""What the system says of a file that stays as it is, or of who may read it."""
_IN_USE = ("out of memory", "in use", "busy", "failed to allocate", "bad_alloc", "bad allocation")
"""What libraries say when others have the device, or the memory."""
_REPOSITORY = ""
"""The repository as a whole, where a model's name is expected."""
_Fingerprint = frozenset[tuple[str, int, int, int]]


class Canary(NamedTuple):
    """The version that gets a share of the calls that name no version."""

    version: str
    share: float
    """From 0 to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelVersions:
    """One model as it is served; a reload replaces it by another one."""

    name: str
    versions: Mapping[str, LoadedModel]
    """From the newest to the oldest."""
    default_version: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """The version of each label."""
    canary: Canary | None = None
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Newer versions than the default that are not served by themselves, and why."""

    @property
    def default(self) -> LoadedModel:
        """The model for calls that name no version."""
        return self.versions[self.default_version]

    def find(self, version: str) -> LoadedModel:
        """Return the model of a version or a label.

        Raises:
            ModelNotFound: there is none; the text has those that there are.
        """
        model = self.versions.get(self.labels.get(version, version))
        if model is None:
            there = ", ".join([*self.versions, *self.labels])
            raise ModelNotFound(
                f"model {self.name!r} has no version {version[:40]!r}, only {there}"
            )
        return model

    def choose(self, number: float) -> LoadedModel:
        """Return the model for a call that names no version: the canary for its share of them.

        Args:
            number: any from 0 to 1 (without 1), all equally probable.
        """
        if self.canary is not None and number < self.canary.share:
            return self.versions[self.canary.version]
        return self.default

    def __str__(self) -> str:
        """Return text such as "versions 4, 3; default 3; canary 4"."""
        share = (
            f"; canary {self.canary.version} gets {self.canary.share:.3g}" if self.canary else ""
        )
        return f"versions {', '.join(self.versions)}; default {self.default_version}{share}"


# One model


class ModelFolder:
    """A model's folder, or its ONNX file, and the versions loaded from there."""

    path: Path
    """The folder of its versions, or an ONNX file; that of a handler which is a model by itself."""
    handler: HandlerSource | None = None
    """The handler that the command line names for it."""
    may_have_handlers = False
    """Whether versions may bring handlers."""

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        max_batch_size: int,
        on_refusal: Callable[[], None],
        most_threads: int,
    ) -> None:
        """Load nothing yet; set `path`, then `look`."""
        self.name = name
        self.served: ModelVersions | None = None
        """The versions in service; None before the first look that succeeds."""
        self.error: Exception | None = None
        """Why the first look failed."""
        self.lock = threading.Lock()
        """Held during a look."""
        self._config, self._max_batch_size, self._on_refusal = config, max_batch_size, on_refusal
        self._most_threads = most_threads
        self.check: Callable[[LoadedModel], None] = lambda model: None
        """Raises ServingError for a version that can't be served beside other models."""
        self._loaded: dict[str, tuple[LoadedModel, _Fingerprint]] = {}
        self._signatures: dict[str, tuple[GraphSignature | None, _Fingerprint]] = {}
        self._unaccepted: dict[str, str] = {}
        """Versions with another signature than those below them, and how to serve them."""
        self._unused_handlers: set[str] = set()
        """Versions whose handler may not be used, as the log says."""
        self._refused: dict[str, tuple[str, _Fingerprint]] = {}
        """Versions that failed, why, and their files before: not retried until these change."""
        self._passing: ServingError | None = None
        """An error of a version in the last look whose reason may pass."""

    def forget_failures(self) -> None:
        """Retry failed versions at the next look."""
        self._refused.clear()

    def look(self) -> bool:
        """Load new versions, drop those that are gone, and read the labels.

        Returns:
            Whether `served` is another one now.

        Raises:
            ServingError: nothing has changed; the text says why.
        """
        require_name("the name", self.name)
        is_handler = self.path.suffix == ".py"
        settings, config = NO_SETTINGS if is_handler else settings_of(self.path), self._config
        self._num_latest = max(settings.num_latest, 1 + (config.canary > 0))
        # The command line takes precedence over the model's own settings.
        is_default = config.version is None and config.versions == "latest"
        self._wanted = config.version or (is_default and settings.versions) or config.versions
        found = self._versions()
        is_choice = self._wanted in ("latest", "all") and not self.path.is_file()
        read = partial(self._signature_of, settings.file_name)
        is_choice = is_choice and not any(map(self._handler_of, found))  # these fit their graphs
        self._unaccepted, self._passing = {}, None
        if is_choice and len(found) > 1:
            self._unaccepted = unaccepted(self.path, found, read)
        labels, share = ({}, 0.0) if self._config.version else read_labels(self.path)
        models = self._choose(found)
        for label, version in labels.items():
            model = self._get(version) if version in found else None
            if model is None:
                reason = self._refused.get(version, ("it is not there",))[0]
                raise ConfigurationError(f"{LABELS}: {label} can't be version {version}: {reason}")
            models[version] = model
        if not models:
            reasons = [f"{each} ({self._refused[each][0]})" for each in found]
            text = f"no version of {self.name} is good: {'; '.join(reasons)}"
            raise CorruptModel(text) from self._passing
        models = {version: models[version] for version in found if version in models}
        served = self._arrange(models, labels, share)
        self._loaded = {version: self._loaded[version] for version in models}
        self._note_waiting(served)
        before, self.served = self.served, served
        if before is None or _facts(before) != _facts(served):
            return True
        if before.waiting == served.waiting:
            self.served = before
        return False

    def _signature_of(self, file_name: str | None, version: str) -> GraphSignature | None:
        """Return the signature of a version's graph, read again if its files have changed."""
        fingerprint = _fingerprint(self.path, version)
        signature, known = self._signatures.get(version, (None, None))
        if known != fingerprint:
            signature = find_signature(self.path, version, self._config.precision, file_name)
            self._signatures[version] = signature, fingerprint
        return signature

    def _note_waiting(self, served: ModelVersions) -> None:
        """Log versions that are not served by themselves, once each."""
        before = {} if self.served is None else self.served.waiting
        for version, reason in served.waiting.items():
            if before.get(version) == reason:
                continue
            if self.served is None:
                _log.warning("model %s: skipped version %s: %s", self.name, version, reason)
                continue
            self._on_refusal()
            _log.warning(
                "model %s: refused version %s, version %s stays in service: %s",
                self.name,
                version,
                served.default_version,
                reason,
            )

    def drop(self) -> None:
        """Forget all versions, which are not served."""
        for model, _ in self._loaded.values():
            if model.handler is not None:
                model.handler.close()
        self._loaded, self.served = {}, None

    def look_first(self) -> str | None:
        """Load the model; return why it can't be served, after a warning.

        Raises:
            NeedsModel: the command line names a handler for a model that is not there.
        """
        try:
            self.look()
        except Exception as err:  # of one model: the others are served
            is_alone = self.path.suffix == ".py" and self.handler is not None
            if is_alone and isinstance(err, NeedsModel):  # else served without its model
                raise
            _log.warning("model %s is not served: %s", self.name, text_of(err))
            self.error = err
            return text_of(err)
        return None

    def _versions(self) -> list[str]:
        """List the versions that may be served, newest first."""
        if self.path.suffix == ".onnx" and not self.path.exists():
            raise ModelNotFound(f"there is no file {self.path}")
        found = ["1"] if self.path.is_file() else repository.versions(self.path)
        if self._wanted in ("latest", "all"):
            return found
        pinned = self._wanted.split(",")
        return pinned if len(pinned) == 1 else sorted(set(pinned), key=int, reverse=True)

    def _choose(self, found: list[str]) -> dict[str, LoadedModel]:
        """Load the configured versions, the newest first."""
        is_latest = self._wanted == "latest"
        number = self._num_latest if is_latest else len(found)
        models: dict[str, LoadedModel] = {}
        for version in found:
            if len(models) == number:
                break
            if is_latest and version in self._unaccepted:
                continue
            model = self._get(version)
            if model is not None:
                models[version] = model
        return models

    def _get(self, version: str) -> LoadedModel | None:
        """Return a version, loaded now if it is new; None if it can't be served."""
        own = self._own_fingerprint(version)
        model, known = self._loaded.get(version, (None, None))
        fingerprint = own | _imported_states(model)
        # A version with a manifest is published once; others may be overwritten.
        has_manifest = os.path.exists(self.path / version / MANIFEST)
        is_published = has_manifest and not self._handler_of(version)
        if model is not None and (known == fingerprint or is_published):
            return model
        if self._refused.get(version, ("", None))[1] == fingerprint:
            return model
        config, served = self._config, self.served
        try:
            new = self._load(version)
            try:
                self.check(new)
                # Of others their graphs were compared, by `unaccepted`.
                base = served.default if new.handler is not None and served else model
                if base is not None and _signature(new) != _signature(base):
                    raise CorruptModel(self._misfit(new))
            except ServingError:
                if new.handler is not None:
                    new.handler.close()
                raise
        except ServingError as err:
            is_choice = not (config.version or self.path.is_file())
            if served is None and (isinstance(err, _NOT_THE_FILES) or not is_choice):
                raise
            if may_pass(err):
                self._passing = err
            self._refuse(version, str(err), fingerprint)
            return model
        self._loaded[version] = new, own | _imported_states(new)
        return new

    def _load(self, version: str) -> LoadedModel:
        """Load a version, with its handler if it has one.

        Raises:
            ServingError: it can't be served; see `load_model` and `around`.
        """
        config, served, handler = self._config, self.served, self._handler_of(version)
        if handler is not None:
            handler.require_file()
        if self.path.suffix == ".py":
            from serving.handlers.model import alone  # late: few models have a handler

            source = HandlerSource(self.path) if handler is None else handler
            return alone(source, self.name, config)
        model = load_model(
            self.path,
            version,
            # The same device: a reload never moves to another one.
            config.device if served is None else served.default.device,
            config.precision,
            self._max_batch_size,
            batching=config.batching_of(self.name),
            max_bytes=config.max_model_bytes,
            num_threads=config.threads or 1,
            most_threads=1 if config.threads else self._most_threads,
            tries_file=True,
            name=self.name,
        )
        folder = self.path.parent if self.path.is_file() else self.path / version
        if version in self._unused_handlers:
            model = replace(model, batching=f"without its handler.py; {model.batching}")
        if handler is None:
            return model
        from serving.handlers.model import around  # late: few models have a handler

        return around(model, handler, self.name, folder, config)

    def _handler_of(self, version: str) -> HandlerSource | None:
        """Return the handler of a version; None if it has none, or one that may not be used."""
        if self.handler is not None or self.path.is_file():
            return self.handler

        file = self.path / version / HANDLER
        if not os.path.lexists(file):  # a folder that can't be read says so when it is loaded
            return None
        if self.may_have_handlers:
            return HandlerSource(file.absolute())
        if version not in self._unused_handlers:
            self._unused_handlers.add(version)
            _log.warning(
                "model %s version %s is served without its %s, which does not run: "
                "--allow-handlers lets it, as it is code",
                self.name,
                version,
                HANDLER,
            )
        return None

    def _own_fingerprint(self, version: str) -> _Fingerprint:
        """Return names, sizes and times of a version's files, and of its handler's."""
        found = _fingerprint(self.path, version)
        return found if self.handler is None else found | _states([self.handler.file])

    def _refuse(self, version: str, reason: str, fingerprint: _Fingerprint) -> None:
        """Note a version that failed; of its files as they were before: more may have come since.

        Args:
            version: its number.
            reason: why it failed.
            fingerprint: of its files before they were read.
        """
        refusal = reason, fingerprint
        if self._refused.get(version) == refusal:
            return
        self._refused[version] = refusal
        if self.served is None:
            _log.warning("model %s: skipped version %s: %s", self.name, version, reason)
            return
        self._on_refusal()
        served = self.served.default_version
        _log.warning(
            "model %s: refused version %s, version %s stays in service: %s",
            self.name,
            version,
            served,
            reason,
        )

    def _misfit(self, model: LoadedModel) -> str:
        assert self.served is not None
        return (
            f"version {model.version} has another signature ({_signature(model)}) than the one "
            f"served ({_signature(self.served.default)}): a restart would serve it"
        )

    def _arrange(
        self, models: dict[str, LoadedModel], labels: dict[str, str], share: float
    ) -> ModelVersions:
        """Choose the default and the canary, which answer callers that know one signature."""
        named = dict(labels)
        newest = next((each for each in models if each not in self._unaccepted), next(iter(models)))
        default = named.get(STABLE, newest)
        first = _signature(models[default])
        fitting = [version for version, model in models.items() if _signature(model) == first]
        if self._config.canary and not named.keys() & {STABLE, CANARY}:
            if len(fitting) > 1:
                named |= {CANARY: fitting[0], STABLE: fitting[1]}
                default, share = fitting[1], self._config.canary
            elif len(models) > 1:
                _log.warning(
                    "model %s: version %s gets all calls: the one below has another signature",
                    self.name,
                    default,
                )
        if share and named[CANARY] not in fitting:
            raise ConfigurationError(
                f"{LABELS}: version {named[CANARY]} has another signature than version {default}"
            )
        canary = Canary(named[CANARY], share) if share else None
        waiting = {
            version: reason
            for version, reason in self._unaccepted.items()
            if int(version) > int(default)
        }
        return ModelVersions(self.name, models, default, named, canary, waiting)


def _uses_of(model: LoadedModel) -> tuple[str, ...]:
    """Return the models that a version's handler calls."""
    uses: tuple[str, ...] = () if model.handler is None else model.handler.signature.uses
    return uses


def _needs_model(model: LoadedModel) -> bool:
    """Return whether a version has a handler that is no model by itself."""
    return model.handler is not None and bool(model.handler.signature.needs_model)


def _imported_states(model: LoadedModel | None) -> _Fingerprint:
    """Return the states of the files that a version's handler imports from its folder."""
    files = () if model is None or model.handler is None else model.handler.files
    return _states(files) if files else frozenset()


def _others(name: str, models: list[str]) -> str:
    """Say that no model has a name, and which one was meant, or which there are."""
    from difflib import get_close_matches  # here: few starts fail

    if near := get_close_matches(name, models, 1):
        return f", and none is named {name}: did you mean {near[0]}?"
    return f", and none is named {name}, only {', '.join(models[:8])}" if models else ""


def text_of(err: Exception) -> str:
    """Return an error's text; of one that is not ours, its type as well."""
    return str(err) if isinstance(err, ServingError) else f"{type(err).__name__}: {err}"


def _signature(model: LoadedModel) -> object:
    """Return the facts that callers rely on: images and classes, or the tensors."""
    tensors = model.tensors
    return model.signature or TensorSignature(tensors.inputs, tensors.outputs, is_batchable=True)


def _facts(served: ModelVersions) -> object:
    return list(served.versions.items()), served.default_version, served.labels, served.canary


def _fingerprint(path: Path, version: str) -> _Fingerprint:
    """Return names, sizes and times of a version's files, which differ once one changes."""
    try:
        files = [path] if path.is_file() else list((path / version).iterdir())
        folder = path.parent if path.is_file() else path
        stems = ("", f"{path.stem}.") if path.is_file() else ("",)
        beside = (folder / f"{stem}{each}" for each in (CLASSIFIER, SETTINGS) for stem in stems)
        files += [file for file in beside if file.exists()]
    except OSError:
        return frozenset()
    return _states(files)


def _states(files: Iterable[Path]) -> _Fingerprint:
    try:
        states = [(file.name, file.stat()) for file in files]
    except OSError:
        return frozenset()
    return frozenset((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in states)


def may_pass(error: BaseException | None) -> bool:
    """Return whether the reason of an error may go away by itself: network, I/O, memory, a device.

    What a file or a setting says stays until somebody changes it.
    """
    while error is not None:
        if isinstance(error, MemoryError | Unavailable):
            return True
        is_of_file = isinstance(error, FileNotFoundError | PermissionError)
        if isinstance(error, OSError) and not is_of_file and error.errno not in _LASTING:
            return True
        is_of_library = isinstance(error, DeviceError) or not isinstance(error, ServingError)
        if is_of_library and any(each in str(error).lower() for each in _IN_USE):
            return True
        error = error.__cause__
    return False


def _at_start(text: str, *errors: Exception | None) -> ServingError:
    """Build the error that ends a start, by the reasons of its models.

    What may pass is `Unavailable`, exit code 1: a supervisor may try again.
    """
    known = [each for each in errors if each is not None]
    if known and all(map(may_pass, known)):
        return Unavailable(text)
    first = known[0] if len(known) == 1 else None
    if isinstance(first, ConfigurationError | DeviceError | ModelNotFound):
        return type(first)(text)
    return CorruptModel(text)


# All models


def _named_sources(options: Iterable[str]) -> dict[str, HandlerSource]:
    """Return where handlers are, by the models' names; see `named_sources`."""
    if not options:
        return {}

    return named_sources(options)


class Catalog:
    """The table of models; any thread may read it."""

    def __init__(
        self,
        config: ModelConfig,
        max_batch_size: int = BatchingConfig().max_batch_size,
        most_threads: int = 1,
    ) -> None:
        """Load the models of a server, several at once.

        A version that can't be served is skipped with a warning if another one of its model can,
        and so is a model that was found in the repository, or any with `allow_missing`.

        Args:
            config: the models and where they are.
            max_batch_size: the most rows of a run.
            most_threads: those of a run that is alone; see `load_model`.

        Raises:
            ServingError: no model can be served, or not one that is named; see `load_model`.
            Unavailable: the same, for a reason that may pass.
        """
        self._named: frozenset[str] = frozenset()
        """The models that the configuration names."""
        self.models: Mapping[str, ModelVersions] = {}
        """The models in service, by name; replaced as a whole."""
        self.failures: Mapping[str, str] = {}
        """Models of the repository that are not in service, and why; replaced as a whole."""
        self.on_change: Callable[[str, ModelVersions | None], None] = lambda name, versions: None
        """Called with a model's name and its new state, None if it is no longer served; on the
        thread of the change, before `models` shows it."""
        self.patience_s = _PATIENCE_S
        """How long a look at one model may take before others are looked at beside it."""
        self.count_reload: Callable[[str], None] = lambda outcome: None
        """Called with an outcome, "loaded", "failed" or "unread"; see `Metrics.count_reload`."""
        self._config, self._max_batch_size = config, max_batch_size
        self._most_threads = most_threads
        self._remote: Any = None  # a RemoteRepository, which is imported for URLs alone
        self._folders: dict[str, ModelFolder] = {}
        self._sources = _named_sources(config.handler)
        self._handlers: Mapping[str, HandlerSource] = {}
        """Handlers of the command line, by the models' names."""
        self._around: set[str] = set()
        """Models that were served with a handler which is none without them."""
        self._unloaded: set[str] = set()
        self._troubles: dict[str, str] = {}
        """Why the last look failed, by model; logged when it changes."""
        self._lock = threading.RLock()
        """Held while the tables change; not during a look, which holds its folder's."""
        self._looking: dict[str, Future[bool]] = {}
        """Looks that go on."""
        self._ended = False
        self._requests: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._load_all()

    def _load_all(self) -> None:
        if self._config.url is not None:
            self._remote = RemoteRepository(self._config.url, self._config.model_cache)
        paths = self._paths()
        self._config.require_batched(paths)
        folders = [self._folder(name, path) for name, path in paths.items()]
        if len(folders) == 1:
            try:
                folders[0].look()
            except ServingError as err:
                if may_pass(err):
                    raise Unavailable(str(err)) from err
                raise
        else:
            self.failures = self._look_at_all(folders)
        self._refuse_circles(folders)
        self._require_named(folders)
        self._troubles = dict(self.failures)
        self.models = {folder.name: folder.served for folder in folders if folder.served}
        if not self.models:
            listed = [f"{name} ({reason})" for name, reason in self.failures.items()]
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            text = f"no model can be served: {'; '.join(listed[:3])}{more}"
            raise _at_start(text, *(each.error for each in folders))

    def _require_named(self, folders: list[ModelFolder]) -> None:
        """Check that each model that is named is served, or may be missing.

        Raises:
            ServingError: one is not; see `__init__`.
        """
        missing = [each for each in folders if each.name in self._named and each.served is None]
        if not missing or self._config.allow_missing or len(missing) == len(folders):
            return  # without any model the reasons are said below
        for each in folders:
            each.drop()  # their handlers have processes
        listed = "; ".join(f"{each.name} ({self.failures[each.name]})" for each in missing)
        raise _at_start(
            f"can't be served, although named: {listed}; --allow-missing serves the others",
            *(each.error for each in missing),
        )

    @property
    def missing(self) -> frozenset[str]:
        """The models that are named and not in service, but for those that were unloaded."""
        return self._named - self.models.keys() - self._unloaded

    def _look_at_all(self, folders: list[ModelFolder]) -> dict[str, str]:
        """Load all models, several at once; return why some can't be served.

        Raises:
            ConfigurationError: a handler is for a model that is not there.
        """
        with ThreadPoolExecutor(min(4, usable_cores()), "catalog") as threads:
            looks = {each.name: threads.submit(each.look_first) for each in folders}
        for name, look in looks.items():
            if (err := look.exception()) is not None:
                for each in folders:
                    each.drop()  # their handlers have processes
                models = [each.name for each in folders if each.path.suffix != ".py"]
                raise ConfigurationError(f"handler {name}: {err}{_others(name, models)}") from err
        return {name: reason for name, look in looks.items() if (reason := look.result())}

    def _refuse_circles(self, folders: list[ModelFolder]) -> None:
        """Serve no model whose handler calls itself, by way of others or not."""
        served = {each.name: each.served for each in folders if each.served}
        uses = {name: _uses_of(versions.default) for name, versions in served.items()}
        for folder in folders:
            if (trouble := trouble_of(folder.name, uses)) is None:
                continue
            folder.drop()
            self.failures = {**self.failures, folder.name: trouble}
            _log.warning("model %s is not served: %s", folder.name, trouble)

    def _check_uses(self, name: str, model: LoadedModel) -> None:
        """Check which models a new version's handler calls.

        Raises:
            ConfigurationError: itself, or too many in a row.
        """
        uses = {each: _uses_of(versions.default) for each, versions in self.models.items()}
        if trouble := trouble_of(name, {**uses, name: _uses_of(model)}):
            raise ConfigurationError(trouble)

    @contextmanager
    def following(self, interval_s: float = 0.0) -> Iterator[None]:
        """Follow the repository meanwhile.

        At the end a load may be in progress, and may hang: it is not waited for, nor served.

        Args:
            interval_s: seconds between looks; 0 looks only at `request`.
        """
        arguments = (interval_s or None,)
        threading.Thread(target=self._follow, args=arguments, name="catalog", daemon=True).start()
        try:
            yield
        finally:
            self._ended = True
            self._requests.put(None)

    def request(self, done: Callable[[], None] = lambda: None) -> None:
        """Look now, and retry failed versions; from any thread or signal handler."""
        self._requests.put(done)

    def reload(self) -> bool:
        """Look for new models, versions and labels; return whether anything has changed."""
        with self._lock:
            try:
                paths = self._paths()
            except Exception as err:  # no error may end this thread
                self._note_trouble(_REPOSITORY, text_of(err))
                return False
            self._end_trouble(_REPOSITORY)
            gone = self._folders.keys() - paths.keys()
            for name in gone:
                self._remove(name)
                _log.warning("model %s is gone from the repository: it is dropped", name)
            found = [name for name in paths if name not in self._unloaded]
        return any([bool(gone), *(self._look_beside(name, paths[name]) for name in found)])

    def _look_beside(self, name: str, path: Path) -> bool:
        """Look at one model on a thread of its own, and go on without it if that takes long.

        Returns:
            Whether it has changed, as far as that is known.
        """
        if name in self._looking or len(self._looking) >= _MAX_BESIDE:
            return False  # it hangs, or too many others do: a later look takes it
        outcome = self._looking[name] = Future()

        def look() -> None:
            try:
                is_changed = self._look(name, path)
            finally:
                del self._looking[name]
            outcome.set_result(is_changed)

        threading.Thread(target=look, name="catalog-look", daemon=True).start()
        try:
            return outcome.result(self.patience_s)
        except TimeoutError:
            _log.info("model %s: the look takes long; others are looked at meanwhile", name)
            return False

    def load(self, name: str) -> None:
        """Serve a model of the repository, or look for its new versions now.

        Raises:
            ServingError: there is no such model, or it can't be served.
        """
        with self._lock:
            paths = self._paths()
            if name not in paths:
                raise ModelNotFound(f"no model {name[:40]!r} in the repository")
            self._unloaded.discard(name)
            self._folder(name, paths[name]).forget_failures()
        try:
            self._adopt(name, paths[name])
        except Exception as err:
            self._note_trouble(name, text_of(err))
            raise

    def unload(self, name: str) -> None:
        """Serve a model no longer, until `load`.

        Raises:
            ModelNotFound: no such model is served.
        """
        with self._lock:
            if name not in self.models:
                raise ModelNotFound(f"no model {name[:40]!r} is served")
            self._unloaded.add(name)
            self._remove(name)
            self.failures = {**self.failures, name: "unloaded"}

    def _follow(self, interval_s: float | None) -> None:
        while True:
            try:
                done = self._requests.get(timeout=interval_s)
            except queue.Empty:
                self.reload()
                continue
            if done is None:
                return
            for folder in list(self._folders.values()):
                folder.forget_failures()
            self._troubles.clear()
            if not self.reload():
                _log.info("nothing new: every version stays in service")
            done()

    def _paths(self) -> dict[str, Path]:
        root = self._config.models if self._remote is None else self._remote.fetch()
        paths = repository.named_models(self._config, root)
        self._named |= self._names_in(paths)
        self._handlers = {}
        if self._sources:
            self._handlers = assigned(self._sources, paths)
        self._around |= {name for name, each in self.models.items() if _needs_model(each.default)}
        for name, source in self._handlers.items():
            if name not in self._around:
                paths.setdefault(name, source.file)  # a model by itself
        self._named |= self._handlers.keys()
        return paths

    def _names_in(self, paths: Mapping[str, Path]) -> set[str]:
        """Return which of the models the configuration names, by their names or their files."""
        config = self._config
        if config.names is not None:
            return {*paths}
        files = {repository.only_file(file) for file in config.files}
        return {name for name, path in paths.items() if path in files}

    def _folder(self, name: str, path: Path) -> ModelFolder:
        if name not in self._folders:
            self._folders[name] = ModelFolder(
                name,
                self._config,
                self._max_batch_size,
                lambda: self.count_reload("failed"),
                self._most_threads,
            )
        folder = self._folders[name]
        folder.path = path  # each copy of a remote repository lies elsewhere
        folder.handler = self._handlers.get(name)
        folder.may_have_handlers = self._config.allow_handlers and self._remote is None
        folder.check = partial(self._check_uses, name)
        return folder

    def _look(self, name: str, path: Path) -> bool:
        """Look at one model; return whether it has changed."""
        try:
            return self._adopt(name, path)
        except Exception as err:  # of one model: it neither touches others nor ends this thread
            self._note_trouble(name, text_of(err))
            return False

    def _adopt(self, name: str, path: Path) -> bool:
        """Serve what is in a model's folder now; count it, log it, and return whether it is new.

        Raises:
            ServingError: nothing has changed; see `ModelFolder.look`.
        """
        with self._lock:
            folder = self._folder(name, path)
        with folder.lock:
            is_changed = folder.look()
            with self._lock:
                return self._take(folder, is_changed=is_changed)

    def _take(self, folder: ModelFolder, *, is_changed: bool) -> bool:
        """Serve what a look has found; see `_adopt`."""
        name, before = folder.name, self.models.get(folder.name)
        if self._folders.get(name) is not folder:  # unloaded, or gone, during the look
            folder.drop()
            return False
        self._end_trouble(name)
        if self._ended:
            return False
        if not is_changed:
            if before is not None and folder.served is not None:  # other versions may wait
                self.models = {**self.models, name: folder.served}
            return False
        self._publish(name, folder.served)
        self.count_reload("loaded")
        old, new = before and before.default_version, self.models[name].default_version
        if old is None or old == new:
            _log.info("model %s: %s", name, self.models[name])
        else:
            _log.info("model %s: version %s replaced version %s", name, new, old)
        return True

    def _publish(self, name: str, served: ModelVersions | None) -> None:
        self.on_change(name, served)
        others = {each: self.models[each] for each in self.models if each != name}
        self.models = others if served is None else others | {name: served}
        self.failures = {each: self.failures[each] for each in self.failures if each != name}

    def _remove(self, name: str) -> None:
        del self._folders[name]
        self._troubles.pop(name, None)
        self._publish(name, None)

    def _note_trouble(self, name: str, reason: str) -> None:
        with self._lock:
            self._note(name, reason)

    def _note(self, name: str, reason: str) -> None:
        served = self.models.get(name)
        if name and served is None:
            self.failures = {**self.failures, name: reason}
        if reason == self._troubles.get(name):
            return
        self._troubles[name] = reason
        self.count_reload("failed" if name and served is None else "unread")
        if name and served is None:
            _log.warning("model %s is not served: %s", name, reason)
            return
        subject = f"version {served.default_version} of {name}" if served else "every version"
        _log.warning("reload failed, %s stays in service: %s", subject, reason)

    def _end_trouble(self, name: str) -> None:
        if self._troubles.pop(name, None) is not None:
            _log.info("%s can be read again", f"model {name}" if name else "the repository")
