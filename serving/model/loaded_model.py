"""A model that is ready to serve: read, verified, built, and checked on its golden samples."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving.config import BatchingConfig, Device, Precision
from serving.errors import CorruptModel, ModelNotFound
from serving.images import Images
from serving.model import acceptance, repository
from serving.model.fork_safety import native_run
from serving.model.loader_thread import within
from serving.model.manifest import Manifest
from serving.predictions import Probabilities
from serving.signature import Signature

if TYPE_CHECKING:
    from serving.model.engine import Engine  # loads ONNX Runtime, which a supervisor doesn't need

_log = logging.getLogger(__name__)

_BUILD_LIMIT_S = 60.0
"""Processor time for reading and building."""
_CHECK_LIMIT_S = 10.0
"""Processor time for the check: usually some 0.1 s, and 3 s where a run takes long."""
BATCH_LIMIT_FACTOR = 6.0
"""How many times these limits a batch job allows, which has no version to fall back on."""
ENOUGH_IMAGES = 128
"""The least images that are worth their own run on another core: in larger runs each is hardly
cheaper."""
_ENOUGH_S = 0.0004
"""How long a run takes at least that is worth it: starting a thread, and waking a core, take some
100 µs."""
_NUM_TIMED = 3
_QUICK_S = 0.002
"""The longest run on the thread that reads from all callers."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A version that has answered its golden samples correctly."""

    engine: "Engine"
    manifest: Manifest
    precision: Precision
    quick_images: int = 0
    """The most images of a run that is quick enough for the thread that reads from all callers."""
    enough_images: int = ENOUGH_IMAGES
    """Images that are worth their own run on another core."""

    @property
    def version(self) -> str:
        """The version named in every answer, such as "3"."""
        return self.manifest.version

    @property
    def signature(self) -> Signature:
        """The shape of its images, and its classes."""
        return self.manifest.signature

    @property
    def device(self) -> Device:
        """The device that it runs on: "cpu" or "cuda"."""
        return self.engine.device

    def run(self, images: Images) -> Probabilities:
        """See `Engine.run`."""
        # On one line, so that the lock is released even if a trace function raises (debuggers,
        # coverage, tests): these run between lines.
        with native_run(): return self.engine.run(images)  # noqa: E701  # fmt: skip


def load_model(
    model_dir: Path,
    version: str | None = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    max_batch_size: int = BatchingConfig().max_batch_size,
    limit_factor: float = 1.0,
) -> LoadedModel:
    """Read, verify, build and check one version; this warms up the batch sizes that it checks.

    Reading and building may take 60 s of processor time, the check 10 s, and a step that takes none
    for a minute hangs. It is left behind on a daemon thread.

    Args:
        model_dir: the model's directory, such as models/digits.
        version: the version; None for the newest good one. A corrupt version is skipped with a
            warning.
        device: "auto", "cpu" or "cuda".
        precision: "fp32" or "int8"; int8 runs on the CPU only, which is what "auto" means for it.
        max_batch_size: the most images in one run.
        limit_factor: how many times these limits the steps may take.

    Raises:
        ModelNotFound: no such version.
        CorruptModel: the requested version, or every version, is damaged, answers wrongly, or
            takes too long.
        DeviceError: the device can't be used.
        ConfigurationError: the version has no such variant, or int8 was requested on CUDA.
    """
    how = (device, precision, max_batch_size, limit_factor)
    if version is not None:
        return _load_version(model_dir, version, *how)
    failures = []
    for candidate in repository.versions(model_dir):
        try:
            return _load_version(model_dir, candidate, *how)
        except (CorruptModel, ModelNotFound) as err:
            _log.warning("skipped version %s: %s", candidate, err)
            failures.append(f"{candidate} ({err})")
    raise CorruptModel(f"no version in {model_dir} is good: {'; '.join(failures)}")


def _load_version(
    model_dir: Path, version: str, device: Device, precision: Precision, max_batch_size: int,
    limit_factor: float,
) -> LoadedModel:  # fmt: skip
    from serving.model.engine import open_engine
    from serving.model.onnx_runtime import onnxruntime

    run_options = onnxruntime.RunOptions()

    def build() -> LoadedModel:
        manifest, onnx = repository.load(model_dir, version, precision)
        engine = open_engine(onnx, manifest.signature, device, precision, run_options)
        return LoadedModel(engine, manifest, precision)

    def check() -> tuple[int, int]:
        manifest = model.manifest
        expected = manifest.golden_probabilities[precision]
        acceptance.check(model.run, manifest.golden_images, expected, max_batch_size)
        return _quick_images(model, max_batch_size), _enough_images(model, max_batch_size)

    try:
        model = within(limit_factor * _BUILD_LIMIT_S, build)
        quick_images, enough_images = within(limit_factor * _CHECK_LIMIT_S, check)
    except BaseException as err:
        run_options.terminate = True  # ends a run in progress
        if isinstance(err, acceptance.Unfit | TimeoutError):
            raise CorruptModel(f"version {version} {err}") from err
        raise
    return replace(model, quick_images=quick_images, enough_images=enough_images)


def _quick_images(model: LoadedModel, max_batch_size: int) -> int:
    """Measure how many images can be run within `_QUICK_S`; 0 if not even one."""
    quick = 0
    for size in (1, 32, 128, 256, 512, max_batch_size):
        if size > max_batch_size or size <= quick:
            continue
        if not _is_quick(model, np.zeros((size, model.signature.image_bytes), np.uint8)):
            break
        quick = size
    return quick


def _enough_images(model: LoadedModel, max_batch_size: int) -> int:
    """Measure how many images take `_ENOUGH_S`, where `ENOUGH_IMAGES` take less."""
    size = min(ENOUGH_IMAGES, max_batch_size)
    images = np.zeros((size, model.signature.image_bytes), np.uint8)
    times: list[float] = []
    while len(times) < _NUM_TIMED and sum(times) < _QUICK_S:
        begin_s = time.monotonic()
        model.run(images)
        times.append(time.monotonic() - begin_s)
    return max(ENOUGH_IMAGES, int(size * _ENOUGH_S / max(min(times), 1e-9)))


def _is_quick(model: LoadedModel, images: Images) -> bool:
    """Return whether one of five runs takes `_QUICK_S` at most; two if those are slower."""
    first_s = time.thread_time()
    for _ in range(5):
        begin_s = time.monotonic()
        model.run(images)
        if time.monotonic() - begin_s <= _QUICK_S:
            return True
        if time.thread_time() - first_s > 2 * _QUICK_S:  # others' work may take no processor time
            break
    return False
