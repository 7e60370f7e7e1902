"""A model that is ready to serve: read, verified, built, and checked.

With golden samples, the check is that they are answered correctly in any batch. Without, it finds
out whether rows can be batched.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from serving.applications import MODELS, installed
from serving.config import BatchingConfig, BatchingMode, Device, Precision
from serving.errors import ConfigurationError, CorruptModel, ModelNotFound, ServingError
from serving.model import acceptance, file_trial, repository, trial, verdicts
from serving.model.answers import find_answers, labels_of
from serving.model.engine import OnnxEngine, open_engine
from serving.model.loaded import LoadedModel
from serving.model.manifest import FILES, MANIFEST, Manifest, Unfit
from serving.model.memory import remaps_memory
from serving.model.onnx_runtime import runtime
from serving.model.picture_inputs import described
from serving.model.quantised import output_step
from serving.model.repository import CLASSIFIER
from serving.model.settings import NO_SETTINGS, SETTINGS, ModelSettings
from serving.model.settings_file import read_settings
from serving.model.signatures import find_signature, unaccepted
from serving.model.time_limit import note_slow, within
from serving.model.timing import find_rows, has_bounded_time
from serving.model.verdicts import Verdict, line_of
from serving.model.version_labels import STABLE, read_labels
from serving.model.wide import MANY_ROWS, gains, usual_feeds
from serving.proof.drawn_inputs import take
from serving.proof.onnx_fields import has_functions, outline
from serving.proof.onnx_file import Message, cut_zip_maps, parse_model
from serving.system.libc import trim_memory
from serving.tensors import Feeds

_log = logging.getLogger(__name__)
_Found = TypeVar("_Found")

_MAX_REASON = 300
"""Characters of an unexpected error: it becomes part of a log line."""
_BUILD_LIMIT_S = 60.0
"""Processor time for reading and building."""
_CHECK_LIMIT_S = 10.0
"""Processor time for the check: usually some 0.1 s, and 3 s where a run takes long."""
BATCH_LIMIT_FACTOR = 6.0
"""How many times these limits a batch job allows, which has no version to fall back on."""
_MEASURES = "model/memory.py", "model/wide.py", "model/engine.py", "model/onnx_runtime.py"
"""What finds whether a model remaps memory, and whether it gains by several threads."""
_GOLDEN_CALLS = "the check of its golden calls"
_LARGE_BYTES = 4 << 20
"""A model of more leaves so much free memory behind that the kernel should have it back."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a version is loaded; see `load_model`."""

    device: Device = "auto"
    precision: Precision = "fp32"
    settings: ModelSettings = NO_SETTINGS
    """The model's own, in which the options of who loads it have been put."""
    max_batch_size: int = BatchingConfig().max_batch_size
    limit_factor: float = 1.0
    is_described: bool = False
    max_bytes: int = repository.MAX_BYTES
    most_threads: int = 1
    tries_file: bool = False
    name: str = ""

    @property
    def build_s(self) -> float:
        """Processor time for reading, and for building."""
        return self.limit_factor * _BUILD_LIMIT_S

    @property
    def check_s(self) -> float:
        """Processor time for the check."""
        return self.limit_factor * _CHECK_LIMIT_S


