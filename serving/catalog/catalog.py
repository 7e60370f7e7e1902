"""The models of a server by their names, and the thread that follows the repository.

As in Triton's poll mode, a model that appears in the repository is served from the next look on,
and one that disappears is dropped. Models that were asked for by name stay, and so does everything
if the repository can't be read or is empty.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.catalog.folder import ModelFolder, text_of
from serving.catalog.versions import ModelVersions
from serving.config import BatchingConfig, ModelConfig
from serving.errors import CorruptModel, ModelNotFound
from serving.model import repository
from serving.system.cores import usable_cores

_log = logging.getLogger(__name__)

_REPOSITORY = ""
"""The repository as a whole, where a model's name is expected."""


class Catalog:
    """The table of models; any thread may read it."""

    def __init__(
        self, config: ModelConfig, max_batch_size: int = BatchingConfig().max_batch_size
    ) -> None:
        """Load the models of a server, several at once.

        A version that can't be served is skipped with a warning, and so is a model if another one
        can.

        Raises:
            DigitsError: no model can be served; see `load_model`.
        """
        self.models: Mapping[str, ModelVersions] = {}
        """The models in service, by name; replaced as a whole."""
        self.failures: Mapping[str, str] = {}
        """Models of the repository that are not in service, and why; replaced as a whole."""
        self.on_change: Callable[[str, ModelVersions | None], None] = lambda name, versions: None
        """Called with a model's name and its new state, None if it is no longer served; on the
        thread of the change, before `models` shows it."""
        self.count_reload: Callable[[str], None] = lambda outcome: None
        """Called with "adopted" or "failed" for each change."""
        self._config, self._max_batch_size = config, max_batch_size
        self._remote: Any = None  # a RemoteRepository, which is imported for URLs alone
        self._folders: dict[str, ModelFolder] = {}
        self._unloaded: set[str] = set()
        self._troubles: dict[str, str] = {}
        """Why the last look failed, by model; logged when it changes."""
        self._lock = threading.Lock()
        """Held during a look, by the catalog's thread or by a caller of `load` or `unload`."""
        self._ended = False
        self._requests: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._load_all()

    def _load_all(self) -> None:
        if self._config.url is not None:
            from serving.catalog.remote import RemoteRepository

            self._remote = RemoteRepository(self._config.url, self._config.model_cache)
        folders = [self._folder(name, path) for name, path in self._paths().items()]
        if len(folders) == 1:
            folders[0].look()
        else:
            with ThreadPoolExecutor(min(4, usable_cores()), "catalog") as threads:
                reasons = zip(folders, threads.map(ModelFolder.look_first, folders), strict=True)
                self.failures = {folder.name: reason for folder, reason in reasons if reason}
        self._troubles = dict(self.failures)
        self.models = {folder.name: folder.served for folder in folders if folder.served}
        if not self.models:
            listed = [f"{name} ({reason})" for name, reason in self.failures.items()]
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            raise CorruptModel(f"no model can be served: {'; '.join(listed[:3])}{more}")

    @contextmanager
    def following(self, interval_s: float = 0.0) -> Iterator[None]:
        """Follow the repository meanwhile.

        At the end a load may be in progress, and may hang: it is not waited for, nor adopted.

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
            return any([bool(gone), *(self._look(name, paths[name]) for name in found)])

    def load(self, name: str) -> None:
        """Serve a model of the repository, or look for its new versions now.

        Raises:
            DigitsError: there is no such model, or it can't be served.
        """
        with self._lock:
            paths = self._paths()
            if name not in paths:
                raise ModelNotFound(f"no model {name[:40]!r} in the repository")
            self._unloaded.discard(name)
            folder = self._folder(name, paths[name])
            folder.forget_failures()
            if folder.look():
                self._publish(name, folder.served)

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
        """Return the models to serve by name: folders of the repository, and files."""
        root = self._config.models if self._remote is None else self._remote.fetch()
        return repository.named_models(self._config, root)

    def _folder(self, name: str, path: Path) -> ModelFolder:
        if name not in self._folders:
            self._folders[name] = ModelFolder(
                name, self._config, self._max_batch_size, lambda: self.count_reload("failed")
            )
        self._folders[name].path = path  # each copy of a remote repository lies elsewhere
        return self._folders[name]

    def _look(self, name: str, path: Path) -> bool:
        folder, before = self._folder(name, path), self.models.get(name)
        try:
            is_changed = folder.look()
            self._end_trouble(name)
            if not is_changed or self._ended:
                return False
            self._publish(name, folder.served)
        except Exception as err:  # of one model: it neither touches others nor ends this thread
            self._note_trouble(name, text_of(err))
            return False
        self.count_reload("adopted")
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
        served = self.models.get(name)
        if name and served is None:
            self.failures = {**self.failures, name: reason}
        if reason == self._troubles.get(name):
            return
        self._troubles[name] = reason
        self.count_reload("failed")
        if name and served is None:
            _log.warning("model %s is not served: %s", name, reason)
            return
        subject = f"version {served.default_version} of {name}" if served else "every version"
        _log.warning("reload failed, %s stays in service: %s", subject, reason)

    def _end_trouble(self, name: str) -> None:
        if self._troubles.pop(name, None) is not None:
            _log.info("%s can be read again", f"model {name}" if name else "the repository")
