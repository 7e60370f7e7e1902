"""A version with a handler, as the server and `serving.Model` load it."""

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from serving.config import Device, ModelConfig
from serving.errors import ConfigurationError, ServingError
from serving.handlers import process
from serving.handlers.loading import HandlerSource, NeedsModel
from serving.handlers.process import HandlerProcess, Program
from serving.handlers.signature import HandlerSignature
from serving.json_values import parsed_output
from serving.model.loaded import EntryMaker, LoadedModel
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


class Around(Protocol):
    """A user's Python around a model, in its processes or in this one."""

    signature: HandlerSignature
    tensors: TensorSignature
    """The inputs and outputs for callers."""

    @property
    def line(self) -> str:
        """How calls are handled, in a line."""

    @property
    def files(self) -> Sequence[Path]:
        """Files beside the handler's own that it has imported, as far as they are known."""

    def close(self) -> None:
        """End it, if it is not served."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HandledModel(LoadedModel):
    """A version that answers as its handler does; with a model inside, or alone."""

    handler: Any
    """An `Around`."""
    inside: LoadedModel | None

    @property
    def network(self) -> LoadedModel | None:
        return self.inside

    @property
    def uses(self) -> tuple[str, ...]:
        uses: tuple[str, ...] = self.handler.signature.uses
        return uses

    @property
    def files(self) -> Sequence[Path]:
        files: Sequence[Path] = self.handler.files
        return files

    @property
    def options(self) -> tuple[str, ...]:
        options: tuple[str, ...] = self.handler.signature.options
        return options

    @property
    def is_around(self) -> bool:
        return self.inside is not None

    @property
    def is_as_its_graph(self) -> bool:
        return False

    @property
    def tensors(self) -> TensorSignature:
        tensors: TensorSignature = self.handler.tensors
        return tensors

    @property
    def signature(self) -> None:
        return None

    @property
    def pictures(self) -> None:
        return None

    @property
    def backend(self) -> str:
        return "python" if self.inside is None else self.inside.backend

    @property
    def device(self) -> Device:
        return "cpu" if self.inside is None else self.inside.device

    def entry(self, name: str, maker: EntryMaker) -> Any:
        return maker.pipeline_of(name, self)

    def answer(
        self, feeds: Feeds, parameters: Mapping[str, Any], run: Callable[[Feeds], list[Array]]
    ) -> Sequence[Array]:
        return self._parsed(self.handler.run(feeds, run, parameters))

    def _parsed(self, found: Sequence[Array]) -> Sequence[Array]:
        pairs = zip(self.tensors.outputs, found, strict=True)
        return [parsed_output(tensor, array) for tensor, array in pairs]

    def stream(
        self, feeds: Feeds, parameters: Mapping[str, Any], run: Callable[[Feeds], list[Array]]
    ) -> Generator[Sequence[Array], None, None]:
        with closing(self.handler.stream(feeds, run, parameters)) as parts:
            for found in parts:
                yield self._parsed(found)

    @property
    def is_awaited(self) -> bool:
        is_async: bool = self.handler.signature.is_async
        return is_async

    async def answer_awaited(
        self, feeds: Feeds, parameters: Mapping[str, Any], run: Callable[[Feeds], list[Array]]
    ) -> Sequence[Array]:
        """Return the outputs for a call in this process, awaited; see `answer`."""
        return self._parsed(await self.handler.run_awaited(feeds, run, parameters))

    async def stream_awaited(
        self, feeds: Feeds, parameters: Mapping[str, Any], run: Callable[[Feeds], list[Array]]
    ) -> AsyncGenerator[Sequence[Array], None]:
        """Yield the outputs for a call in this process, awaited; see `stream`."""
        async with aclosing(self.handler.stream_awaited(feeds, run, parameters)) as parts:
            async for found in parts:
                yield self._parsed(found)

    def close(self) -> None:
        self.handler.close()


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


def with_handler(model: LoadedModel, handler: Around) -> HandledModel:
    """Return a version that answers as its handler does."""
    facts = {each.name: getattr(model, each.name) for each in fields(LoadedModel)}
    facts["batching"] = f"{handler.line}; {model.batching}"
    return HandledModel(**facts, handler=handler, inside=model)


def without_model(name: str, handler: Around) -> HandledModel:
    """Return a version that is a handler alone."""
    manifest = Manifest.of_graph(name, VERSION_OF_FILE, {})
    return HandledModel(
        engine=None,
        manifest=manifest,
        precision="fp32",
        batching=handler.line,
        handler=handler,
        inside=None,
    )
