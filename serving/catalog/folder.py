"""One model of the repository: its versions on disk, and those that are in service.

A version is read, verified, built, checked and warmed up beside those in service, and takes over
only then. If a step fails, the others stay, and the failure is logged and counted.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from serving.catalog.versions import CANARY, LABELS, STABLE, Canary, ModelVersions, read_labels
from serving.config import ModelConfig, require_name
from serving.errors import ConfigurationError, CorruptModel, DeviceError, DigitsError, ModelNotFound
from serving.model import repository
from serving.model.loaded_model import LoadedModel, load_model
from serving.model.manifest import MANIFEST
from serving.model.pictures import CLASSIFIER
from serving.model.settings import SETTINGS, read_settings
from serving.tensors import TensorSignature

_log = logging.getLogger(__name__)

_Fingerprint = frozenset[tuple[str, int, int, int]]


class ModelFolder:
    """A model's folder, or its ONNX file, and the versions loaded from there."""

    path: Path
    """The folder of its versions, or an ONNX file."""

    def __init__(
        self, name: str, config: ModelConfig, max_batch_size: int, on_refusal: Callable[[], None]
    ) -> None:
        """Load nothing yet; set `path`, then `look`."""
        self.name = name
        self.served: ModelVersions | None = None
        """The versions in service; None before the first look that succeeds."""
        self._config, self._max_batch_size, self._on_refusal = config, max_batch_size, on_refusal
        self._loaded: dict[str, tuple[LoadedModel, _Fingerprint]] = {}
        self._refused: dict[str, tuple[str, _Fingerprint]] = {}
        """Versions that failed, why, and their files then: not retried until these change."""

    def forget_failures(self) -> None:
        """Retry failed versions at the next look."""
        self._refused.clear()

    def look(self) -> bool:
        """Load new versions, drop those that are gone, and read the labels.

        Returns:
            Whether `served` is another one now.

        Raises:
            DigitsError: nothing has changed; the text says why.
        """
        require_name("the name", self.name)
        settings, config = read_settings(self.path), self._config
        self._num_latest = max(settings.num_latest, 1 + (config.canary > 0))
        # The command line takes precedence over the model's own settings.
        is_default = config.version is None and config.versions == "latest"
        self._wanted = config.version or (is_default and settings.versions) or config.versions
        found = self._versions()
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
            raise CorruptModel(f"no version of {self.name} is good: {'; '.join(reasons)}")
        models = {version: models[version] for version in found if version in models}
        served = self._arrange(models, labels, share)
        self._loaded = {version: self._loaded[version] for version in models}
        if self.served is not None and _facts(self.served) == _facts(served):
            return False
        self.served = served
        return True

    def look_first(self) -> str | None:
        """Load the model; return why it can't be served, after a warning."""
        try:
            self.look()
        except Exception as err:  # of one model: the others are served
            _log.warning("model %s is not served: %s", self.name, text_of(err))
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
            model = self._get(version)
            served = self.served and _signature(self.served.default)
            if model is not None and is_latest and served not in (None, _signature(model)):
                self._refuse(version, self._misfit(model))
            elif model is not None:
                models[version] = model
        return models

    def _get(self, version: str) -> LoadedModel | None:
        """Return a version, loaded now if it is new; None if it can't be served."""
        fingerprint = _fingerprint(self.path, version)
        model, known = self._loaded.get(version, (None, None))
        # A version with a manifest is published once; others may be overwritten.
        if model is not None and (
            known == fingerprint or (self.path / version / MANIFEST).exists()
        ):
            return model
        if self._refused.get(version, ("", None))[1] == fingerprint:
            return model
        config, served = self._config, self.served
        # The same device: a reload never moves to another one.
        device = config.device if served is None else served.default.device
        try:
            new = load_model(
                self.path, version, device, config.precision, self._max_batch_size,
                batching=config.batching_of(self.name), max_bytes=config.max_model_bytes,
            )  # fmt: skip
            if model is not None and _signature(new) != _signature(model):
                raise CorruptModel(self._misfit(new))
        except DigitsError as err:
            is_choice = not (config.version or self.path.is_file())
            if served is None and (isinstance(err, _NOT_THE_FILES) or not is_choice):
                raise
            self._refuse(version, str(err))
            return model
        self._loaded[version] = new, fingerprint
        return new

    def _refuse(self, version: str, reason: str) -> None:
        refusal = reason, _fingerprint(self.path, version)
        if self._refused.get(version) == refusal:
            return
        self._refused[version] = refusal
        if self.served is None:
            _log.warning("model %s: skipped version %s: %s", self.name, version, reason)
            return
        self._on_refusal()
        served = self.served.default_version
        _log.warning("model %s: refused version %s, version %s stays in service: %s", self.name,
                     version, served, reason)  # fmt: skip

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
        first = (
            self.served.default if self.served else models[named.get(STABLE, next(iter(models)))]
        )
        fitting = [v for v, model in models.items() if _signature(model) == _signature(first)]
        if not fitting:
            raise CorruptModel(self._misfit(next(iter(models.values()))))
        if self._config.canary and len(fitting) > 1 and not named.keys() & {STABLE, CANARY}:
            named |= {CANARY: fitting[0], STABLE: fitting[1]}
            share = self._config.canary
        default = named.get(STABLE, fitting[0])
        for version in (default, named[CANARY] if share else default):
            if version not in fitting:
                raise ConfigurationError(
                    f"{LABELS}: version {version} has another signature than the served one"
                )
        canary = Canary(named[CANARY], share) if share else None
        return ModelVersions(self.name, models, default, named, canary)


_NOT_THE_FILES = (ConfigurationError, DeviceError)
"""Errors at start for which no other version is tried."""


def text_of(err: Exception) -> str:
    """Return an error's text; of one that is not ours, its type as well."""
    return str(err) if isinstance(err, DigitsError) else f"{type(err).__name__}: {err}"


def _signature(model: LoadedModel) -> object:
    """Return the facts that callers rely on: images and classes, or the tensors."""
    tensors = model.tensors
    return model.signature or TensorSignature(tensors.inputs, tensors.outputs, is_batchable=True)


def _facts(served: ModelVersions) -> object:
    """Return the facts that distinguish two states of a model."""
    return list(served.versions.items()), served.default_version, served.labels, served.canary


def _fingerprint(path: Path, version: str) -> _Fingerprint:
    """Return names, sizes and times of a version's files, which differ once one changes."""
    try:
        files = [path] if path.is_file() else list((path / version).iterdir())
        folder = path.parent if path.is_file() else path
        files += [folder / each for each in (CLASSIFIER, SETTINGS) if (folder / each).exists()]
        states = [(file.name, file.stat()) for file in files]
    except OSError:
        return frozenset()
    return frozenset((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in states)
