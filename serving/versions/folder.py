"""One model: the versions in its folder, or its file, and which of them a look chooses."""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

from serving.config import ModelConfig, require_name
from serving.errors import (
    ConfigurationError,
    CorruptModel,
    DeviceError,
    ModelNotFound,
    ServingError,
)
from serving.handlers.loading import HandlerSource, NeedsModel
from serving.model import repository
from serving.model.loaded import LoadedModel
from serving.model.loading import Loading
from serving.model.manifest import MANIFEST
from serving.model.repository import LABELS
from serving.model.signatures import GraphSignature, find_signature, unaccepted
from serving.model.version_labels import CANARY, STABLE
from serving.versions.failures import may_pass, text_of
from serving.versions.files import Fingerprint, fingerprint, imported_states, states
from serving.versions.room import LoadingRoom
from serving.versions.served import Canary, ModelVersions, facts_of, signature_of
from serving.versions.version import State, Version
from serving.versions.wishes import Wishes

_log = logging.getLogger(__name__)

_NOT_THE_FILES = (ConfigurationError, DeviceError)
"""Errors at start for which no other version is tried."""


class ModelFolder:
    """A model's folder, or its ONNX file, and the versions in it; one thread at a time looks."""

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
        room: LoadingRoom | None = None,
    ) -> None:
        """Load nothing yet; set `path`, then `look`."""
        self.name = name
        self.served: ModelVersions | None = None
        """The versions in service; None before the first look that succeeds."""
        self.error: Exception | None = None
        """Why the first look failed."""
        self.failure: str | None = None
        """Why it is not in service; None if it is."""
        self.trouble: str | None = None
        """Why the last look failed, as the log has it: said again only if it is another."""
        self.is_unloaded = False
        """Whether a caller asked for that: looks leave it alone until one loads it."""
        self.looking: Future[bool] | None = None
        """A look that goes on."""
        self.lock = threading.Lock()
        """Held during a look."""
        self._config, self._max_batch_size, self._on_refusal = config, max_batch_size, on_refusal
        self._most_threads = most_threads
        self._room = room or LoadingRoom()
        self.check: Callable[[LoadedModel], None] = lambda model: None
        """Raises ServingError for a version that can't be served beside other models."""
        self.versions: dict[str, Version] = {}
        """Those that are there, by their numbers, with the files that they have now."""
        self.leaving: list[Version] = []
        """Those that some callers still wait for."""
        self._before: dict[str, Version] = {}
        """By number: the one with earlier files that serves, since the new ones are no good."""
        self._signatures: dict[str, tuple[GraphSignature | None, Fingerprint]] = {}
        self._wishes: Wishes
        self._unaccepted: dict[str, str] = {}
        """Versions with another signature than those below them, and how to serve them."""
        self._unused_handlers: set[str] = set()
        """Versions whose handler may not be used, as the log says."""
        self._passing: ServingError | None = None
        """An error of a version in the last look whose reason may pass."""
        self._retries = False
        """Whether the next look tries again what was refused."""

    def forget_failures(self) -> None:
        """Retry failed versions at the next look; from any thread."""
        self._retries = True  # the look that may go on has the versions

    def look(self) -> bool:
        """Load new versions, drop those that are gone, and read the labels.

        Returns:
            Whether `served` is another one now.

        Raises:
            ServingError: nothing has changed; the text says why.
        """
        require_name("the name", self.name)
        if self._retries:
            self._retries = False
            for refused in self.versions.values():
                refused.retry()
        self._wishes = wishes = Wishes.at(
            self.path, self._config, self.handler, may_have_handlers=self.may_have_handlers
        )
        found = self._numbers()
        is_choice = not wishes.are_numbers and not self.path.is_file()
        read = partial(self._signature_of, wishes.settings.file_name)
        is_choice = is_choice and not any(map(self._handler_of, found))  # these fit their graphs
        self._unaccepted, self._passing = {}, None
        if is_choice and len(found) > 1:
            self._unaccepted = unaccepted(self.path, found, read)
        chosen = self._choose(found)
        for label, number in wishes.labels.items():
            version = self._get(self.versions[number]) if number in found else None
            if version is None:
                reason = self.versions[number].reason if number in found else "it is not there"
                raise ConfigurationError(f"{LABELS}: {label} can't be version {number}: {reason}")
            chosen[number] = version
        if not chosen:
            reasons = [f"{each} ({self.versions[each].reason})" for each in found]
            text = f"no version of {self.name} is good: {'; '.join(reasons)}"
            raise CorruptModel(text) from self._passing
        self._passing = None  # it keeps what was read
        chosen = {number: chosen[number] for number in found if number in chosen}
        served = self._arrange(chosen)
        self._serve(chosen, found)
        served = replace(served, reasons=self._reasons(served, found))
        self._note_waiting(served)
        before, self.served = self.served, served
        if before is None or facts_of(before) != facts_of(served):
            return True
        if before.reasons == served.reasons:
            self.served = before
        return False

    def _signature_of(self, file_name: str | None, number: str) -> GraphSignature | None:
        """Return the signature of a version's graph, read again if its files have changed."""
        files = fingerprint(self.path, number)
        signature, known = self._signatures.get(number, (None, None))
        if known != files:
            signature = find_signature(self.path, number, self._config.precision, file_name)
            self._signatures[number] = signature, files
        return signature

    def _serve(self, chosen: dict[str, Version], found: list[str]) -> None:
        """Let those that were chosen serve, and the others leave."""
        self._let_leave([each for each in self._loaded() if each not in chosen.values()])
        for version in chosen.values():
            version.serve()
        self._before = {
            number: version
            for number, version in chosen.items()
            if version is not self.versions[number]
        }
        self.versions = {number: self.versions[number] for number in found}
        self._signatures = {number: self._signatures[number] for number in found
                            if number in self._signatures}  # fmt: skip

    def _loaded(self) -> list[Version]:
        both = (*self.versions.values(), *self._before.values())
        return [version for version in both if version.is_loaded]

    def _let_leave(self, versions: list[Version]) -> None:
        for version in versions:
            if version.state is State.SERVING:
                version.leave()
                self.leaving.append(version)
            else:
                _end_unserved(version)

    def _reasons(self, served: ModelVersions, found: list[str]) -> dict[str, str]:
        """Return the versions that are there and not served, and why."""
        reasons: dict[str, str] = {}
        choice = self._wishes.choice([*served.versions])
        for number in found:
            if number in served.versions:
                continue
            version = self.versions[number]
            version.unwanted = self._unaccepted.get(number, choice)
            reasons[number] = version.reason
        return reasons

    def _note_waiting(self, served: ModelVersions) -> None:
        """Log versions that are not served by themselves, once each.

        One that callers could not use was refused; another one is only not wished for.
        """
        before = {} if self.served is None else self.served.reasons
        for number, reason in served.waiting.items():
            if before.get(number) == reason or self.versions[number].state is State.REFUSED:
                continue  # it was said, now or when it was refused
            if number in self._unaccepted:
                self._say_refused(number, reason, served.default_version)
            else:
                _log.info("model %s: version %s is not served: %s", self.name, number, reason)

    def _say_refused(self, number: str, reason: str, default: str) -> None:
        """Log a version that is not served, and why."""
        if self.served is None:
            _log.warning("model %s: skipped version %s: %s", self.name, number, reason)
            return
        self._on_refusal()
        _log.warning(
            "model %s: refused version %s, version %s stays in service: %s",
            self.name,
            number,
            default,
            reason,
        )

    def leave(self) -> None:
        """Serve no version any more; callers may still wait for some, which are `leaving`."""
        self._let_leave(self._loaded())
        self.versions, self._before, self.served = {}, {}, None

    def drop(self) -> None:
        """Forget all versions: no caller has seen one."""
        for version in self._loaded():
            _end_unserved(version)
        self.versions, self._before, self.served = {}, {}, None

    def look_first(self) -> None:
        """Load the model; a warning says why it can't be served, and so does `failure`.

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
            self.error, self.failure = err, text_of(err)

    def _numbers(self) -> list[str]:
        """List the versions that may be served, newest first."""
        if self.path.suffix == ".onnx" and not self.path.exists():
            raise ModelNotFound(f"there is no file {self.path}")
        found = ["1"] if self.path.is_file() else repository.versions(self.path)
        if not self._wishes.are_numbers:
            return found
        named = self._wishes.versions.split(",")
        return named if len(named) == 1 else sorted(set(named), key=int, reverse=True)

    def _choose(self, found: list[str]) -> dict[str, Version]:
        """Load the versions that are wished, the newest first."""
        is_latest = self._wishes.versions == "latest"
        most = self._wishes.num_latest if is_latest else len(found)
        chosen: dict[str, Version] = {}
        for number in found:
            found_now = self._find(number)
            is_wished = len(chosen) < most and not (is_latest and number in self._unaccepted)
            if is_wished and (version := self._get(found_now)) is not None:
                chosen[number] = version
        return chosen

    def _find(self, number: str) -> Version:
        """Return a version with the files that it has now."""
        version, before = self.versions.get(number), self._before.get(number)
        if version is not None and version.state in (State.LEAVING, State.GONE):
            version = None  # it is wanted again, or looked at
        loaded = version if version is not None and version.is_loaded else before
        model = None if loaded is None else loaded.model
        files = self._own_files(number) | imported_states(model)
        # A version with a manifest is published once; others may be overwritten.
        has_manifest = os.path.exists(self.path / number / MANIFEST)
        is_published = has_manifest and not self._handler_of(number)
        if version is not None and version.files == files:
            return version
        if version is not None and version.is_loaded and is_published:
            return version
        if version is not None and version.is_loaded:
            if number in self._before:  # no look has chosen this one
                _end_unserved(version)
            else:
                self._before[number] = version
        self.versions[number] = Version(number, files)
        return self.versions[number]

    def _get(self, version: Version) -> Version | None:
        """Return a version, loaded now if it is new; None if it can't be served."""
        number, served = version.number, self.served
        if version.state is State.FOUND:
            try:
                self._load(version)
            except ServingError as err:
                is_choice = not (self._wishes.is_pinned or self.path.is_file())
                if served is None and (isinstance(err, _NOT_THE_FILES) or not is_choice):
                    raise
                if may_pass(err):
                    self._passing = err
                default = "" if served is None else served.default_version
                self._say_refused(number, str(err), default)
        return version if version.is_loaded else self._before.get(number)

    def _load(self, version: Version) -> None:
        """Load a version, with its handler if it has one, and compare it with those that serve.

        Raises:
            ServingError: it can't be served, and is refused.
        """
        number, served = version.number, self.served
        own = self._own_files(number)
        with self._room.of(sum(size for _, _, size, _ in version.files)):
            new = version.load(_FolderLoading(self, number))
        try:
            self.check(new)
            # Of others their graphs were compared, by `unaccepted`.
            before = self._before.get(number)
            base = None if before is None or served is None else before.model
            if not new.is_as_its_graph and served is not None:
                base = served.default
            if base is not None and signature_of(new) != signature_of(base):
                raise CorruptModel(self._misfit(new))
        except ServingError as err:
            version.refuse(err)
            new.close()
            raise
        version.files = own | imported_states(new)

    def loading_of(self, number: str) -> Loading:
        """Return how a version's files are loaded."""
        served = self.served
        # The same device: a reload never moves to another one.
        device = self._config.device if served is None else served.default.device
        place = repository.only_file(self.path)
        options = self._wishes.options(
            place, self.name, device, self._max_batch_size, self._most_threads
        )
        return Loading(place, number, options)

    def with_handler(self, number: str, model: LoadedModel | None) -> LoadedModel:
        """Return a version with its handler around it, if it has one.

        Args:
            number: the version.
            model: None for a handler that is a model by itself.
        """
        handler = self._handler_of(number)
        if model is None:
            from serving.handlers.model import alone  # late: few models have a handler

            return alone(handler or HandlerSource(self.path), self.name, self._config)
        if number in self._unused_handlers:
            model = replace(model, batching=f"without its handler.py; {model.batching}")
        if handler is None:
            return model
        from serving.handlers.model import around  # late: few models have a handler

        folder = self.path.parent if self.path.is_file() else self.path / number
        return around(model, handler, self.name, folder, self._config)

    def require_handler(self, number: str) -> None:
        """Refuse a version whose handler is no file.

        Raises:
            ConfigurationError: it is none.
        """
        if (handler := self._handler_of(number)) is not None:
            handler.require_file()

    def _handler_of(self, number: str) -> HandlerSource | None:
        """Return the handler of a version; None if it has none, or one that may not be used."""
        file = self._wishes.handler_in(self.path, number)
        if file is None:
            return self._wishes.handler
        if not os.path.lexists(file):  # a folder that can't be read says so when it is loaded
            return None
        if self._wishes.may_have_handlers:
            return HandlerSource(file.absolute())
        if number not in self._unused_handlers:
            self._unused_handlers.add(number)
            _log.warning(
                "model %s version %s is served without its %s, which does not run: "
                "--allow-handlers lets it, as it is code",
                self.name,
                number,
                file.name,
            )
        return None

    def _own_files(self, number: str) -> Fingerprint:
        """Return the state of a version's files, and of its handler's."""
        found = fingerprint(self.path, number)
        return found if self.handler is None else found | states([self.handler.file])

    def _misfit(self, model: LoadedModel) -> str:
        assert self.served is not None
        return (
            f"version {model.version} has another signature ({signature_of(model)}) than the one "
            f"served ({signature_of(self.served.default)}): a restart would serve it"
        )

    def _arrange(self, chosen: dict[str, Version]) -> ModelVersions:
        """Choose the default and the canary, which answer callers that know one signature."""
        models = {number: version.model for number, version in chosen.items() if version.model}
        wishes, share = self._wishes, self._wishes.share
        named = dict(wishes.labels)
        newest = next((each for each in models if each not in self._unaccepted), next(iter(models)))
        default = named.get(STABLE, newest)
        first = signature_of(models[default])
        fitting = [number for number, model in models.items() if signature_of(model) == first]
        if wishes.canary:
            if len(fitting) > 1:
                named |= {CANARY: fitting[0], STABLE: fitting[1]}
                default, share = fitting[1], wishes.canary
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
        return ModelVersions(self.name, models, default, named, canary)


def _end_unserved(version: Version) -> None:
    """End a version that no caller has seen: nobody has taken its handler's process."""
    model = version.model
    if version.state is State.SERVING:
        version.leave()
    version.end()
    if model is not None:
        model.close()


class _FolderLoading:
    """Loads a version of a folder, with its handler: the `Steps` of a `Version`."""

    def __init__(self, folder: ModelFolder, number: str) -> None:
        self._folder, self._number = folder, number
        self._model: Loading | None = None
        self.loaded: LoadedModel

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        """Those of its model, if it has one, with the handler's start behind the last."""
        if self._folder.path.suffix == ".py":
            nothing = self._nothing
            return self._begin, nothing, nothing, self._end
        model = self._model = self._folder.loading_of(self._number)
        return partial(self._begin, model.read), model.judge, model.build, self._end

    def _begin(self, read: Callable[[], None] = lambda: None) -> None:
        self._folder.require_handler(self._number)
        read()

    def _nothing(self) -> None:
        """Do nothing: a handler alone has no file of a model."""

    def _end(self) -> None:
        model = None
        if self._model is not None:
            self._model.check()
            model = self._model.loaded
        self.loaded = self._folder.with_handler(self._number, model)