def load_model(
    model_dir: Path,
    version: str | None = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    max_batch_size: int = BatchingConfig().max_batch_size,
    limit_factor: float = 1.0,
    *,
    is_described: bool = False,
    batching: BatchingMode | None = None,
    max_bytes: int = repository.MAX_BYTES,
    num_threads: int = 1,
    most_threads: int = 1,
    tries_file: bool = False,
    name: str = "",
) -> LoadedModel:
    """Read, verify, build and check one version; this warms up the batch sizes that it checks.

    Reading and building may take 60 s of processor time, the check 10 s, and a step that takes none
    for a minute hangs. It is left behind on a daemon thread.

    Args:
        model_dir: the model's directory, such as models/iris, or an ONNX file.
        version: the version; None for the one that a server answers with: the one labelled
            stable, else the newest good one, of those that the model's settings name if they name
            some. A corrupt version is skipped with a warning, and so is one whose signature is
            another than that of the versions below it; see `signatures`.
        device: "auto", "cpu" or "cuda".
        precision: "fp32" or "int8"; int8 runs on the CPU only, which "auto" means for it.
        max_batch_size: the most rows in one run.
        limit_factor: how many times these limits the steps may take.
        is_described: whether a version needs a manifest; one without is corrupt.
        batching: auto, always or never; None for the model's own setting.
        max_bytes: the most of its files.
        num_threads: threads of one run, where the model's settings do not say.
        most_threads: those of a run that is alone, where that is measured to be faster and
            neither the settings nor `num_threads` say more than one.
        tries_file: whether a file that has not passed before is tried first by a process of its
            own, which it may end in place of this one; see `file_trial`.
        name: the model's name for callers, in log lines too; empty for that of its files.

    Raises:
        ModelNotFound: no such version.
        CorruptModel: the requested version, or every version, is damaged, answers wrongly, or
            takes too long.
        DeviceError: the device can't be used.
        ConfigurationError: the version has no such variant, int8 was requested on CUDA, or the
            model's settings can't be used.
    """
    if model_dir.is_file() and not repository.is_file(model_dir):
        raise ConfigurationError(repository.NO_ONNX_FILE.format(model_dir))
    options = LoadOptions(
        device=device,
        precision=precision,
        settings=settings_of(model_dir),
        max_batch_size=max_batch_size,
        limit_factor=limit_factor,
        is_described=is_described,
        max_bytes=max_bytes,
        most_threads=most_threads,
        tries_file=tries_file,
        name=name,
    )
    options = settled(options, model_dir, batching, num_threads)
    model_dir = repository.only_file(model_dir)
    if repository.is_file(model_dir):
        return Loading(model_dir, version or repository.VERSION_OF_FILE, options).load()
    if version is not None:
        return Loading(model_dir, version, options).load()
    failures = []
    for candidate, reason in _candidates(model_dir, precision, options.settings).items():
        if reason:
            _log.warning("skipped version %s: %s", candidate, reason)
            continue
        try:
            return Loading(model_dir, candidate, options).load()
        except (CorruptModel, ModelNotFound) as err:
            _log.warning("skipped version %s: %s", candidate, err)
            failures.append(f"{candidate} ({err})")
    raise CorruptModel(f"no version in {model_dir} is good: {'; '.join(failures)}")


def settled(
    options: LoadOptions, model_dir: Path, batching: BatchingMode | None, num_threads: int
) -> LoadOptions:
    """Return options in which the model's own settings and the caller's have been put together.

    Args:
        options: with the model's own settings.
        model_dir: the model's folder, or an ONNX file.
        batching: auto, always or never; None for the model's own setting.
        num_threads: threads of one run, where the model's settings do not say.
    """
    settings, device = options.settings, options.device
    if settings.ignored:
        _log.info(
            "model %s: %s: not used here: %s",
            options.name or model_dir.name,
            SETTINGS,
            ", ".join(settings.ignored),
        )
    is_usual = device == "auto" and options.precision == "fp32"
    has_threads = settings.num_threads or num_threads > 1
    return replace(
        options,
        device=settings.device if is_usual else device,
        most_threads=1 if has_threads else options.most_threads,
        settings=replace(
            settings,
            batching=batching or settings.batching,
            num_threads=settings.num_threads or num_threads,
        ),
    )


def _candidates(model_dir: Path, precision: Precision, settings: ModelSettings) -> dict[str, str]:
    """Return the versions to try if none is named, in order, as a server chooses its default.

    Returns:
        By version the reason why it is not to be taken; empty for those that may be.
    """
    if (stable := read_labels(model_dir)[0].get(STABLE)) is not None:
        return {stable: ""}
    if settings.versions not in (None, "latest", "all"):
        return dict.fromkeys(sorted(set(settings.versions.split(",")), key=int, reverse=True), "")
    found = repository.versions(model_dir)
    if len(found) == 1:
        return {found[0]: ""}

    read = partial(find_signature, model_dir, precision=precision, file_name=settings.file_name)
    reasons = unaccepted(model_dir, found, read)
    return {version: reasons.get(version, "") for version in found}


