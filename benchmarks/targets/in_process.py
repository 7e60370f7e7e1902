"""Targets in a process of their own, called by its threads or tasks: no network between."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from inspect import iscoroutinefunction
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.load.callers import AwaitedCall, Call, TaskLoad, ThreadLoad
from benchmarks.load.cores import worker
from benchmarks.load.trace import Load, Trace
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec
from serving.commandline import installation
from serving.errors import DigitsError
from serving.images import Images


def _null(spec: Spec, models: Path, artifacts: Path) -> Call:
    """Answer at once: the rest is the cost of the harness."""
    return lambda images: None


def _engine(spec: Spec, models: Path, artifacts: Path) -> Call:
    """Call ONNX Runtime, as the server does."""
    from serving.model.loaded_model import load_model

    return load_model(models / "digits", None, spec.device, spec.precision).classify  # type: ignore[arg-type]


def _classifier(spec: Spec, models: Path, artifacts: Path) -> Call | AwaitedCall:
    """Call the embedded classifier."""
    from serving import Classifier

    classifier = Classifier.load(models / "digits", None, spec.device, spec.precision)  # type: ignore[arg-type]
    return classifier.classify_async if "async" in spec.target else classifier.classify


def _keras(spec: Spec, models: Path, artifacts: Path) -> Call:
    """Call `model.predict`, as tutorials do."""
    file = artifacts / "model.keras"
    if not file.is_file():
        raise NotMeasured(f"no trained model.keras: run {installation.run('train')}")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow's first lines ignore the level
    if spec.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        import keras
        import tensorflow as tf
    except ImportError as err:
        raise NotMeasured("TensorFlow is not installed") from err
    gpus = tf.config.list_physical_devices("GPU")
    if spec.device == "cuda" and not gpus:
        raise NotMeasured("TensorFlow finds no GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # else it takes all of it
    tf.config.threading.set_intra_op_parallelism_threads(len(os.sched_getaffinity(0)))
    model: Any = keras.models.load_model(file, compile=False)
    return lambda images: model.predict(images.astype(np.float32) / 255, len(images), verbose=0)


OPENERS: Mapping[str, Callable[[Spec, Path, Path], Call | AwaitedCall]] = {
    "null": _null, "engine": _engine, "classifier": _classifier,
    "classifier-async": _classifier, "keras": _keras,
}  # fmt: skip
"""By name: functions that return a target's callable, for threads or for tasks."""


class _RemoteLoad(Load):
    """Passes loads on to the target's process; see `Load`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        return self._pool.submit(_closed, callers, batch, seconds).result()


@contextmanager
def open_in_process(spec: Spec, setting: Setting) -> Iterator[Running]:
    """Start a target of OPENERS in a fresh process on the target's cores.

    Raises:
        NotMeasured: it can't run here.
    """
    begin_s = perf_counter()
    open_call = partial(OPENERS[spec.target], spec, setting.models, setting.artifacts)
    with in_own_process(open_call, setting.images, setting.cores) as (load, pid):
        # On a GPU one thread: ONNX Runtime's handles are made for each.
        parallel_calls = 1 if spec.device == "cuda" else len(setting.cores)
        startup_s = perf_counter() - begin_s
        yield Running(load=load, startup_s=startup_s, parallel_calls=parallel_calls, pid=pid)


@contextmanager
def in_own_process(
    open_call: Callable[[], Call | AwaitedCall], images: Images, cores: Sequence[int]
) -> Iterator[tuple[Load, int]]:
    """Start a process on some cores, and call the function's result there.

    Args:
        open_call: made in that process; its result is called by threads, or awaited by tasks if it
            is a coroutine function.
        images: (N, 784) uint8 to classify.
        cores: its.

    Yields:
        Its caller, and the process's id.

    Raises:
        NotMeasured: it can't run here.
    """
    with worker(cores) as pool:
        try:
            pid = pool.submit(_start, open_call, images).result()
        except BrokenProcessPool as err:
            raise NotMeasured("its process died while it started") from err
        except DigitsError as err:
            raise NotMeasured(str(err)) from err
        yield _RemoteLoad(pool), pid


_load: ThreadLoad | TaskLoad
"""In the target's process: its caller."""


def _start(open_call: Callable[[], Call | AwaitedCall], images: Images) -> int:
    """Open the target in this process, and call it once."""
    global _load
    call: Any = open_call()
    _load = (TaskLoad if iscoroutinefunction(call) else ThreadLoad)(call, images)
    _load.closed(1, 1, 0.0)
    return os.getpid()


def _closed(callers: int, batch: int, seconds: float) -> Trace:
    return _load.closed(callers, batch, seconds)
