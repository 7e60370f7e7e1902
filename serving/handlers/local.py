"""A handler in this process, for `serving.Model`: the same steps as in the server.

One by one; of a handler with `async def` many calls at a time, on an event loop of its own that a
thread runs: what `setup` opens belongs to one loop, and callers may come from any thread or loop.
"""

import asyncio
import inspect
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, aclosing, closing, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from serving import json_values
from serving.batching.run import answers_in_parts
from serving.errors import InvalidRequest, ModelError, ModelNotFound
from serving.handlers.handler import Handler
from serving.handlers.instance import Instance, Parts, at_once
from serving.handlers.kinds import WrongValue
from serving.handlers.loading import HandlerSource, load
from serving.handlers.model import require_model
from serving.handlers.pictures import decode
from serving.handlers.signature import PARAMETERS, POSTPROCESS, PREPROCESS, HandlerSignature
from serving.handlers.stepped import stepped
from serving.tensors import Array, Feeds, ModelInfo, Outputs, TensorSignature

RunModel = Callable[[Feeds], Sequence[Array]]
_Found = TypeVar("_Found")


class OtherModels:
    """The models that a handler calls by `self.models`, in this process."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = models

    def infer(self, name: str, inputs: Any) -> Outputs:
        """Run another model in this process, as `Models.infer` describes it."""
        model = self._named(name)
        return _as_texts(model.describe(), model.infer(json_values.as_texts(inputs)))

    def _named(self, name: str) -> Any:
        if name not in self._models:
            known = ", ".join(self._models) or "none"
            raise ModelNotFound(f"expected a model of {known} (the argument models), got {name!r}")
        return self._models[name]

    def stream(self, name: str, inputs: Any) -> Generator[Outputs, None, None]:
        """Have another model in this process answer in parts, as `Models.stream` describes it."""
        model = self._named(name)
        parts: Generator[Outputs, None, None] = model.stream(json_values.as_texts(inputs))
        with closing(parts):
            for part in parts:
                yield _as_texts(model.describe(), part)


class AsyncOtherModels(OtherModels):
    """The models that a handler calls by `self.async_models`, in this process."""

    async def infer(self, name: str, inputs: Any) -> Outputs:  # type: ignore[override]
        """Run another model in this process, as `AsyncModels.infer` describes it."""
        model, texts = self._named(name), json_values.as_texts(inputs)
        if inspect.iscoroutinefunction(model.infer):
            return _as_texts(await model.describe(), await model.infer(texts))
        return _as_texts(model.describe(), await asyncio.to_thread(model.infer, texts))

    async def stream(  # type: ignore[override]
        self, name: str, inputs: Any
    ) -> AsyncGenerator[Outputs, None]:
        """Have another model in this process answer in parts, as `AsyncModels.stream` says."""
        model = self._named(name)
        parts, described = model.stream(json_values.as_texts(inputs)), model.describe()
        if not isinstance(parts, AsyncGenerator):
            parts = stepped(parts)
        if inspect.isawaitable(described):
            described = await described
        async with aclosing(parts):
            async for part in parts:
                yield _as_texts(described, part)


def _as_texts(model: ModelInfo, found: Outputs) -> Outputs:
    """Return outputs as a server gives them to a handler: JSON as its text."""
    columns = {each.name for each in model.outputs if each.is_json}
    texts = {
        output: json_values.written(output, array) if output in columns else array
        for output, array in found.items()
    }
    return Outputs(texts, found.model_version)


class LocalHandler:
    """An object of a handler, used by one thread at a time."""

    files: Sequence[Path] = ()

    def __init__(
        self,
        handler: str | Path | Handler | type[Handler],
        network: TensorSignature | None,
        folder: Path | None,
        models: Mapping[str, Any],
    ) -> None:
        """Import the handler and call its `setup`.

        Args:
            handler: a class, an object of one, or FILE.py or FILE.py:CLASS.
            network: the inputs and outputs of the model; None without one.
            folder: for `setup`; None for that of the handler's file.
            models: the other models, by name.

        Raises:
            ConfigurationError: it can't be used.
        """
        found: Handler | type[Handler]
        if isinstance(handler, str | Path):
            source = HandlerSource.of(handler)
            found, home = load(source), source.file.parent
        else:
            found, home = handler, Path()
        self._instance = Instance(found, network, OtherModels(models))
        self._instance.use(OtherModels(models), AsyncOtherModels(models))
        self.signature: HandlerSignature = self._instance.signature
        require_model(self.signature, has_model=network is not None)
        self.tensors = self.signature.tensors(network)
        self._network = network
        self._turn: AbstractContextManager[Any] = threading.Lock()
        """Methods run one at a time; those of one event loop do so anyway."""
        self._loop: _Loop | None = None
        if self.signature.is_async:
            self._loop, self._turn = _Loop(), nullcontext()
            # Each call in hand and each open generator holds this object.
            weakref.finalize(self, self._loop.close)
        self._do(self._instance.setup(folder or home))

    @property
    def line(self) -> str:
        """What it is, in a line."""
        return f"handler {self.signature.name}, in this process"

    def close(self) -> None:
        """Do nothing: no process has to be ended, and its loop ends with this object."""

    def run(
        self, feeds: Feeds, run_model: RunModel, parameters: Mapping[str, Any]
    ) -> Sequence[Array]:
        """Return the outputs for one call.

        Args:
            feeds: the caller's arrays, checked.
            run_model: runs the model on its own inputs.
            parameters: of the call.

        Raises:
            InvalidRequest: the handler refuses the call.
            ModelError: it failed, with its error as the cause; or it returned something else than
                it declares.
        """
        return self._do(self._answer(feeds, run_model, parameters))

    async def run_awaited(
        self, feeds: Feeds, run_model: RunModel, parameters: Mapping[str, Any]
    ) -> Sequence[Array]:
        """Return the outputs for one call, awaited on any loop; see `run`."""
        return await self._done(self._answer(feeds, run_model, parameters))

    async def _answer(
        self, feeds: Feeds, run_model: RunModel, parameters: Mapping[str, Any]
    ) -> Sequence[Array]:
        if self.signature.in_parts:
            raise answers_in_parts(self.signature.name)
        async for answer in self._steps(feeds, run_model, parameters):
            return answer
        raise AssertionError

    def stream(
        self, feeds: Feeds, run_model: RunModel, parameters: Mapping[str, Any]
    ) -> Generator[Sequence[Array], None, None]:
        """Yield the outputs for one call: once, unless the handler answers in parts; see `run`."""
        parts = _Steps(self._steps(feeds, run_model, parameters))
        try:
            while (part := self._do(parts.next())) is not None:
                yield part
        finally:
            with suppress(CancelledError):  # the loop ends, too
                self._do(parts.close())

    async def stream_awaited(
        self, feeds: Feeds, run_model: RunModel, parameters: Mapping[str, Any]
    ) -> AsyncGenerator[Sequence[Array], None]:
        """Yield the outputs for one call, awaited on any loop; see `stream`."""
        parts = _Steps(self._steps(feeds, run_model, parameters))
        try:
            while (part := await self._done(parts.next())) is not None:
                yield part
        finally:
            await asyncio.shield(self._done(parts.close()))

    def _do(self, step: Coroutine[Any, Any, _Found]) -> _Found:
        """Do a step on the handler's loop; without one, on this thread."""
        if self._loop is None:
            return at_once(step)
        future = self._loop.run(step)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _done(self, step: Coroutine[Any, Any, _Found]) -> "asyncio.Future[_Found]":
        """Do a step on the handler's loop, which is cancelled with the future."""
        assert self._loop is not None
        return asyncio.wrap_future(self._loop.run(step))

    async def _steps(
        self, feeds: Feeds, run_model: RunModel, parameters: Mapping[str, Any]
    ) -> AsyncGenerator[Sequence[Array], None]:
        """Yield the outputs for one call, part by part where the handler has parts."""
        arrays, options = self._decoded(feeds), {PARAMETERS: dict(parameters)}
        num_rows, in_parts = len(arrays[0]) if arrays else 1, self.signature.in_parts
        if self._network is None:
            if in_parts:
                parts = self._instance.predict_parts(arrays, num_rows, options)
                async with aclosing(self._checked_parts(parts)) as checked:
                    async for part in checked:
                        yield part
            else:
                yield await self._checked(self._instance.predict(arrays, num_rows, options))
            return
        state = None
        if PREPROCESS in self.signature.methods:
            step = self._instance.preprocess(arrays, options)
            arrays, state = await self._checked(step)
        if self._network.is_batchable and not len(arrays[0]):
            outputs: Sequence[Array] = [each.no_rows() for each in self._network.outputs]
        else:
            names = [each.name for each in self._network.inputs]
            given = dict(zip(names, arrays, strict=True))
            if self._loop is None:
                outputs = run_model(given)
            else:
                outputs = await asyncio.to_thread(run_model, given)
        if POSTPROCESS not in self.signature.methods:
            yield outputs
        elif in_parts:
            parts = self._instance.postprocess_parts(outputs, num_rows, options, state)
            async with aclosing(self._checked_parts(parts)) as checked:
                async for part in checked:
                    yield part
        else:
            last = self._instance.postprocess(outputs, num_rows, options, state)
            yield await self._checked(last)

    async def _checked_parts(self, parts: Parts) -> Parts:
        """Step a generator, among those of other calls."""
        try:
            while (part := await self._checked(_next(parts))) is not None:
                yield part
        finally:
            await self._checked(_close(parts))

    async def _checked(self, step: Coroutine[Any, Any, _Found]) -> _Found:
        with self._turn:
            try:
                return await step
            except WrongValue as err:
                raise ModelError(str(err)) from err

    def _decoded(self, feeds: Feeds) -> list[Array]:
        """Return the arrays, with pictures as pixels."""
        arrays = []
        for tensor in self.tensors.inputs:
            array = feeds[tensor.name]
            if tensor.is_picture:
                (pixels,) = decode([array.tolist()])
                array = np.empty(len(pixels), object)
                for at, each in enumerate(pixels):
                    array[at] = each
            arrays.append(array)
        sizes = [len(each) for each in arrays]
        if len(set(sizes)) > 1:
            raise InvalidRequest(f"expected as many rows of each input, got {sizes}")
        return arrays