def settings_of(model_dir: Path) -> ModelSettings:
    """Return a model's own settings; see `read_settings`."""
    file = repository.companion(model_dir, SETTINGS)
    if file is None or not os.path.lexists(file):
        return NO_SETTINGS

    return read_settings(model_dir)


def _described(model: LoadedModel, model_dir: Path) -> Manifest:
    """Return the description of a version, with the `classifier.json` for its pictures."""
    file = repository.companion(model_dir, CLASSIFIER)
    if file is None or not file.exists():
        return model.manifest

    return described(file, model.manifest, model.tensors)


class _Files(NamedTuple):
    """A version as it is in its files."""

    manifest: Manifest
    onnx: bytes
    weights: Mapping[str, bytes]
    digests: tuple[str, ...]
    """SHA-256 of the model's file, and of those with weights."""
    key: str
    """The name of the verdict on it."""
    verdict: Verdict | None
    """Whether its rows are independent, if that is known from an earlier start."""
    is_bundled: bool
    """Whether it came with an installed application, and was proved with these rules."""


class _Source(NamedTuple):
    """A version that was read."""

    manifest: Manifest
    onnx: bytes
    weights: Mapping[str, bytes]
    labels: tuple[str, ...]
    """The classes of an output that the graph makes a dictionary of, or that the file names."""
    proto: Message | None
    """The ModelProto; None where it is not needed any more, since it takes as much as the file."""
    key: str
    """The name of the verdict on it."""
    verdict: Verdict | None
    """Whether its rows are independent, if that is known."""


