"""Follows the model's directory: what a restart would serve is adopted without one.

A version is read, verified, built, checked on its golden samples and warmed up beside the one that
serves; only then does it take over, between two runs. Whatever fails or hangs on the way, the old
one serves on, and there is a line in the log and a count in the metrics.
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
            classifier: adopts what is found; it was opened with `config`.
            config: a version that is pinned there is never replaced.
            interval_s: seconds between looks; 0 looks only when asked to.
        """
        self._classifier = classifier
        self._config = config
        self._interval_s = interval_s
        self._refused: dict[str, _Fingerprint] = {}
        """Versions that failed, as they were: they are not tried again until they change."""
        self._trouble = ""
        """Why the last look at the directory found nothing; logged when it changes."""
        self._ended = False
        self._wishes: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, name="reloader", daemon=True)

    def request(self) -> None:
        """Look now, at versions that failed before, too; from any thread or signal handler."""
        self._wishes.put(True)

    def reload(self) -> bool:
        """Adopt the newest good version, unless it is the one that serves.

        Returns:
            True if another version serves now.
        """
        try:
            is_adopted = any(self._try(version) for version in self._candidates())
        except DigitsError as err:
            self._note_trouble(str(err))
            return False
        except Exception as err:  # whatever it is, it must end neither this thread nor the service
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
        """Adopt nothing from here on; what is being loaded may hang, and isn't waited for."""
        self._ended = True
        self._wishes.put(False)

    def _follow(self) -> None:
        while True:
            try:
                goes_on = self._wishes.get(timeout=self._interval_s or None)
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
        """Yield what would be better than the version that serves, best first."""
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
            # The same device: it never moves in silence.
            model = load_model(
                self._model_dir, version, served.device, served.precision, max_batch_size
            )
        except DigitsError as err:
            self._refused[version] = fingerprint
            _log.warning("refused version %s, version %s stays in service: %s", version,
                         served.version, err)  # fmt: skip
            self._classifier.metrics.count_reload("failed")
            return False
        if self._ended:
            return False
        self._classifier.adopt(model)
        self._classifier.metrics.count_reload("adopted")
        _log.info("version %s replaced version %s", version, served.version)
        return True


def _fingerprint(version_dir: Path) -> _Fingerprint:
    """Tell two states of a version's files apart, without reading them."""
    try:
        states = [(path.name, path.stat()) for path in version_dir.iterdir()]
    except OSError:
        return frozenset()
    return frozenset((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in states)
