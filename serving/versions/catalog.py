"""The models of a server by their names, and the thread that follows the repository.

As in Triton's poll mode, a model that appears in the repository is served from the next look on,
and one that disappears is dropped. Models that were asked for by name stay, and so does everything
if the repository can't be read or is empty.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from serving.config import BatchingConfig, ModelConfig
from serving.errors import (
    ConfigurationError,
    ModelNotFound,
    ServingError,
    Unavailable,
)
from serving.handlers.cascades import trouble_of
from serving.handlers.loading import HandlerSource, assigned, named_sources
from serving.model import repository
from serving.model.loaded import LoadedModel
from serving.model.remote import RemoteRepository
from serving.system.cores import usable_cores
from serving.versions.failures import at_start, may_pass, others_than, text_of
from serving.versions.folder import ModelFolder
from serving.versions.room import LoadingRoom
from serving.versions.served import ModelVersions
from serving.versions.version import Version

_log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
"""How long a look at one model may take before others are looked at beside it: it may hang."""
_MAX_BESIDE = 4
"""Models that are looked at beside one another while the server runs."""
_MAX_FIRST = 64
"""Threads of the first look: most of them wait for their room, and some may hang."""
_REPOSITORY = ""
"""The repository as a whole, where a model's name is expected."""


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
        self.models: Mapping[str, ModelVersions] = {}
        """The models in service, by name; replaced as a whole."""
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
        self._room = LoadingRoom(min(_MAX_BESIDE, usable_cores()))
        self._named: frozenset[str] = frozenset()
        """The models that the configuration names."""
        self._sources = named_sources(config.handler)
        self._handlers: Mapping[str, HandlerSource] = {}
        """Handlers of the command line, by the models' names."""
        self._around: set[str] = set()
        """Models that were served with a handler which is none without them."""
        self._lock = threading.RLock()
        """Held while the tables change; not during a look, which holds its folder's."""
        self._folders: Mapping[str, ModelFolder] = {}
        """Every model that is there, served or not; replaced as a whole."""
        self._leaving: dict[LoadedModel, Version] = {}
        """Versions that callers still wait for, by what serves them."""
        self._trouble: str | None = None
        """Why the repository can't be read, as the log has it."""
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
            self._look_at_all(folders)
        self._refuse_circles(folders)
        self._require_named(folders)
        for each in folders:
            each.trouble = each.failure
        self.models = {folder.name: folder.served for folder in folders if folder.served}
        if not self.models:
            listed = [f"{name} ({reason})" for name, reason in self.failures.items()]
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            text = f"no model can be served: {'; '.join(listed[:3])}{more}"
            raise at_start(text, *(each.error for each in folders))
        for each in folders:
            each.error = None  # it keeps what was read

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
        raise at_start(
            f"can't be served, although named: {listed}; --allow-missing serves the others",
            *(each.error for each in missing),
        )

    @property
    def failures(self) -> Mapping[str, str]:
        """Models that are there and not in service, and why."""
        folders = self._folders.items()
        return {name: each.failure for name, each in folders if each.failure is not None}

    @property
    def missing(self) -> Mapping[str, str]:
        """The models that are named and not in service, and why; but for unloaded ones."""
        missing, found = self._named - self.models.keys(), self._folders
        unloaded = {name for name in missing if name in found and found[name].is_unloaded}
        failures = self.failures
        return {name: failures.get(name, "it is not there") for name in missing - unloaded}

    def _look_at_all(self, folders: list[ModelFolder]) -> None:
        """Load all models, several at once.

        Raises:
            ConfigurationError: a handler is for a model that is not there.
        """
        with ThreadPoolExecutor(min(len(folders), _MAX_FIRST), "catalog") as threads:
            looks = {each.name: threads.submit(each.look_first) for each in folders}
        for name, look in looks.items():
            if (err := look.exception()) is not None:
                for each in folders:
                    each.drop()  # their handlers have processes
                models = [each.name for each in folders if each.path.suffix != ".py"]
                raise ConfigurationError(
                    f"handler {name}: {err}{others_than(name, models)}"
                ) from err

    def _refuse_circles(self, folders: list[ModelFolder]) -> None:
        """Serve no model whose handler calls itself, by way of others or not."""
        served = {each.name: each.served for each in folders if each.served}
        uses = {name: versions.default.uses for name, versions in served.items()}
        for folder in folders:
            if (trouble := trouble_of(folder.name, uses)) is None:
                continue
            folder.drop()
            folder.failure = trouble
            _log.warning("model %s is not served: %s", folder.name, trouble)

    def _check_uses(self, name: str, model: LoadedModel) -> None:
        """Check which models a new version's handler calls.

        Raises:
            ConfigurationError: itself, or too many in a row.
        """
        uses = {each: versions.default.uses for each, versions in self.models.items()}
        if trouble := trouble_of(name, {**uses, name: model.uses}):
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
            folders = [*self._folders.items()]
            gone = [name for name, each in folders if name not in paths and not each.is_unloaded]
            for name in gone:
                self._remove(name)
                _log.warning("model %s is gone from the repository: it is dropped", name)
            for name, each in folders:
                if each.is_unloaded:  # it stays so if its folder goes, and others come
                    each.failure = "unloaded" if name in paths else None
            found = [self._folder(name, path) for name, path in paths.items()]
        return any([bool(gone), *map(self._look_beside, found)])

    def _look_beside(self, folder: ModelFolder) -> bool:
        """Look at one model on a thread of its own, and go on without it if that takes long.

        Returns:
            Whether it has changed, as far as that is known.
        """
        if not self._is_wanted(folder):  # since the others before it were looked at
            return False
        num_looks = sum(each.looking is not None for each in self._folders.values())
        if folder.looking is not None or num_looks >= _MAX_BESIDE:
            return False  # it hangs, or too many others do: a later look takes it
        outcome = folder.looking = Future()

        def look() -> None:
            try:
                is_changed = self._look(folder)
            finally:
                folder.looking = None
            outcome.set_result(is_changed)

        threading.Thread(target=look, name="catalog-look", daemon=True).start()
        try:
            return outcome.result(self.patience_s)
        except TimeoutError:
            _log.info("model %s: the look takes long; others are looked at meanwhile", folder.name)
            return False

    def _is_wanted(self, folder: ModelFolder) -> bool:
        """Return whether a model is there still, and not unloaded."""
        return self._folders.get(folder.name) is folder and not folder.is_unloaded

    def load(self, name: str) -> None:
        """Serve a model of the repository, or look for its new versions now.

        Raises:
            ServingError: there is no such model, or it can't be served.
        """
        with self._lock:
            paths = self._paths()
            if name not in paths:
                raise ModelNotFound(f"no model {name[:40]!r} in the repository")
            folder = self._folder(name, paths[name])
            folder.is_unloaded = False
            folder.forget_failures()
        try:
            self._adopt(folder)
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
            path = self._remove(name).path
            folder = self._folder(name, path)
            folder.is_unloaded, folder.failure = True, "unloaded"

    def _follow(self, interval_s: float | None) -> None:
        while True:
            try:
                done = self._requests.get(timeout=interval_s)
            except queue.Empty:
                self.reload()
                continue
            if done is None:
                return
            with self._lock:  # `load` of another thread may add a folder
                for folder in self._folders.values():
                    folder.forget_failures()
                    folder.trouble = None
                self._trouble = None
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
        self._around |= {name for name, each in self.models.items() if each.default.is_around}
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
            folder = ModelFolder(
                name,
                self._config,
                self._max_batch_size,
                lambda: self.count_reload("failed"),
                self._most_threads,
                self._room,
            )
            self._folders = {**self._folders, name: folder}
        folder = self._folders[name]
        folder.path = path  # each copy of a remote repository lies elsewhere
        folder.handler = self._handlers.get(name)
        folder.may_have_handlers = self._config.allow_handlers and self._remote is None
        folder.check = partial(self._check_uses, name)
        return folder

    def _look(self, folder: ModelFolder) -> bool:
        """Look at one model; return whether it has changed."""
        try:
            return self._adopt(folder)
        except Exception as err:  # of one model: it neither touches others nor ends this thread
            self._note_trouble(folder.name, text_of(err))
            return False

    def _adopt(self, folder: ModelFolder) -> bool:
        """Serve what is in a model's folder now; count it, log it, and return whether it is new.

        Raises:
            ServingError: nothing has changed; see `ModelFolder.look`.
        """
        folder.lock.acquire()
        is_changed, error = False, None
        try:
            if self._is_wanted(folder):  # it may have waited for another look
                is_changed = folder.look()
        except BaseException as err:
            error = err
        with self._lock:  # `_remove` finds the folder's lock held, or all that the look has done
            try:
                if error is not None and self._is_wanted(folder):
                    raise error
                return self._take(folder, is_changed=is_changed)
            finally:
                folder.lock.release()

    def _take(self, folder: ModelFolder, *, is_changed: bool) -> bool:
        """Serve what a look has found; see `_adopt`."""
        name, before = folder.name, self.models.get(folder.name)
        if not self._is_wanted(folder):  # unloaded, or gone, during the look
            folder.drop()
            return False
        self._end_trouble(name)
        if self._ended:
            return False
        if not is_changed:
            if folder.served is not None and folder.served is not before:  # others are refused
                self._publish(name, folder.served)
            return False
        self._note_leaving(folder)
        self._publish(name, folder.served)
        self.count_reload("loaded")
        old, new = before and before.default_version, self.models[name].default_version
        if old is None or old == new:
            _log.info("model %s: %s", name, self.models[name])
        else:
            _log.info("model %s: version %s replaced version %s", name, new, old)
            if len(self.models[name].versions) > 1:
                _log.info("model %s: %s", name, self.models[name])
        return True

    def _publish(self, name: str, served: ModelVersions | None) -> None:
        self.on_change(name, served)
        others = {each: self.models[each] for each in self.models if each != name}
        self.models = others if served is None else others | {name: served}

    def _remove(self, name: str) -> ModelFolder:
        """Forget a model, and serve it no longer; return what it was."""
        folder = self._folders[name]
        self._folders = {each: self._folders[each] for each in self._folders if each != name}
        if folder.lock.acquire(blocking=False):  # else the look that goes on drops what it finds
            try:
                folder.leave()
            finally:
                folder.lock.release()
            self._note_leaving(folder)
        self._publish(name, None)
        return folder

    def _note_leaving(self, folder: ModelFolder) -> None:
        """Remember the versions that callers still wait for, before any of them ends."""
        for version in folder.leaving:
            if version.model is not None:
                self._leaving[version.model] = version
        folder.leaving = []

    def end_version(self, model: LoadedModel) -> None:
        """Note that the last call of a version that leaves is answered; from any thread.

        It takes no lock: a loop calls it, and a repository that hangs is read under ours.
        """
        if (version := self._leaving.pop(model, None)) is not None:
            version.end()

    def _note_trouble(self, name: str, reason: str) -> None:
        with self._lock:
            self._note(name, reason)

    def _note(self, name: str, reason: str) -> None:
        folder, served = self._folders.get(name), self.models.get(name)
        if folder is None:
            known, self._trouble = self._trouble, reason
        else:
            known, folder.trouble = folder.trouble, reason
            folder.failure = reason if served is None else None
        if reason == known:
            return
        self.count_reload("failed" if name and served is None else "unread")
        if name and served is None:
            _log.warning("model %s is not served: %s", name, reason)
            return
        subject = f"version {served.default_version} of {name}" if served else "every version"
        _log.warning("reload failed, %s stays in service: %s", subject, reason)

    def _end_trouble(self, name: str) -> None:
        folder = self._folders.get(name)
        if folder is None:
            known, self._trouble = self._trouble, None
        else:
            known, folder.trouble = folder.trouble, None
            folder.failure = None
        if known is not None:
            _log.info("%s can be read again", f"model {name}" if name else "the repository")
