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

from benchmarks.load.cores import worker
from benchmarks.load.tasks import AwaitedCall, TaskLoad
from benchmarks.load.threads import Call, ThreadLoad
from benchmarks.load.trace import Deadline, Load, Seconds, Trace
from benchmarks.targets.commands import ENGINE_KINDS
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec
from serving import installation
from serving.errors import DigitsError
from serving.images import Images
from serving.signature import INPUT


def _null(spec: Spec, models: Path, artifacts: Path) -> Call:
    """Answer at once: what is left is the price of the harness."""
    return lambda images: None


def _raw(spec: Spec, models: Path, artifacts: Path) -> Call:
    """Call `session.run` as a script would, with the digits: what embedding is compared with."""
    from serving.model import repository
    from serving.model.onnx_runtime import onnxruntime

    model_dir = models / "digits"
    version = next(iter(repository.versions(model_dir)))
    _, onnx = repository.load(model_dir, version, spec.precision)  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])

    def call(images: Images) -> object:
        (probabilities,) = session.run(["probabilities"], {"images": images})
        return probabilities, probabilities.argmax(axis=1)

    return call


def _engine(spec: Spec, models: Path, artifacts: Path) -> Call:
    """Call ONNX Runtime, as the server does."""
    from serving.model.loaded_model import load_model

    return load_model(models / "digits", None, spec.device, spec.precision).classify  # type: ignore[arg-type]


def _engine_of_kind(spec: Spec, models: Path, artifacts: Path) -> Call:
    """Call an engine that serving does not have; its answers may be off by more than it allows."""
    from benchmarks.targets.engine_kinds import engine_of
    from serving.model import repository

    engine = engine_of(spec.target.removeprefix("engine-"), spec.device)
    model_dir = models / "digits"
    manifest, onnx = repository.load(model_dir, next(iter(repository.versions(model_dir))), "fp32")
    run = engine.open(onnx, manifest.signature).run
    return lambda images: run({INPUT: images})[0]


def _classifier(spec: Spec, models: Path, artifacts: Path) -> Call:
    """Call what services embed."""
    from serving import Classifier

    return Classifier.load(models / "digits", None, spec.device, spec.precision).classify  # type: ignore[arg-type]


def _classifier_async(spec: Spec, models: Path, artifacts: Path) -> AwaitedCall:
    """Await what services embed."""
    from serving import Classifier

    return Classifier.load(models / "digits", None, spec.device, spec.precision).classify_async  # type: ignore[arg-type]


def _keras(spec: Spec, models: Path, artifacts: Path) -> Call:
    """Call `model.predict`, the tutorial's way, or the Keras model compiled to a graph."""
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
    if spec.target == "keras":
        return lambda images: model.predict(images.astype(np.float32) / 255, len(images), verbose=0)
    signature = [tf.TensorSpec((None, 784), tf.float32)]
    compiled = tf.function(lambda images: model(images, training=False), signature)
    return lambda images: compiled(images.astype(np.float32) / 255).numpy()


OPENERS: Mapping[str, Callable[[Spec, Path, Path], Call | AwaitedCall]] = {
    "null": _null, "raw": _raw, "engine": _engine, "classifier": _classifier,
    "classifier-async": _classifier_async, "keras": _keras,
    "tf-function": _keras, **{f"engine-{kind}": _engine_of_kind for kind in ENGINE_KINDS},
}  # fmt: skip
"""By name: functions that return what a target's threads call, or its tasks await."""


class _RemoteLoad:
    """Passes loads on to the target's process; see `Load`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        return self._pool.submit(_run, "closed", callers, batch, seconds).result()

    def open(self, offsets_s: Seconds, batch: int, deadline: Deadline = Deadline.NONE) -> Trace:
        return self._pool.submit(_run, "open", offsets_s, batch, deadline).result()


@contextmanager
def open_in_process(spec: Spec, setting: Setting) -> Iterator[Running]:
    """Start a target of OPENERS in a fresh process on the target's cores.

    Raises:
        NotMeasured: it can't run here.
    """
    begin_s = perf_counter()
    open_call = partial(OPENERS[spec.target], spec, setting.models, setting.artifacts)
    with in_own_process(open_call, setting.images, setting.cores) as (load, pid):
        # On a GPU one thread: ONNX Runtime's handles and CUDA graphs are made for each.
        parallel_calls = 1 if spec.device == "cuda" else len(setting.cores)
        startup_s = perf_counter() - begin_s
        yield Running(load=load, startup_s=startup_s, parallel_calls=parallel_calls, pid=pid)


@contextmanager
def in_own_process(
    open_call: Callable[[], Call | AwaitedCall], images: Images, cores: Sequence[int]
) -> Iterator[tuple[Load, int]]:
    """Start a process on some cores, and call there what a function returns.

    Args:
        open_call: made in that process; its result is called by threads, or awaited by tasks if it
            is a coroutine function.
        images: (N, 784) uint8 to classify.
        cores: its.

    Yields:
        What calls it, and the process's id.

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
"""In the target's process: what calls it."""


def _start(open_call: Callable[[], Call | AwaitedCall], images: Images) -> int:
    """Open the target in this process, which it has for itself, and call it once."""
    global _load
    call: Any = open_call()
    _load = (TaskLoad if iscoroutinefunction(call) else ThreadLoad)(call, images)
    _load.closed(1, 1, 0.0)
    return os.getpid()


def _run(loop: str, *arguments: Any) -> Trace:
    trace: Trace = getattr(_load, loop)(*arguments)
    return trace
