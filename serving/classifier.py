"""The classifier that services embed: one model, loaded and checked, in this process."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Self
from weakref import WeakKeyDictionary

import numpy.typing as npt

from serving.batching.awaited import FEW_IMAGES, AwaitedCalls
from serving.config import BatchingConfig, Device, Precision
from serving.embedded import Model, never, on_thread
from serving.model.engine import LoadedModel
from serving.model.repository import PRETRAINED
from serving.predictions import Predictions, as_images
from serving.tensors import ModelInfo


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
                `max_request_images` applies to requests over the network.

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
        """Return the calls that the running event loop awaits."""
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
