"""Watches the model's directory and adopts new versions without a restart.

A version is read, verified, built, checked on its golden samples and warmed up beside the version
in service. It takes over only then, between two runs. If a step fails or hangs, the old version
stays in service, and the failure is logged and counted.
"""

import logging
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from serving.classifier import Classifier
from serving.config import ModelConfig
from serving.errors import DigitsError
from serving.model import repository
from serving.model.loaded_model import load_model

_log = logging.getLogger(__name__)

_Fingerprint = frozenset[tuple[str, int, int, int]]


class Reloader:
    """Keeps a classifier on the newest good version; use it as a context manager."""

    def __init__(self, classifier: Classifier, config: ModelConfig, interval_s: float = 0) -> None:
        """Watch the directory that `config` names.

        Args:
            classifier: adopts new versions; it was opened with `config`.
            config: if it pins a version, that is never replaced.
            interval_s: seconds between looks; 0 looks only at `request`.
        """
        self._classifier = classifier
        self._config = config
        self._interval_s = interval_s
        self._refused: dict[str, _Fingerprint] = {}
        """Versions that failed, and their files then: they are not retried until these change."""
        self._trouble = ""
        """Why the last look at the directory failed; logged when it changes."""
        self._ended = False
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, name="reloader", daemon=True)

    def request(self) -> None:
        """Look now, and retry versions that failed; from any thread or signal handler."""
        self._requests.put(True)

    def reload(self) -> bool:
        """Adopt the newest good version, unless it is in service already.

        Returns:
            True if another version is in service now.
        """
        try:
            is_adopted = any(self._try(version) for version in self._candidates())
        except DigitsError as err:
            self._note_trouble(str(err))
            return False
        except Exception as err:  # no error may end this thread
            self._note_trouble(f"{type(err).__name__}: {err}")
            return False
        if self._trouble:
            self._trouble = ""
            _log.info("the model directory is readable again")
        return is_adopted

    def _note_trouble(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            served = self._classifier.version
            _log.warning("reload failed, version %s stays in service: %s", served, trouble)
            self._classifier.metrics.count_reload("failed")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Adopt nothing from now on; a load in progress may hang, so do not wait for it."""
        self._ended = True
        self._requests.put(False)

    def _follow(self) -> None:
        while True:
            try:
                goes_on = self._requests.get(timeout=self._interval_s or None)
            except queue.Empty:
                self.reload()
                continue
            if not goes_on:
                return
            self._refused.clear()
            self._trouble = ""
            if not self.reload():
                _log.info("version %s stays in service", self._classifier.version)

    @property
    def _model_dir(self) -> Path:
        return self._config.models / self._config.model

    def _candidates(self) -> Iterator[str]:
        """Yield the versions newer than the one in service, newest first."""
        if self._config.version is not None:
            return
        for version in repository.versions(self._model_dir):
            if version == self._classifier.version:
                return
            if self._refused.get(version) != _fingerprint(self._model_dir / version):
                yield version

    def _try(self, version: str) -> bool:
        served = self._classifier.served
        fingerprint = _fingerprint(self._model_dir / version)
        try:
            max_batch_size = self._classifier.batching.max_batch_size
            # The same device: a reload never moves to another one.
            model = load_model(
                self._model_dir, version, served.device, served.precision, max_batch_size,
                is_described=True,
            )  # fmt: skip
            if self._ended:
                return False
            self._classifier.adopt(model)
        except DigitsError as err:
            self._refused[version] = fingerprint
            _log.warning("refused version %s, version %s stays in service: %s", version,
                         served.version, err)  # fmt: skip
            self._classifier.metrics.count_reload("failed")
            return False
        self._classifier.metrics.count_reload("adopted")
        _log.info("version %s replaced version %s", version, served.version)
        return True


def _fingerprint(version_dir: Path) -> _Fingerprint:
    """Return names, sizes and times of a version's files, which differ once one changes."""
    try:
        states = [(path.name, path.stat()) for path in version_dir.iterdir()]
    except OSError:
        return frozenset()
    return frozenset((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in states)
