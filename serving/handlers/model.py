"""A version with a handler, as the server and `serving.Model` load it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from serving.config import Device, ModelConfig
from serving.errors import ConfigurationError, ModelError, ServingError
from serving.handlers import process
from serving.handlers.loading import HandlerSource, NeedsModel
from serving.handlers.process import HandlerProcess, Program
from serving.handlers.signature import HandlerSignature
from serving.model.engine import Run
from serving.model.loaded import LoadedModel
from serving.model.manifest import Manifest
from serving.model.repository import VERSION_OF_FILE
from serving.tensors import Array, Feeds, TensorSignature


@dataclass(slots=True, eq=False)
class LoadedHandler:
    """A handler whose first process is ready."""

    signature: HandlerSignature
    tensors: TensorSignature
    """The inputs and outputs for callers."""
    program: Program
    """What its processes run."""
    files: Sequence[Path] = ()
    """Files beside the handler's that it has imported."""
    first: list[HandlerProcess] = field(default_factory=list)
    """The process that has started with the loading, until it is taken."""

    first_bytes: int = 0
    """The memory of that process after `setup`."""

    @property
    def line(self) -> str:
        """How calls are handled, in a line."""
        how = "rows of several calls together" if self.signature.batching else "each call alone"
        return f"handler {self.signature.name}: {how}"

    def take_first(self) -> Sequence[HandlerProcess]:
        """Return the first process, once."""
        taken, self.first = self.first, []
        return taken

    def close(self) -> None:
        """End the first process, if nobody has taken it."""
        for each in self.take_first():
            each.close()

    def launch(
        self,
        post: Callable[[Callable[[], None]], None],
        done: Callable[[HandlerProcess | ServingError], None],
    ) -> None:
        """Start a further process, on a thread of its own; see `Launcher`."""

        def work() -> None:
            try:
                outcome: HandlerProcess | ServingError = process.start(self.program)
            except ServingError as err:
                outcome = err
            post(partial(done, outcome))

        threading.Thread(target=work, name="handler-start", daemon=True).start()


class NoEngine:
    """In the place of a model's session, where a handler predicts alone."""

    device: Device = "cpu"
    max_concurrent_runs: int | None = None

    def __init__(self, tensors: TensorSignature) -> None:
        self.tensors = tensors

    def run(self, feeds: Feeds) -> list[Array]:
        """Refuse to run: only a handler can."""
        raise ModelError("there is no model, only a handler")

    def stoppable(self, *, is_alone: bool = False) -> tuple[Run, Callable[[], None]]:
        """Return the refusing run, which needs no stop."""
        return self.run, lambda: None


def around(
    model: LoadedModel, source: HandlerSource, name: str, folder: Path, config: ModelConfig
) -> LoadedModel:
    """Return a loaded version with a handler around it; its first process is ready.

    Args:
        model: the version.
        source: the handler.
        name: the model's, for log lines.
        folder: of the version.
        config: has the limits of its processes' start.

    Raises:
        ServingError: the handler can't be used with it; see `process.start`.
    """
    program = Program(name, source, folder, model.tensors, config.max_handler_setup_s)
    return with_handler(model, loaded(program))


def alone(source: HandlerSource, name: str, config: ModelConfig) -> LoadedModel:
    """Return a handler that predicts without a model, as a version; see `around`."""
    program = Program(name, source, source.file.parent, None, config.max_handler_setup_s)
    handler = loaded(program)
    return without_model(name, handler)


def loaded(program: Program) -> LoadedHandler:
    """Start the first process of a handler.

    Raises:
        ServingError: it can't be used.
    """
    first = process.start(program)
    try:
        require_model(first.signature, has_model=program.network is not None)
    except ConfigurationError:
        first.kill()
        raise
    tensors = first.signature.tensors(program.network)
    return LoadedHandler(
        first.signature, tensors, program, first.files, [first], first.memory_bytes
    )


def require_model(signature: HandlerSignature, *, has_model: bool) -> None:
    """Check that there is a model where the handler needs one.

    Raises:
        NeedsModel: there is none.
        ConfigurationError: there is one too many.
    """
    if signature.needs_model and not has_model:
        methods = " and ".join(signature.methods)
        raise NeedsModel(f"{signature.name} has {methods}: it needs a model")
    if has_model and not signature.needs_model:
        raise ConfigurationError(
            f"{signature.name} has predict: it is a model without an ONNX file"
        )


def with_handler(model: LoadedModel, handler: Any) -> LoadedModel:
    """Return a version that answers as its handler does."""
    return replace(model, handler=handler, batching=f"{handler.line}; {model.batching}")


def without_model(name: str, handler: Any) -> LoadedModel:
    """Return a version that is a handler alone."""
    manifest = Manifest.of_graph(name, VERSION_OF_FILE, {})
    engine = NoEngine(handler.tensors)
    return LoadedModel(engine, manifest, "fp32", batching=handler.line, handler=handler)
