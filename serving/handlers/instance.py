"""A handler's object in this process: its methods, and the check of what they return.

All is awaited, whether a method is `async def` or not. Where none is, nothing waits, and `at_once`
has the outcome without an event loop.
"""

import inspect
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing, closing
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, TypeVar

from serving.handlers.handler import AsyncModels, Handler, Models
from serving.handlers.kinds import Kind, WrongValue, as_typed
from serving.handlers.own_metrics import HandlerMetrics
from serving.handlers.signature import (
    METADATA,
    PARAMETERS,
    POSTPROCESS,
    PREDICT,
    PREPROCESS,
    SETUP,
    STATE,
    HandlerSignature,
    arguments_of,
    signature_of,
)
from serving.tensors import Array, TensorSignature

Options = Mapping[str, Any]
"""By the names of OPTIONS."""
Parts = AsyncGenerator[list[Array], None]
"""The outputs of a call, part by part."""
_Found = TypeVar("_Found")


def at_once(step: Coroutine[Any, Any, _Found]) -> _Found:
    """Run a coroutine that waits for nothing, as those of a handler without `async def`."""
    try:
        step.send(None)
    except StopIteration as end:
        found: _Found = end.value
        return found
    step.close()
    raise RuntimeError("a step without `async def` waits")


class Instance:
    """One object of a handler's class; used by one thread at a time."""

    def __init__(
        self,
        handler: type[Handler] | Handler,
        network: TensorSignature | None,
        models: Models | None,
    ) -> None:
        """Check the class and make an object; `setup` comes next.

        Args:
            handler: the class, or an object that nobody else uses.
            network: the inputs and outputs of the model between its methods; None without one.
            models: the other models; None if `use` comes before `setup`.

        Raises:
            ConfigurationError: the class can't be used, alone or with this model.
        """
        own = handler if isinstance(handler, type) else type(handler)
        self.signature: HandlerSignature = signature_of(own)
        self._network = network
        methods = self.signature.methods
        self._arguments: dict[str, tuple[str, ...] | None] = {}
        """How each method gets its values; see `arguments_of`."""
        for name, kinds in ((PREPROCESS, self.signature.inputs), (PREDICT, self.signature.inputs)):
            if name in methods:
                self._arguments[name] = arguments_of(own, name, tuple(kinds or ()))
        if POSTPROCESS in methods and network is not None:
            names = tuple(each.name for each in network.outputs)
            self._arguments[POSTPROCESS] = arguments_of(own, POSTPROCESS, names)
        self._handler = handler() if isinstance(handler, type) else handler
        self.metrics = HandlerMetrics()
        if not hasattr(own, "metrics"):  # a name of its own
            self._handler.metrics = self.metrics
        if models is not None:
            self.use(models)
        self._options = {name: _named_by(getattr(own, name)) for name in methods}
        self._awaited = {
            each for each in (SETUP, *methods) if iscoroutinefunction(getattr(own, each))
        }

    def use(self, models: Models, async_models: AsyncModels | None = None) -> None:
        """Set the other models."""
        self._handler.models = models
        if async_models is not None:
            self._handler.async_models = async_models

    async def setup(self, folder: Path) -> None:
        """Call the handler's `setup`."""
        found = self._handler.setup(folder)
        if SETUP in self._awaited:
            await found  # type: ignore[misc]

    async def preprocess(
        self, arrays: Sequence[Array], options: Options
    ) -> tuple[list[Array], Any]:
        """Return the model's inputs, in its order, and the state; None without one.

        Raises:
            WrongValue: they are none.
        """
        assert self._network is not None
        found = await self._call(PREPROCESS, self._received(arrays), options)
        state = None
        if isinstance(found, tuple):
            if len(found) != 2:
                raise self._wrong(PREPROCESS, f"expected (inputs, state), got {len(found)} values")
            found, state = found
            if STATE not in self._options.get(POSTPROCESS, ()):
                raise self._wrong(PREPROCESS, "a state is returned, and postprocess names none")
        names = [each.name for each in self._network.inputs]
        values = self._values(PREPROCESS, found, names)
        try:
            inputs = [as_typed(each, values[each.name]) for each in self._network.inputs]
        except WrongValue as err:
            raise self._wrong(PREPROCESS, str(err)) from err
        if self._network.is_batchable and len({len(each) for each in inputs}) > 1:
            sizes = [len(each) for each in inputs]
            raise self._wrong(PREPROCESS, f"expected as many rows of each input, got {sizes}")
        return inputs, state

    async def postprocess(
        self, outputs: Sequence[Array], num_rows: int, options: Options, state: Any = None
    ) -> list[Array]:
        """Return the handler's outputs, in its order.

        Raises:
            WrongValue: they are others than it declares.
        """
        found = await self._call(POSTPROCESS, *self._processed(outputs, options, state))
        return self._returned(POSTPROCESS, found, num_rows)

    async def predict(
        self, arrays: Sequence[Array], num_rows: int, options: Options
    ) -> list[Array]:
        """Return the handler's outputs, in its order; see `postprocess`."""
        found = await self._call(PREDICT, self._received(arrays), options)
        return self._returned(PREDICT, found, num_rows)

    def postprocess_parts(
        self, outputs: Sequence[Array], num_rows: int, options: Options, state: Any = None
    ) -> Parts:
        """Yield the handler's outputs part by part; see `postprocess`."""
        return self._parts(POSTPROCESS, *self._processed(outputs, options, state), num_rows)

    def predict_parts(self, arrays: Sequence[Array], num_rows: int, options: Options) -> Parts:
        """Yield the handler's outputs part by part; see `postprocess`."""
        return self._parts(PREDICT, self._received(arrays), options, num_rows)

    async def _parts(
        self, method: str, values: Mapping[str, Any], options: Options, num_rows: int
    ) -> Parts:
        """Check what a method yields; closed, it closes the method's generator."""
        found = self._begun(method, values, options)
        if isinstance(found, AsyncGenerator):
            async with aclosing(found):
                async for part in found:
                    yield self._returned(method, part, num_rows)
            return
        with closing(found):
            for part in found:
                yield self._returned(method, part, num_rows)

    def _processed(
        self, outputs: Sequence[Array], options: Options, state: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what `postprocess` gets: the model's outputs by name, and options."""
        assert self._network is not None
        names = [each.name for each in self._network.outputs]
        return dict(zip(names, outputs, strict=True)), {**options, STATE: state}

    def _received(self, arrays: Sequence[Array]) -> dict[str, Any]:
        kinds: Mapping[str, Kind] = self.signature.inputs or {}
        return {
            name: kind.received(name, array)
            for (name, kind), array in zip(kinds.items(), arrays, strict=True)
        }

    async def _call(self, method: str, values: Mapping[str, Any], options: Options) -> Any:
        found = self._begun(method, values, options)
        return await found if method in self._awaited else found

    def _begun(self, method: str, values: Mapping[str, Any], options: Options) -> Any:
        """Call a method; returns a coroutine or a generator if it is one."""
        function = getattr(self._handler, method)
        named = {name: options.get(name, {}) for name in self._options[method]}
        if (arguments := self._arguments[method]) is None:
            return function(*values.values(), **named)
        return function(**dict(zip(arguments, values.values(), strict=True)), **named)

    def _returned(self, method: str, found: Any, num_rows: int) -> list[Array]:
        kinds: Mapping[str, Kind] = self.signature.outputs or {}
        values = self._values(method, found, list(kinds))
        try:
            return [kind.returned(name, values[name], num_rows) for name, kind in kinds.items()]
        except WrongValue as err:
            raise self._wrong(method, str(err)) from err

    def _values(self, method: str, found: Any, names: list[str]) -> Mapping[str, Any]:
        """Return what a method returned, by name."""
        if not isinstance(found, Mapping):
            if len(names) == 1 and found is not None:
                return {names[0]: found}
            raise self._wrong(
                method, f"expected {', '.join(names)} by name, got {type(found).__name__}"
            )
        if found.keys() != set(names):
            got = ", ".join(map(str, found)) or "nothing"
            raise self._wrong(method, f"expected {', '.join(names)}, got {got[:200]}")
        return found

    def _wrong(self, method: str, text: str) -> WrongValue:
        return WrongValue(f"{self.signature.name}.{method}: {text}")


def _named_by(method: Any) -> tuple[str, ...]:
    parameters = inspect.signature(method).parameters
    return tuple(name for name in (PARAMETERS, METADATA, STATE) if name in parameters)
