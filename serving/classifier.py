"""The classifier that services embed: one model, loaded, checked and batched, in this process."""

import threading
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from serving.batcher import Batcher
from serving.config import BatchingConfig, Device, ModelConfig, Precision
from serving.cores import usable_cores
from serving.errors import DigitsError
from serving.images import Images, as_images
from serving.loaded_model import LoadedModel, load_model
from serving.metrics import Metrics
from serving.model_info import ModelInfo
from serving.predictions import NUM_CLASSES, Predictions
from serving.repository import PRETRAINED
from serving.requests import Answer, Request


class Classifier:
    """Classifies images in this process; safe to call from many threads.

    Interchangeable with `serving.client.Client`. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        model: LoadedModel,
        batching: BatchingConfig | None = None,
        num_processes: int = 1,
    ) -> None:
        """Serve a loaded model; `Classifier.load` is the usual way.

        Args:
            model: what runs.
            batching: sizes and limits.
            num_processes: how many classifiers share this machine's cores.
        """
        self.batching = batching or BatchingConfig()
        self.metrics = Metrics()
        self._model = model
        self.batcher = Batcher(
            model,
            self.batching,
            # A GPU runs one batch at a time: several runners would only make them smaller.
            num_runners=1 if model.device == "cuda" else max(1, usable_cores() // num_processes),
            observe=self.metrics.observe,
        )

    @classmethod
    def open(
        cls, config: ModelConfig, batching: BatchingConfig | None = None, num_processes: int = 1
    ) -> Self:
        """Load what a configuration names; raises what `load_model` raises."""
        model_dir = config.models / config.model
        max_batch_size = (batching or BatchingConfig()).max_batch_size
        model = load_model(
            model_dir, config.version, config.device, config.precision, max_batch_size
        )
        return cls(model, batching, num_processes)

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
        """Load an exported model, verify it and check it on its golden samples.

        Args: see `load_model`; `batching` sets sizes and limits.

        Raises: what `load_model` raises.
        """
        version = None if version is None else str(version)
        max_batch_size = (batching or BatchingConfig()).max_batch_size
        model = load_model(Path(model_dir), version, device, precision, max_batch_size)
        return cls(model, batching)

    @classmethod
    def pretrained(cls, device: Device = "auto", precision: Precision = "fp32") -> Self:
        """Load the model in the box, which is installed with the package.

        Args: see `load_model`.

        Raises: what `load_model` raises.
        """
        return cls.load(PRETRAINED / "digits", device=device, precision=precision)

    @property
    def served(self) -> LoadedModel:
        """The version that new requests run on."""
        return self._model

    @property
    def version(self) -> str:
        """The name of the version that new requests run on, such as "3"."""
        return self._model.version

    def adopt(self, model: LoadedModel) -> None:
        """Run new requests on another version; those accepted before finish on theirs."""
        self._model = model
        self.batcher.swap(model)

    def model_info(self) -> ModelInfo:
        """Tell what is served, on what, and its limits."""
        model = self._model
        return ModelInfo(
            name=model.manifest.name,
            version=model.version,
            device=model.engine.device,
            precision=model.precision,
            transport="in process",
            max_request_images=self.batching.max_request_images,
            max_batch_size=self.batching.max_batch_size,
            test_accuracy=model.manifest.test_accuracy,
        )

    def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images; more than `max_batch_size` are split and answered whole.

        Args:
            images: (N, 784) or (N, 28, 28) uint8, 0 = background, 255 = ink; N >= 1. No upper
                limit but memory: `max_request_images` binds requests that come over the network.

        Returns:
            N predictions, in the order of the images.

        Raises:
            InvalidRequest: wrong dtype or shape, or no images.
            Overloaded: too many images wait already.
            Unavailable: the classifier is closed.
            ModelError: the run failed.
        """
        checked = as_images(images)
        step = self.batching.max_request_images
        parts = [self._classify(checked[i : i + step]) for i in range(0, len(checked), step)]
        return parts[0] if len(parts) == 1 else Predictions.concatenate(parts)

    def _classify(self, images: Images) -> Predictions:
        call = _Call(images.data.cast("B"), caller=threading.get_ident())
        self.batcher.submit_and_help(call)
        return predictions_of(call.wait())

    def close(self) -> None:
        """Let what runs finish, reject what waits, free the threads. May be called again."""
        self.batcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def predictions_of(answer: Answer) -> Predictions:
    """View an answer's bytes as arrays, without copying."""
    return Predictions(
        np.frombuffer(answer.digits, np.uint8),
        np.frombuffer(answer.probabilities, "<f4").reshape(-1, NUM_CLASSES),
        answer.batch.model.version,
    )


class _Call(Request):
    """A request whose caller is a thread of this process that waits."""

    __slots__ = ("_done", "_outcome")

    def __init__(self, pixels: memoryview, caller: int) -> None:
        super().__init__(pixels, caller=caller)
        self._done = threading.Lock()
        self._done.acquire()
        self._outcome: Answer | DigitsError

    def resolve(self, answer: Answer) -> None:
        self._outcome = answer
        self._done.release()

    def reject(self, error: DigitsError) -> None:
        self._outcome = error
        self._done.release()

    def wait(self) -> Answer:
        self._done.acquire()
        if isinstance(self._outcome, DigitsError):
            raise self._outcome
        return self._outcome