class _Steps:
    """The steps of a call's answer, one at a time: the end waits for one that is cancelled."""

    def __init__(self, parts: AsyncGenerator[Sequence[Array], None]) -> None:
        self._parts, self._turn = parts, asyncio.Lock()

    async def next(self) -> Sequence[Array] | None:
        """Return the next part, None at the end."""
        async with self._turn:
            return await _next(self._parts)

    async def close(self) -> None:
        """Take no further one."""
        async with self._turn:
            await self._parts.aclose()


class _Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._lock = threading.RLock()  # `close` may come in the middle of `run`: objects end then
        self._is_closed = False
        self._steps: set[Future[Any]] = set()
        threading.Thread(target=self._serve, name="handler-loop", daemon=True).start()

    def run(self, step: Coroutine[Any, Any, _Found]) -> "Future[_Found]":
        """Run a coroutine, which is cancelled with the future, or once the loop is closed."""
        with self._lock:
            if self._is_closed:
                step.close()
                raise CancelledError
            future = asyncio.run_coroutine_threadsafe(step, self._loop)
            self._steps.add(future)
        future.add_done_callback(self._steps.discard)
        return future

    def close(self) -> None:
        """End its tasks, those too that a handler has started itself, and the thread."""
        with self._lock:
            self._is_closed = True
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _serve(self) -> None:
        self._loop.run_forever()
        self._runner.close()
        for each in [*self._steps]:
            each.cancel()


async def _next(parts: AsyncGenerator[_Found, None]) -> _Found | None:
    """Return the next part, None at the end."""
    return await anext(parts, None)


async def _close(parts: AsyncGenerator[Any, None]) -> None:
    await parts.aclose()
