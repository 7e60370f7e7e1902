"""A model that is ready to serve: read, verified, built, and checked.

With golden samples, the check is that they are answered correctly in any batch. Without, it finds
out whether rows can be batched.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

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
from serving.proof.onnx_fields import has_functions
from serving.proof.onnx_file import Message, cut_zip_maps, parse_model
from serving.system.libc import trim_memory
from serving.tensors import Feeds

_log = logging.getLogger(__name__)

_MAX_REASON = 300
"""Characters of an unexpected error: it becomes part of a log line."""
_BUILD_LIMIT_S = 60.0
"""Processor time for reading and building."""
_CHECK_LIMIT_S = 10.0
"""Processor time for the check: usually some 0.1 s, and 3 s where a run takes long."""
BATCH_LIMIT_FACTOR = 6.0
"""How many times these limits a batch job allows, which has no version to fall back on."""
_LARGE_BYTES = 4 << 20
"""A model of more leaves so much free memory behind that the kernel should have it back."""


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
    settings = settings_of(model_dir)
    if settings.ignored:
        _log.info(
            "model %s: %s: not used here: %s",
            name or model_dir.name,
            SETTINGS,
            ", ".join(settings.ignored),
        )
    settings = replace(settings, batching=batching or settings.batching)
    device = settings.device if device == "auto" and precision == "fp32" else device
    if settings.num_threads or num_threads > 1:
        most_threads = 1
    settings = replace(settings, num_threads=settings.num_threads or num_threads)
    limits = _Limits(max_batch_size, limit_factor, max_bytes, most_threads, tries_file)
    how = (device, precision, limits, is_described, settings, name)
    model_dir = repository.only_file(model_dir)
    if repository.is_file(model_dir):
        try:
            return _load_version(model_dir, version or repository.VERSION_OF_FILE, *how)
        except CorruptModel as err:
            raise CorruptModel(f"{model_dir.name}: {err}") from err
    if version is not None:
        return _load_version(model_dir, version, *how)
    failures = []
    for candidate, reason in _candidates(model_dir, precision, settings).items():
        if reason:
            _log.warning("skipped version %s: %s", candidate, reason)
            continue
        try:
            return _load_version(model_dir, candidate, *how)
        except (CorruptModel, ModelNotFound) as err:
            _log.warning("skipped version %s: %s", candidate, err)
            failures.append(f"{candidate} ({err})")
    raise CorruptModel(f"no version in {model_dir} is good: {'; '.join(failures)}")


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


class _Limits(NamedTuple):
    max_batch_size: int
    factor: float
    """How many times the usual time."""
    max_bytes: int
    most_threads: int
    """The threads of a run that is alone."""
    tries_file: bool
    """Whether a process of its own tries an unknown file first."""


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


def _load_version(
    model_dir: Path,
    version: str,
    device: Device,
    precision: Precision,
    limits: _Limits,
    is_described: bool,
    settings: ModelSettings,
    own_name: str,
) -> LoadedModel:
    name = f"{own_name or model_dir.name.removesuffix('.onnx')} version {version}"
    run_options = runtime().RunOptions()
    max_batch_size = min(limits.max_batch_size, settings.max_batch_size)
    build_s, check_s = limits.factor * _BUILD_LIMIT_S, limits.factor * _CHECK_LIMIT_S

    def read() -> _Files:
        manifest, onnx, weights = repository.load(
            model_dir,
            version,
            precision,
            settings.file_name,
            limits.max_bytes,
            is_described=is_described,
        )
        if own_name:
            manifest = replace(manifest, name=own_name)
        return _files_of(manifest, onnx, weights, precision)

    def tried() -> Verdict | None:
        """Return the verdict of a process that has tried the file first, if that is due."""
        images = files.manifest.golden_images
        file = file_trial.File(
            f"{files.manifest.name} version {version}",
            files.onnx,
            files.weights,
            files.digests,
            settings.session(device, precision),
            images if len(images) else None,
            build_s,
            check_s,
        )
        if file_trial.has_passed(file):
            return None
        needs_verdict = files.verdict is None and settings.batching != "never"
        found = file_trial.try_file(file, needs_verdict=needs_verdict)
        if found.verdict is not None and found.is_lasting:
            verdicts.keep(files.key, found.verdict)
        return found.verdict

    def build() -> tuple[OnnxEngine, LoadedModel]:
        manifest = source.manifest
        session = settings.session(device, precision)
        engine = open_engine(source.onnx, session, manifest.signature, run_options, source.weights)
        engine.has_bounded_time = has_bounded_time(source.onnx)
        settings.require(engine.tensors)
        facts = source.onnx, engine.tensors, source.labels
        model = LoadedModel(
            engine,
            manifest,
            precision,
            is_proved=verdict.obstacle is None,
            output_step=output_step(source.onnx),
            verdict_key=source.key,
            settings=settings,
            labels=source.labels,
            answers=None if manifest.signature else find_answers(*facts),
        )
        return engine, model

    def check_golden() -> LoadedModel:
        """Compare the golden calls' answers, and forget them."""
        assert model.manifest.golden is not None
        acceptance.check_golden(model.run, engine.tensors, model.manifest.golden)
        return replace(model, manifest=replace(model.manifest, golden=None))

    def check() -> LoadedModel:
        if model.manifest.golden_probabilities:
            return _check_golden(model, max_batch_size, verdict, limits.most_threads)

        key = trial.key_of(source.key, engine.settings, engine.device, max_batch_size)
        found = trial.try_rows(
            model.run,
            engine.tensors,
            max_batch_size,
            obstacle=verdict.obstacle,
            mode=settings.batching,
            known=verdicts.kept(key),
        )
        if found.verdict is not None:
            verdicts.keep(key, found.verdict)
        engine.tensors = found.tensors
        line = f"{found.line}, {verdict.remark}" if verdict.remark else found.line
        return _timed(model, found.feeds, max_batch_size, line, limits.most_threads)

    try:
        slow = partial(note_slow, name, "reading", build_s)
        files = within(build_s, read, on_slow=slow)
        if limits.tries_file and not files.is_bundled:
            files = files._replace(verdict=tried() or files.verdict)
        source = within(build_s, partial(_source_of, files), on_slow=slow)
        files = files._replace(onnx=b"", weights={})
        verdict = source.verdict or _judge(source, settings.batching, build_s, check_s)
        source = _served(source, is_proved=verdict.obstacle is None)
        slow = partial(note_slow, name, "building the session", build_s)
        engine, model = within(build_s, build, on_slow=slow)
        if model.manifest.golden is not None:
            slow = partial(note_slow, name, "the check of its golden calls", check_s)
            model = within(check_s, check_golden, on_slow=slow)
        try:
            model = within(check_s, check, on_slow=partial(note_slow, name, "the check", check_s))
        except TimeoutError:
            if model.manifest.golden_probabilities:
                raise
            engine.end_runs()
            line = f"batching off: drawn inputs take more than {check_s:g} s"
            model = replace(model, batching=line)
        if not engine.has_bounded_time:
            model = replace(model, inline_rows=0)
        for each in (engine, model.engine):
            if isinstance(each, OnnxEngine):
                each.drop_source()
        num_bytes = len(source.onnx) + sum(map(len, source.weights.values()))
        source = source._replace(onnx=b"", weights={})
        if num_bytes > _LARGE_BYTES:
            trim_memory()  # the file, other sessions, tensors of the check: several times as much
    except BaseException as err:
        run_options.terminate = True  # ends a run in progress
        failure = _failure(version, err)
        if failure is err:
            raise
        raise failure from err
    is_alone = model.settings.max_batch_size == 1 < max_batch_size
    if not model.manifest.golden_probabilities or is_alone:
        level = logging.WARNING if is_alone or settings.batching == "always" else logging.INFO
        _log.log(level, "model %s version %s: %s", model.manifest.name, version, model.batching)
    return replace(model, manifest=_described(model, model_dir))


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
    if found is not None and b"ZipMap" not in onnx and not has_functions(onnx):
        return _Source(manifest, onnx, weights, labels_of(onnx), None, files.key, found)

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
    model: LoadedModel, max_batch_size: int, verdict: Verdict, most_threads: int
) -> LoadedModel:
    """Check a classifier, whose images are run one by one if they are not proved independent."""
    images, expected = model.manifest.golden_images, model.manifest.golden_probabilities
    mode, obstacle = model.settings.batching, verdict.obstacle
    most = 1 if mode == "never" or (obstacle and mode == "auto") else max_batch_size
    acceptance.check(model.classify, images, expected[model.precision], most)
    line = line_of(obstacle, mode)
    feeds = {model.tensors.inputs[0].name: np.zeros_like(images[:1])}
    settings = replace(model.settings, max_batch_size=most)
    return replace(_timed(model, feeds, most, line, most_threads), settings=settings)


def _timed(
    model: LoadedModel, feeds: Feeds | None, max_batch_size: int, line: str, most_threads: int
) -> LoadedModel:
    """Return the model with what its runs show: their times, memory and use of several cores."""
    most = min(max_batch_size, model.settings.max_batch_size)
    engine, is_free = model.engine, model.settings.keeps_memory is None
    if (
        isinstance(engine, OnnxEngine)
        and is_free
        and remaps_memory(model.run, model.tensors, feeds, most)
    ):
        engine = engine.keeping_memory()
        model = replace(model, engine=engine)
    if isinstance(engine, OnnxEngine) and engine.device == "cpu" and feeds and most_threads > 1:
        usual = usual_feeds(model.run, model.tensors, feeds)
        label = model.manifest.name, model.version
        has_many = model.tensors.is_batchable and most >= MANY_ROWS
        many = take(usual, [0] * MANY_ROWS) if has_many else None
        engine.wide = gains(label, model.run, partial(engine.widened, most_threads), usual, many)
    quick, enough = find_rows(model.run, model.tensors, feeds, max_batch_size)
    shapes = {name: array.shape for name, array in (feeds or {}).items()}
    return replace(
        model, inline_rows=quick, enough_rows=enough, batching=line, sample_shapes=shapes
    )
