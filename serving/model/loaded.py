"""A version of a model that was loaded and checked: all that the server needs to run it."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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


class EntryMaker(Protocol):
    """Makes where the calls of a version come in: a `Router`."""

    def batcher_of(self, name: str, model: "LoadedModel") -> Any:
        """Return that of a model alone."""

    def pipeline_of(self, name: str, model: Any) -> Any:
        """Return that of a model with Python around it."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A version that was checked; safe to run from many threads."""

    engine: Engine | None
    """What runs it; None where Python is the model."""
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

    # What Python around a model changes; see `serving.handlers.model.HandledModel`

    @property
    def network(self) -> "LoadedModel | None":
        """The model itself; None where Python is the model."""
        return self

    @property
    def uses(self) -> tuple[str, ...]:
        """The other models that it calls."""
        return ()

    @property
    def files(self) -> Sequence[Path]:
        """Files beside its own that it has imported, as far as they are known."""
        return ()

    @property
    def options(self) -> tuple[str, ...]:
        """What it wants of calls beside their inputs, such as "metadata"."""
        return ()

    @property
    def is_around(self) -> bool:
        """Whether it is none without the model inside."""
        return False

    @property
    def is_as_its_graph(self) -> bool:
        """Whether its graph says its inputs and outputs."""
        return True

    def entry(self, name: str, maker: EntryMaker) -> Any:
        """Make where its calls come in, an `Entry`."""
        return maker.batcher_of(name, self)

    def answer(
        self, feeds: Feeds, parameters: Mapping[str, Any], run: Callable[[Feeds], list[Array]]
    ) -> Sequence[Array]:
        """Return the outputs for a call in this process; `run` runs the model itself."""
        return run(feeds)

    def stream(
        self, feeds: Feeds, parameters: Mapping[str, Any], run: Callable[[Feeds], list[Array]]
    ) -> Generator[Sequence[Array], None, None]:
        """Yield the outputs for a call in this process; once, unless it is answered in parts."""
        yield self.answer(feeds, parameters, run)

    @property
    def is_awaited(self) -> bool:
        """Whether calls are answered on an event loop: `answer_awaited`, `stream_awaited`."""
        return False

    def close(self) -> None:
        """End what has started with its loading, if it is not served."""

    # Of a model itself

    @property
    def session(self) -> Engine:
        """What runs it."""
        assert self.engine is not None
        return self.engine

    @property
    def version(self) -> str:
        """The version named in every answer, such as "3"."""
        return self.manifest.version

    @property
    def tensors(self) -> TensorSignature:
        """Its inputs and outputs."""
        return self.session.tensors

    @property
    def signature(self) -> Signature | None:
        """The shape of its images, and its classes; None if it isn't known to classify images."""
        return self.manifest.signature

    @property
    def pictures(self) -> "Preprocessing | None":
        """How pictures become its input, and the names of its classes; None if it takes none."""
        return self.manifest.pictures

    @property
    def backend(self) -> str:
        """What answers: "python" for a handler that predicts alone, else "onnxruntime"."""
        return "onnxruntime"

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
        return self.session.device

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
            in_parts=tensors.in_parts,
            batching=self.batching,
            device=self.device,
            precision=self.precision,
            optimized=self.manifest.optimized,
            max_batch_size=sizes.max_batch_size if tensors.is_batchable else 0,
            max_request_rows=sizes.max_request_rows if tensors.is_batchable else None,
            labels=self.class_labels,
            pictures=None if self.pictures is None else asdict(self.pictures),
            test_accuracy=self.manifest.test_accuracy,
        )

    # On one line, so that the lock is released even if a trace function raises (debuggers,
    # coverage, tests): these run between lines. Without `session`, which is a call more.

    def run(self, feeds: Feeds) -> list[Array]:
        with native_run(): return self.engine.run(feeds)  # type: ignore[union-attr]  # noqa: E701  # fmt: skip

    def run_alone(self, feeds: Feeds) -> list[Array]:
        with native_run(): return self.engine.run_alone(feeds)  # type: ignore[union-attr]  # noqa: E701  # fmt: skip

    def stoppable(self, *, is_alone: bool = False) -> tuple[Run, Callable[[], None]]:
        engine_run, end = self.session.stoppable(is_alone=is_alone)

        def run(feeds: Feeds) -> list[Array]:
            with native_run(): return engine_run(feeds)  # noqa: E701  # fmt: skip

        return run, end

    def classify(self, images: Images) -> Probabilities:
        """Return the (N, classes) float32 probabilities of (N, pixels) images."""
        name = self.session.tensors.inputs[0].name
        with native_run(): return self.session.run({name: images})[0]  # noqa: E701  # fmt: skip
