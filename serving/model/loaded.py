"""A version of a model that was loaded and checked: all that the server needs to run it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from serving.config import BatchingConfig, Device, Precision
from serving.errors import ConfigurationError
from serving.model.answers import Answers
from serving.model.engine import Engine, Run
from serving.model.fork import native_run
from serving.model.manifest import Manifest
from serving.model.settings import NO_SETTINGS, ModelSettings
from serving.model.timing import ENOUGH_ROWS
from serving.tensors import (
    Array,
    Feeds,
    Images,
    ModelInfo,
    Probabilities,
    Signature,
    TensorSignature,
)

if TYPE_CHECKING:
    from serving.model.preprocessing import Preprocessing


class Around(Protocol):
    """A user's Python around a model; see `serving.handlers`."""

    tensors: TensorSignature
    """The inputs and outputs for callers."""
    signature: Any
    """A `HandlerSignature`."""

    @property
    def files(self) -> Sequence[Path]:
        """Files beside the handler's own that it has imported, as far as they are known."""

    def close(self) -> None:
        """End it, if it is not served."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A version that was checked; safe to run from many threads."""

    engine: Engine
    manifest: Manifest
    precision: Precision
    inline_rows: int = 0
    """The most rows of a batch that runs inline, on the thread that reads from all callers."""
    enough_rows: int = ENOUGH_ROWS
    """Rows that are worth their own run on another core."""
    batching: str = ""
    """One line that says whether rows are batched, and why not."""
    is_proved: bool = False
    """Whether its graph was proved to keep rows apart."""
    output_step: float = 0.0
    """One step of its outputs, if activations are quantised; else 0."""
    verdict_key: str = ""
    """The name of the verdict on its rows, as far as it is kept."""
    settings: ModelSettings = NO_SETTINGS
    """How it is served, where that differs from the server's options."""
    labels: tuple[str, ...] = ()
    """The classes of an output that its graph makes a dictionary of, else none."""
    answers: Answers | None = None
    """Which outputs are classes and probabilities, as far as its graph shows it; not of images."""
    sample_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of inputs, by name, with which a run succeeded; none if no run did."""
    handler: Around | None = None
    """The Python around it, if there is some: then callers see its inputs and outputs."""

    @property
    def network(self) -> Self:
        """The model itself, without the Python around it."""
        return replace(self, handler=None)

    @property
    def version(self) -> str:
        """The version named in every answer, such as "3"."""
        return self.manifest.version

    @property
    def tensors(self) -> TensorSignature:
        """Its inputs and outputs."""
        return self.engine.tensors if self.handler is None else self.handler.tensors

    @property
    def signature(self) -> Signature | None:
        """The shape of its images, and its classes; None if it isn't known to classify images."""
        return None if self.handler is not None else self.manifest.signature

    @property
    def pictures(self) -> "Preprocessing | None":
        """How pictures become its input, and the names of its classes; None if it takes none."""
        return None if self.handler is not None else self.manifest.pictures

    @property
    def backend(self) -> str:
        """What answers: "python" for a handler that predicts alone, else "onnxruntime"."""
        is_alone = self.handler is not None and not self.handler.signature.needs_model
        return "python" if is_alone else "onnxruntime"

    @property
    def class_labels(self) -> tuple[str, ...]:
        """The names of its classes, if they are known."""
        return (self.pictures and self.pictures.labels) or self.labels

    @property
    def image_signature(self) -> Signature:
        """The signature; raises ConfigurationError if there is none."""
        if self.manifest.signature is None:
            raise ConfigurationError(
                f"model {self.manifest.name} has no manifest, so it is not known to classify "
                "images: serving.Model runs any model"
            )
        return self.manifest.signature

    @property
    def device(self) -> Device:
        """The device that it runs on: "cpu" or "cuda"."""
        return self.engine.device

    def describe(self, batching: BatchingConfig) -> ModelInfo:
        """Describe this version, with limits of a server's; the only one that there is."""
        tensors, sizes = self.tensors, self.settings.of(batching)
        return ModelInfo(
            name=self.manifest.name,
            version=self.version,
            versions=(self.version,),
            default_version=self.version,
            inputs=tensors.inputs,
            outputs=tensors.outputs,
            is_batchable=tensors.is_batchable,
            batching=self.batching,
            device=self.device,
            precision=self.precision,
            max_batch_size=sizes.max_batch_size if tensors.is_batchable else 0,
            max_request_rows=sizes.max_request_rows if tensors.is_batchable else None,
            labels=self.class_labels,
            pictures=None if self.pictures is None else asdict(self.pictures),
            test_accuracy=self.manifest.test_accuracy,
        )

    # On one line, so that the lock is released even if a trace function raises (debuggers,
    # coverage, tests): these run between lines.

    def run(self, feeds: Feeds) -> list[Array]:
        with native_run(): return self.engine.run(feeds)  # noqa: E701  # fmt: skip

    def stoppable(self, *, is_alone: bool = False) -> tuple[Run, Callable[[], None]]:
        engine_run, end = self.engine.stoppable(is_alone=is_alone)

        def run(feeds: Feeds) -> list[Array]:
            with native_run(): return engine_run(feeds)  # noqa: E701  # fmt: skip

        return run, end

    def classify(self, images: Images) -> Probabilities:
        """Return the (N, classes) float32 probabilities of (N, pixels) images."""
        name = self.engine.tensors.inputs[0].name
        with native_run(): return self.engine.run({name: images})[0]  # noqa: E701  # fmt: skip
