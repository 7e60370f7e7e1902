"""Models embedded in a service: `Model` of any kind, and `Classifier` of images."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

import numpy.typing as npt

from digit_classifier import PRETRAINED
from serving.batching.awaited import FEW_IMAGES, AwaitedCalls
from serving.batching.runs import run_shared
from serving.config import BatchingConfig, Device, ModelConfig, Precision
from serving.errors import ModelError, Unavailable
from serving.model.loaded import LoadedModel
from serving.model.loading import load_model
from serving.predictions import Predictions, as_images
from serving.system.process import usable_cores
from serving.tensors import Array, Feeds, ModelInfo, Tensor, as_feeds

_Answer = TypeVar("_Answer")


def never() -> bool:
    """Say that nobody has cancelled a call."""
    return False


class Model:
    """Runs any ONNX model in this process; safe to call from many threads.

        with Model.load("model.onnx") as model:
            outputs = model.run(images=array)

    Use it as a context manager, or call `close`.
    """

    _is_described = False
    """Whether a version needs a manifest."""

    def __init__(self, model: LoadedModel, batching: BatchingConfig | None = None) -> None:
        """Serve a loaded model; most callers use `load`.

        Args:
            model: the model to run.
            batching: sizes and limits.
        """
        self.batching = batching or BatchingConfig()
        self.served = model
        num_threads = max(1, model.settings.num_threads)
        self._cores = model.engine.max_concurrent_runs or max(1, usable_cores() // num_threads)
        self._is_closed = False
        self._reopen: Callable[[], Self] | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        version: str | int | None = None,
        device: Device = "auto",
        precision: Precision = "fp32",
        *,
        batching: BatchingConfig | None = None,
    ) -> Self:
        """Load a model, verify it, and check it.

        One with a manifest is checked on its golden samples. Of others this finds out whether their
        rows can be batched.

        Args:
            path: the directory of a model with `<version>/model.onnx`, such as "models/digits"; of
                `Model`, an ONNX file, too.
            version: which version to load, such as "3" or 3; None for the newest good one. A
                damaged version is skipped with a warning in the log.
            device: "cpu", "cuda", or "auto", which takes CUDA where it works and the CPU elsewhere.
            precision: "fp32" or "int8": model.onnx or model.int8.onnx in the directory. int8 runs
                on the CPU only, which "auto" means for it.
            batching: `max_batch_size` is the most rows in one run, where rows can be batched; the
                queue's limits bind only a server.

        Raises:
            ModelNotFound: no such model, or no such version of it.
            CorruptModel: the version is damaged, differs from its manifest, answers its golden
                samples wrongly, can't be built or served, or takes too long: 60 s of processor time
                to read and build, 10 s to check. With version None: every version is.
            DeviceError: the device can't be used on this machine.
            ConfigurationError: the version has no int8 variant, int8 was requested on CUDA, the
                directory can't be read, or a device or a precision is unknown.
        """
        ModelConfig(device=device, precision=precision)  # refuses others
        path, batching = Path(path).absolute(), batching or BatchingConfig()
        loaded = load_model(
            path, None if version is None else str(version), device, precision,
            batching.max_batch_size, is_described=cls._is_described,
        )  # fmt: skip
        model = cls(loaded, loaded.settings.of(batching))
        model._reopen = partial(
            cls.load, path, loaded.version, device, precision, batching=batching
        )
        return model

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        """Pickle path, version and settings; unpickling loads the model again."""
        if self._reopen is None:
            name = type(self).__name__
            raise TypeError(f"only a {name} from load() or pretrained() can be pickled")
        return self._reopen, ()

    @property
    def version(self) -> str:
        """The version that new calls run on, such as "3"."""
        return self.served.version

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The name, type and shape of each input."""
        return self.served.tensors.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The name, type and shape of each output."""
        return self.served.tensors.outputs

    def run(self, /, **inputs: object) -> dict[str, Array]:
        """Run the model on this thread; past 128 rows the other cores help.

        Args:
            inputs: an array for each input, of its type and shape; lists and numbers are converted
                where that loses nothing. Other names than Python's go as `**{"input:0": array}`.

        Returns:
            An array for each output, by its name.

        Raises:
            InvalidRequest: an input is missing or unknown, or has another type or shape; or an
                operator of the model refuses its values.
            Unavailable: the model is closed.
            DeviceError: it uses CUDA and was loaded before this process was forked.
            ModelError: the run failed; the text is ONNX Runtime's reason.
        """
        return self._call(as_feeds(self.served.tensors, inputs))

    async def run_async(self, /, **inputs: object) -> dict[str, Array]:
        """Run the model on threads of the event loop's executor; see `run`.

        A call that is cancelled begins no further run.
        """
        return await on_thread(self._call, as_feeds(self.served.tensors, inputs))

    def _call(self, feeds: Feeds, is_cancelled: Callable[[], bool] = never) -> dict[str, Array]:
        if self._is_closed:
            raise self._refusal()
        num_rows = min(map(len, feeds.values())) if self.served.tensors.is_batchable else 1
        try:
            outputs = self._outputs(feeds, num_rows, is_cancelled)
        except ModelError as err:
            from serving.model.onnx_runtime import reason_of

            raise ModelError(f"the model failed: {reason_of(err.__cause__ or err)}") from err
        return {each.name: array for each, array in zip(self.outputs, outputs, strict=True)}

    def _refusal(self) -> Unavailable:
        return Unavailable(f"the {type(self).__name__.lower()} is closed")

    def _outputs(
        self, feeds: Feeds, num_rows: int, is_cancelled: Callable[[], bool]
    ) -> list[Array]:
        model, most = self.served, self.batching.max_batch_size
        if num_rows <= most and num_rows <= model.enough_rows:
            return model.run(feeds)
        return run_shared(model.run, feeds, most, model.enough_rows, self._cores, is_cancelled)

    def close(self) -> None:
        """Refuse later calls; calls in progress finish. May be called again."""
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


async def on_thread(work: Callable[[Any, Callable[[], bool]], _Answer], inputs: object) -> _Answer:
    """Do work on a thread of the event loop's executor, which is cancelled with this task."""
    is_cancelled = threading.Event()
    try:
        return await asyncio.to_thread(work, inputs, is_cancelled.is_set)
    finally:
        is_cancelled.set()