class Loading:
    """One version on its way: a step for each state that it enters.

        read ──▶ judge ──▶ build ──▶ check ──▶ a `LoadedModel`

    A step that fails ends the runs that go on, and raises what its callers expect. Steps are called
    once each, in this order.
    """

    def __init__(self, place: Path, version: str, options: LoadOptions) -> None:
        """Do nothing yet.

        Args:
            place: the model's folder, or an ONNX file.
            version: its number.
            options: how it is loaded.
        """
        self._place, self._version, self._options = place, version, options
        shown = options.name or place.name.removesuffix(".onnx")
        self._label = f"{shown} version {version}"
        self._run_options = runtime().RunOptions()
        self._max_batch_size = min(options.max_batch_size, options.settings.max_batch_size)
        self._files: _Files
        self._source: _Source
        self._verdict: Verdict
        self._engine: OnnxEngine
        self._model: LoadedModel

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        """The steps, in their order; `loaded` returns the model after the last one."""
        return self.read, self.judge, self.build, self.check

    def load(self) -> LoadedModel:
        """Do all steps.

        Raises:
            ServingError: see `load_model`.
        """
        for step in self.steps:
            step()
        return self.loaded

    @property
    def loaded(self) -> LoadedModel:
        """The version, once it is checked."""
        return self._model

    def read(self) -> None:
        """Read its files, and verify their digests."""
        self._within(self._options.build_s, self._read, "reading")

    def judge(self) -> None:
        """Have an unknown file tried by a process of its own, and find whether rows mix."""
        with self._ending_runs():
            options, files = self._options, self._files
            if options.tries_file and not files.is_bundled:
                files = files._replace(verdict=self._tried() or files.verdict)
        source = self._within(options.build_s, partial(_source_of, files), "reading")
        self._files = files._replace(onnx=b"", weights={})
        with self._ending_runs():
            mode, limits = options.settings.batching, (options.build_s, options.check_s)
            self._verdict = source.verdict or _judge(source, mode, *limits)
            self._source = _served(source, is_proved=self._verdict.obstacle is None)

    def build(self) -> None:
        """Build its session."""
        self._within(self._options.build_s, self._build, "building the session")

    def check(self) -> None:
        """Compare its answers with its golden samples, or find how rows are run; and time it."""
        with self._ending_runs():
            if self._model.manifest.golden is not None:
                slow = partial(note_slow, self._label, _GOLDEN_CALLS, self._options.check_s)
                self._model = within(self._options.check_s, self._compared, on_slow=slow)
            slow = partial(note_slow, self._label, "the check", self._options.check_s)
            try:
                self._model = within(self._options.check_s, self._checked, on_slow=slow)
            except TimeoutError:
                if self._model.manifest.golden_probabilities:
                    raise
                self._engine.end_runs()
                line = f"batching off: drawn inputs take more than {self._options.check_s:g} s"
                self._model = replace(self._model, batching=line)
            self._finish()

    def _read(self) -> None:
        options = self._options
        manifest, onnx, weights = repository.load(
            self._place,
            self._version,
            options.precision,
            options.settings.file_name,
            options.max_bytes,
            is_described=options.is_described,
        )
        if options.name:
            manifest = replace(manifest, name=options.name)
        self._files = _files_of(manifest, onnx, weights, options.precision)

    def _tried(self) -> Verdict | None:
        """Return the verdict of a process that has tried the file first, if that is due."""
        files, options = self._files, self._options
        images = files.manifest.golden_images
        file = file_trial.File(
            f"{files.manifest.name} version {self._version}",
            files.onnx,
            files.weights,
            files.digests,
            options.settings.session(options.device, options.precision),
            images if len(images) else None,
            options.build_s,
            options.check_s,
        )
        if file_trial.has_passed(file):
            return None
        needs_verdict = files.verdict is None and options.settings.batching != "never"
        found = file_trial.try_file(file, needs_verdict=needs_verdict)
        if found.verdict is not None and found.is_lasting:
            verdicts.keep(files.key, found.verdict)
        return found.verdict

    def _build(self) -> None:
        source, options = self._source, self._options
        settings, manifest = options.settings, source.manifest
        session = settings.session(options.device, options.precision)
        engine = open_engine(
            source.onnx, session, manifest.signature, self._run_options, source.weights
        )
        shown = outline(source.onnx)
        engine.has_bounded_time = has_bounded_time(shown)
        settings.require(engine.tensors)
        facts = shown, engine.tensors, source.labels
        self._engine = engine
        self._model = LoadedModel(
            engine,
            manifest,
            options.precision,
            is_proved=self._verdict.obstacle is None,
            output_step=output_step(shown),
            verdict_key=source.key,
            settings=settings,
            labels=source.labels,
            answers=None if manifest.signature else find_answers(*facts),
        )

    def _compared(self) -> LoadedModel:
        """Compare its answers with its golden calls, and forget them."""
        model, golden = self._model, self._model.manifest.golden
        assert golden is not None
        acceptance.check_golden(model.run, self._engine.tensors, golden)
        return replace(model, manifest=replace(model.manifest, golden=None))

    def _checked(self) -> LoadedModel:
        model, engine, verdict = self._model, self._engine, self._verdict
        most, most_threads = self._max_batch_size, self._options.most_threads
        key = trial.key_of(self._source.key, engine.settings, engine.device, most)
        if model.manifest.golden_probabilities:
            return _check_golden(model, most, verdict, most_threads, key)

        found = trial.try_rows(
            model.run,
            engine.tensors,
            most,
            obstacle=verdict.obstacle,
            mode=model.settings.batching,
            known=verdicts.kept(key),
        )
        if found.verdict is not None:
            verdicts.keep(key, found.verdict)
        engine.tensors = found.tensors
        line = f"{found.line}, {verdict.remark}" if verdict.remark else found.line
        return _timed(model, found.feeds, most, line, most_threads, key)

    def _finish(self) -> None:
        """Let go of the files, and say how calls are run."""
        model, engine, source = self._model, self._engine, self._source
        if not engine.has_bounded_time:
            model = replace(model, inline_rows=0)
        for each in (engine, model.engine):
            if isinstance(each, OnnxEngine):
                each.drop_source()
        num_bytes = len(source.onnx) + sum(map(len, source.weights.values()))
        self._source = source._replace(onnx=b"", weights={})
        if num_bytes > _LARGE_BYTES:
            del source
            trim_memory()  # the file, other sessions, tensors of the check: several times as much
        name, mode = model.manifest.name, model.settings.batching
        is_alone = model.settings.max_batch_size == 1 < self._max_batch_size
        if not model.manifest.golden_probabilities or is_alone:
            level = logging.WARNING if is_alone or mode == "always" else logging.INFO
            _log.log(level, "model %s version %s: %s", name, model.version, model.batching)
        self._model = replace(model, manifest=_described(model, self._place))

    def _within(self, limit_s: float, work: Callable[[], _Found], doing: str) -> _Found:
        """Do work in so much processor time; what fails is as its callers expect it."""
        with self._ending_runs():
            slow = partial(note_slow, self._label, doing, limit_s)
            return within(limit_s, work, on_slow=slow)

    @contextmanager
    def _ending_runs(self) -> Iterator[None]:
        """End the runs that go on if a step fails, and raise what its callers expect."""
        try:
            yield
        except BaseException as err:
            self._run_options.terminate = True
            failure = _failure(self._version, err)
            if isinstance(failure, CorruptModel) and repository.is_file(self._place):
                failure = CorruptModel(f"{self._place.name}: {failure}")
            if failure is err:
                raise
            raise failure from err


