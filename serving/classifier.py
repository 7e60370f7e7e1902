"""The classifier that services embed: one model, loaded and checked, in this process."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self
from weakref import WeakKeyDictionary

import numpy.typing as npt

from serving.batching.awaited import FEW_IMAGES, AwaitedCalls
from serving.config import BatchingConfig, Device, ModelConfig, Precision
from serving.embedded import Embedded
from serving.images import as_images
from serving.model.info import ModelInfo
from serving.model.loaded_model import LoadedModel, load_model
from serving.model.repository import PRETRAINED
from serving.predictions import Predictions


class Classifier(Embedded):
    """Classifies images in this process; safe to call from many threads.

    `classify`, `model_info`, `close` and `with` are those of `serving.client.Client`. Use it
    as a context manager, or call `close`.
    """

    def __init__(
        self,
        model: LoadedModel,
        batching: BatchingConfig | None = None,
        num_processes: int = 1,
        served_name: str | None = None,
    ) -> None:
        """Serve a loaded model; most callers use `Classifier.load`.

        Args:
            model: the model to run.
            batching: sizes and limits.
            num_processes: how many classifiers share this machine's cores.
            served_name: the model's name for callers, if not its own.
        """
        super().__init__(model, batching, num_processes)
        self.signature = model.image_signature
        """The shape of the images, and the classes."""
        self._served_name = served_name
        self._awaited: WeakKeyDictionary[asyncio.AbstractEventLoop, AwaitedCalls]
        self._awaited = WeakKeyDictionary()

    @classmethod
    def load(
        cls,
        model_dir: str | Path,
        version: str | int | None = None,
        device: Device = "auto",
        precision: Precision = "fp32",
        *,
        batching: BatchingConfig | None = None,
    ) -> Self:
        """Load an exported model, verify it, and check it on its golden samples, which warms it up.

        Args:
            model_dir: the model's directory, such as "models/digits".
            version: which version to load, such as "3" or 3; None for the newest good one. A
                damaged version is skipped with a warning in the log.
            device: "cpu", "cuda", or "auto", which takes CUDA where it works and the CPU elsewhere.
            precision: "fp32" or "int8". int8 runs on the CPU only, which "auto" means
                for it.
            batching: `max_batch_size` is the most images in one run; the queue's limits bind only
                a server.

        Raises:
            ModelNotFound: no such model, or no such version of it.
            CorruptModel: the version is damaged, differs from its manifest, answers its golden
                samples wrongly, or takes too long: 60 s of processor time to read and build, 10 s
                to check. With version None: every version is.
            DeviceError: the device can't be used on this machine.
            ConfigurationError: the version has no int8 variant, int8 was requested on CUDA, or the
                directory can't be read.
        """
        model_dir = Path(model_dir).absolute()
        config = ModelConfig(
            models=model_dir.parent, model=model_dir.name,
            version=None if version is None else str(version), device=device, precision=precision,
        )  # fmt: skip
        return cls.open(config, batching)

    @classmethod
    def open(
        cls, config: ModelConfig, batching: BatchingConfig | None = None, num_processes: int = 1
    ) -> Self:
        """Load the model of a server's configuration; see `load`.

        Args:
            config: the model and its device.
            batching: sizes and limits.
            num_processes: how many classifiers share this machine's cores.
        """
        batching = batching or BatchingConfig()
        model_dir = config.models / config.model
        model = load_model(
            model_dir, config.version, config.device, config.precision, batching.max_batch_size,
            is_described=True,
        )  # fmt: skip
        classifier = cls(model, batching, num_processes, config.served_name)
        config = replace(config, models=config.models.absolute(), version=model.version)
        classifier._reopen = partial(cls.open, config, batching, num_processes)
        return classifier

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
        name = self._served_name or self.served.manifest.name
        return self.served.info(name, "in process", self.batching)

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
        is_cancelled = threading.Event()
        try:
            return await asyncio.to_thread(self._classify, checked, is_cancelled.is_set)
        finally:
            is_cancelled.set()

    def _awaited_calls(self) -> AwaitedCalls:
        """Return the calls that the running event loop awaits."""
        loop = asyncio.get_running_loop()
        calls = self._awaited.get(loop)
        if calls is None:
            calls = self._awaited[loop] = AwaitedCalls(
                loop,
                self._classify,
                min(self.served.enough_rows, self.batching.max_batch_size),
                self._cores,
            )
        return calls

    def _classify(
        self, images: npt.ArrayLike, is_cancelled: Callable[[], bool] = lambda: False
    ) -> Predictions:
        # Few and short steps: all but the run holds the GIL, for which threads compete.
        signature, model = self.signature, self.served
        checked = as_images(images, signature)
        if self._is_closed:
            raise self._refusal()
        if len(checked) <= self.batching.max_batch_size and len(checked) <= model.enough_rows:
            probabilities = model.classify(checked)
        else:
            feeds = {model.tensors.inputs[0].name: checked}
            (probabilities,) = self._run_shared(feeds, is_cancelled)
        return Predictions.of(probabilities, model.manifest.version, signature.labels)