class Classifier(Model):
    """Classifies images in this process; safe to call from many threads.

    `classify`, `model_info`, `close` and `with` are those of `serving.client.Client`. Use it
    as a context manager, or call `close`.
    """

    _is_described = True

    def __init__(self, model: LoadedModel, batching: BatchingConfig | None = None) -> None:
        super().__init__(model, batching)
        self.signature = model.image_signature
        """The shape of the images, and the classes."""
        self._awaited: WeakKeyDictionary[asyncio.AbstractEventLoop, AwaitedCalls]
        self._awaited = WeakKeyDictionary()

    @classmethod
    def pretrained(cls, device: Device = "auto", precision: Precision = "fp32") -> Self:
        """Load the model that is installed with the package.

        Args:
            device: "cpu", "cuda", or "auto", which takes CUDA where it works and the CPU elsewhere.
            precision: "fp32" or "int8"; int8 runs on the CPU only.

        Raises:
            DeviceError: the device can't be used on this machine.
            ConfigurationError: int8 was requested on CUDA.
            CorruptModel: the installed files are damaged.
        """
        classifier = cls.load(PRETRAINED / "digits", device=device, precision=precision)
        classifier._reopen = partial(cls.pretrained, device, precision)  # wherever it is installed
        return classifier

    def model_info(self) -> ModelInfo:
        """Return the model's description, its device and its limits."""
        return self.served.info(self.served.manifest.name, "in process", self.batching)

    def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images on this thread; past 128 images the other cores help.

        Args:
            images: (N, pixels) or (N, *input_shape) uint8, N >= 1; for digits (N, 784) or
                (N, 28, 28), 0 = background, 255 = ink. There is no upper limit except memory:
                `max_request_rows` applies to requests over the network.

        Returns:
            N predictions, in the order of the images.

        Raises:
            InvalidRequest: wrong dtype or shape, or no images.
            Unavailable: the classifier is closed.
            DeviceError: it uses CUDA and was made before this process was forked.
            ModelError: the run failed.
        """
        return self._classify(images)

    async def classify_async(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images on threads of the event loop's executor; see `classify`.

        Calls of up to 16 images that come while others run are run together. A call that is
        cancelled begins no further run.
        """
        checked = as_images(images, self.signature)
        if len(checked) <= min(FEW_IMAGES, self.batching.max_batch_size):
            return await self._awaited_calls().classify(checked)
        return await on_thread(self._classify, checked)

    def _awaited_calls(self) -> AwaitedCalls:
        loop = asyncio.get_running_loop()
        if (calls := self._awaited.get(loop)) is None:
            enough = min(self.served.enough_rows, self.batching.max_batch_size)
            calls = AwaitedCalls(loop, self._classify, enough, self._cores)
            self._awaited[loop] = calls
        return calls

    def _classify(
        self, images: npt.ArrayLike, is_cancelled: Callable[[], bool] = never
    ) -> Predictions:
        # Few and short steps: all but the run holds the GIL, for which threads compete.
        signature, model = self.signature, self.served
        checked = as_images(images, signature)
        if self._is_closed:
            raise self._refusal()
        feeds = {model.tensors.inputs[0].name: checked}
        (probabilities,) = self._outputs(feeds, len(checked), is_cancelled)
        return Predictions.of(probabilities, model.manifest.version, signature.labels)