def _files_of(
    manifest: Manifest, onnx: bytes, weights: Mapping[str, bytes], precision: Precision
) -> _Files:
    if manifest.unknown:
        unknown = ", ".join(manifest.unknown)[:_MAX_REASON]
        _log.warning(
            "model %s version %s: %s: not known here: %s",
            manifest.name,
            manifest.version,
            MANIFEST,
            unknown,
        )
    digest = manifest.digests[FILES[precision]]
    others = {name: manifest.digests[name] for name in weights}
    key = verdicts.key_of(digest, others)
    # A manifest is as much a stranger's as its model: only that of the installed package counts.
    bundled = _bundled_verdicts().get(digest) if manifest.verdicts else None
    digests = digest, *others.values()
    found = verdicts.kept(key) or bundled
    return _Files(manifest, onnx, weights, digests, key, found, bundled is not None)


@cache
def _bundled_verdicts() -> Mapping[str, Verdict]:
    """Return the verdicts on the models of installed applications, by the files' digests."""
    found: dict[str, Verdict] = {}
    for name, root in installed(MODELS).items():
        for version in repository.versions(root / name):
            manifest = repository.load_manifest(root / name / version)
            found |= {manifest.digests[file]: each for file, each in manifest.verdicts.items()}
    return found


def _source_of(files: _Files) -> _Source:
    manifest, onnx, weights, found = files.manifest, files.onnx, files.weights, files.verdict
    shown = outline(onnx)
    if found is not None and b"ZipMap" not in shown and not has_functions(shown):
        return _Source(manifest, onnx, weights, labels_of(shown), None, files.key, found)

    graph = parse_model(onnx)
    labels = cut_zip_maps(graph)
    if labels is not None:
        onnx = graph.SerializeToString()
    return _Source(manifest, onnx, weights, labels or labels_of(onnx), graph, files.key, found)


def _served(source: _Source, *, is_proved: bool) -> _Source:
    """Return a version as it is built: without functions, if it was proved so; no ModelProto.

    ONNX Runtime will need the memory.
    """
    if source.proto is not None and is_proved and source.proto.functions:
        from serving.model.judging import served  # late: the proof; few models have functions

        source = source._replace(onnx=served(source.proto, source.onnx, is_proved=True))
    return source._replace(proto=None)


def _judge(source: _Source, mode: BatchingMode, build_s: float, check_s: float) -> Verdict:
    """Find out whether rows are independent, and keep the verdict, unless the time was too short.

    Args:
        source: the version.
        mode: the operator's setting; never needs no verdict.
        build_s: processor time for the proof and the session of its check.
        check_s: processor time for the runs of the check.
    """
    if mode == "never":
        return Verdict("the operator's setting")
    from serving.model import judging  # late: the proof; few starts find no verdict

    name = f"{source.manifest.name} version {source.manifest.version}"
    assert source.proto is not None
    images = source.manifest.golden_images
    samples = judging.samples_of(source.proto, images if len(images) else None)
    facts = source.proto, source.onnx, source.weights, samples, build_s, check_s
    try:
        found = judging.within_limits(name, *facts)
    except TimeoutError as err:
        return Verdict(str(err))
    verdicts.keep(source.key, found)
    return found


