"""A model that is ready to serve: read, verified, built, and checked on its golden samples."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from serving.config import BatchingConfig, Device, Precision
from serving.errors import CorruptModel, ModelNotFound
from serving.images import Images
from serving.model import acceptance, repository
from serving.model.fork_safety import native_run
from serving.model.manifest import Manifest
from serving.predictions import Probabilities
from serving.signature import Signature

if TYPE_CHECKING:
    from serving.model.engine import Engine  # loads ONNX Runtime, which a supervisor doesn't need

_log = logging.getLogger(__name__)

_BUILD_LIMIT_S = 60.0
"""Limit for reading and building; CUDA's libraries may come from a slow disk."""
_CHECK_LIMIT_S = 10.0
"""Limit for the golden samples, in batches of every size: usually some milliseconds."""
_QUICK_S = 0.002
"""The longest run on the thread that reads from all callers."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A version that has answered its golden samples correctly."""

    engine: "Engine"
    manifest: Manifest
    precision: Precision
    quick_images: int = 0
    """The most images of a run that is quick enough for the thread that reads from all callers."""

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
) -> LoadedModel:
    """Read, verify, build and check one version; this warms up every batch size.

    Never takes longer than its limits: a step that hangs is left behind on a daemon thread.

    Args:
        model_dir: the model's directory, such as models/digits.
        version: the version; None for the newest good one. A corrupt version is skipped with a
            warning.
        device: "auto", "cpu" or "cuda".
        precision: "fp32" or "int8"; int8 runs on the CPU only, which is what "auto" means for it.
        max_batch_size: the most images in one run.

    Raises:
        ModelNotFound: no such version.
        CorruptModel: the requested version, or every version, is damaged, answers wrongly, or
            takes too long.
        DeviceError: the device can't be used.
        ConfigurationError: the version has no such variant, or int8 was requested on CUDA.
    """
    if version is not None:
        return _load_version(model_dir, version, device, precision, max_batch_size)
    failures = []
    for candidate in repository.versions(model_dir):
        try:
            return _load_version(model_dir, candidate, device, precision, max_batch_size)
        except (CorruptModel, ModelNotFound) as err:
            _log.warning("skipped version %s: %s", candidate, err)
            failures.append(f"{candidate} ({err})")
    raise CorruptModel(f"no version in {model_dir} is good: {'; '.join(failures)}")


def _load_version(
    model_dir: Path, version: str, device: Device, precision: Precision, max_batch_size: int
) -> LoadedModel:
    from serving.model.engine import open_engine
    from serving.model.onnx_runtime import onnxruntime

    run_options = onnxruntime.RunOptions()

    def build() -> LoadedModel:
        manifest, onnx = repository.load(model_dir, version, precision)
        engine = open_engine(onnx, manifest.signature, device, precision, run_options)
        return LoadedModel(engine, manifest, precision)

    def check() -> int:
        manifest = model.manifest
        expected = manifest.golden_probabilities[precision]
        acceptance.check(model.run, manifest.golden_images, expected, max_batch_size)
        return _quick_images(model, max_batch_size)

    try:
        model = _within(_BUILD_LIMIT_S, build)
        quick_images = _within(_CHECK_LIMIT_S, check)
    except BaseException as err:
        run_options.terminate = True  # ends a run in progress
        if isinstance(err, acceptance.Unfit | TimeoutError):
            raise CorruptModel(f"version {version} {err}") from err
        raise
    return replace(model, quick_images=quick_images)


def _quick_images(model: LoadedModel, max_batch_size: int) -> int:
    """Measure how many images can be run within `_QUICK_S`; 0 if not even one."""
    quick = 0
    for size in (1, 32, 128, 256, 512, max_batch_size):
        if size > max_batch_size or size <= quick:
            continue
        images = np.zeros((size, model.signature.image_bytes), np.uint8)
        if min(_seconds(model, images) for _ in range(5)) > _QUICK_S:
            break
        quick = size
    return quick


def _seconds(model: LoadedModel, images: Images) -> float:
    begin_s = time.monotonic()
    model.run(images)
    return time.monotonic() - begin_s


def _within(limit_s: float, work: Callable[[], _Result]) -> _Result:
    """Do some work on a thread of its own, since a file or a graph that hangs can't be stopped.

    Raises:
        TimeoutError: it takes longer; the thread is left behind.
    """
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as err:
            future.set_exception(err)

    threading.Thread(target=run, name="model-loader", daemon=True).start()
    try:
        return future.result(limit_s)
    except TimeoutError:
        raise TimeoutError(f"is not ready after {limit_s:g} s") from None