def _failure(version: str, err: BaseException) -> BaseException:
    """Return what a version that can't be loaded raises."""
    if isinstance(err, Unfit | TimeoutError):
        return CorruptModel(f"version {version} {err}")
    if isinstance(err, Exception) and not isinstance(err, ServingError):
        # A file of others: parsers and ONNX Runtime raise anything; other versions survive it.
        reason = f"{type(err).__name__}: {err}"[:_MAX_REASON]
        return CorruptModel(f"version {version} can't be loaded: {reason}")
    return err


def _check_golden(
    model: LoadedModel, max_batch_size: int, verdict: Verdict, most_threads: int, key: str
) -> LoadedModel:
    """Check a classifier, whose images are run one by one if they are not proved independent."""
    images, expected = model.manifest.golden_images, model.manifest.golden_probabilities
    mode, obstacle = model.settings.batching, verdict.obstacle
    most = 1 if mode == "never" or (obstacle and mode == "auto") else max_batch_size
    acceptance.check(model.classify, images, expected[model.precision], most)
    line = line_of(obstacle, mode)
    feeds = {model.tensors.inputs[0].name: np.zeros_like(images[:1])}
    settings = replace(model.settings, max_batch_size=most)
    return replace(_timed(model, feeds, most, line, most_threads, key), settings=settings)


def _timed(
    model: LoadedModel,
    feeds: Feeds | None,
    max_batch_size: int,
    line: str,
    most_threads: int,
    key: str,
) -> LoadedModel:
    """Return the model with what its runs show: their times, memory and use of several cores.

    That it remaps memory or gains by several threads is kept for later starts, times are not.
    """
    most = min(max_batch_size, model.settings.max_batch_size)
    engine, is_free = model.engine, model.settings.keeps_memory is None
    remaps = partial(remaps_memory, model.run, model.tensors, feeds, most)
    if isinstance(engine, OnnxEngine) and is_free and _kept(key, "remaps memory", remaps):
        engine = engine.keeping_memory()
        model = replace(model, engine=engine)
    if isinstance(engine, OnnxEngine) and engine.device == "cpu" and feeds and most_threads > 1:
        usual = usual_feeds(model.run, model.tensors, feeds)
        label = model.manifest.name, model.version
        has_many = model.tensors.is_batchable and most >= MANY_ROWS
        many = take(usual, [0] * MANY_ROWS) if has_many else None

        def has_gained() -> bool:
            widen = partial(engine.widened, most_threads)
            engine.wide = gains(label, model.run, widen, usual, many)
            return engine.wide is not None

        if _kept(key, f"gains by {most_threads} threads", has_gained) and engine.wide is None:
            engine.wide = engine.widened(most_threads)
            engine.wide.run(many or usual)  # the first one reserves memory
    quick, enough = find_rows(model.run, model.tensors, feeds, max_batch_size)
    shapes = {name: array.shape for name, array in (feeds or {}).items()}
    return replace(
        model, inline_rows=quick, enough_rows=enough, batching=line, sample_shapes=shapes
    )


def _kept(key: str, fact: str, find: Callable[[], bool]) -> bool:
    """Return whether something is true of a model, as an earlier start found it, or find it now.

    What is not so is found again: the machine may have been busy.

    Args:
        key: the model's, with all that the fact rests on but for the code that finds it.
        fact: its name.
        find: finds it out.
    """
    name = verdicts.name_of(key, fact, verdicts.sources_version(*_MEASURES))
    if verdicts.kept(name) is not None:
        return True
    is_true = find()
    if is_true:
        verdicts.keep(name, Verdict(None, fact))
    return is_true
