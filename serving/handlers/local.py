"""A handler in this process, for `serving.Model`: the same steps as in the server, one by one."""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from serving import json_values
from serving.batching.run import answers_in_parts
from serving.errors import InvalidRequest, ModelError, ModelNotFound
from serving.handlers.handler import Handler
from serving.handlers.instance import Instance
from serving.handlers.kinds import WrongValue
from serving.handlers.loading import HandlerSource, load
from serving.handlers.model import require_model
from serving.handlers.pictures import decode
from serving.handlers.signature import PARAMETERS, POSTPROCESS, PREPROCESS, HandlerSignature
from serving.tensors import Array, Feeds, Outputs, TensorSignature

RunModel = Callable[[Feeds], Sequence[Array]]


class OtherModels:
    """The models that a handler calls by `self.models`, in this process."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = models

    def infer(self, name: str, inputs: Any) -> Outputs:
        """Run another model in this process, as `Models.infer` describes it."""
        model = self._named(name)
        return self._as_texts(model, model.infer(json_values.as_texts(inputs)))

    def _named(self, name: str) -> Any:
        if name not in self._models:
            known = ", ".join(self._models) or "none"
            raise ModelNotFound(f"expected a model of {known} (the argument models), got {name!r}")
        return self._models[name]

    @staticmethod
    def _as_texts(model: Any, found: Outputs) -> Outputs:
        columns = {each.name for each in model.describe().outputs if each.content == "json"}
        texts = {
            output: json_values.written(output, array) if output in columns else array
            for output, array in found.items()
        }
        return Outputs(texts, found.model_version)

    def stream(self, name: str, inputs: Any) -> Generator[Outputs, None, None]:
        """Have another model in this process answer in parts, as `Models.stream` describes it."""
        model = self._named(name)
        parts: Generator[Outputs, None, None] = model.stream(json_values.as_texts(inputs))
        with closing(parts):
            for part in parts:
                yield self._as_texts(model, part)


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
        self.signature: HandlerSignature = self._instance.signature
        require_model(self.signature, has_model=network is not None)
        self.tensors = self.signature.tensors(network)
        self._network = network
        self._lock = threading.Lock()
        self._instance.setup(folder or home)

    @property
    def line(self) -> str:
        """What it is, in a line."""
        return f"handler {self.signature.name}, in this process"

    def close(self) -> None:
        """Do nothing: no process has to be ended."""

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
        if self.signature.in_parts:
            raise answers_in_parts(self.signature.name)
        (answer,) = self.stream(feeds, run_model, parameters)
        return answer

    def stream(
        self, feeds: Feeds, run_model: RunModel, parameters: Mapping[str, Any]
    ) -> Generator[Sequence[Array], None, None]:
        """Yield the outputs for one call: once, unless the handler answers in parts; see `run`."""
        arrays, options = self._decoded(feeds), {PARAMETERS: dict(parameters)}
        num_rows, in_parts = len(arrays[0]) if arrays else 1, self.signature.in_parts
        if self._network is None:
            if in_parts:
                yield from self._parts(self._instance.predict_parts, arrays, num_rows, options)
            else:
                yield self._call(self._instance.predict, arrays, num_rows, options)
            return
        state = None
        if PREPROCESS in self.signature.methods:
            arrays, state = self._call(self._instance.preprocess, arrays, options)
        if self._network.is_batchable and not len(arrays[0]):
            outputs: Sequence[Array] = [each.no_rows() for each in self._network.outputs]
        else:
            names = [each.name for each in self._network.inputs]
            outputs = run_model(dict(zip(names, arrays, strict=True)))
        given = outputs, num_rows, options, state
        if POSTPROCESS not in self.signature.methods:
            yield outputs
        elif in_parts:
            yield from self._parts(self._instance.postprocess_parts, *given)
        else:
            yield self._call(self._instance.postprocess, *given)

    def _parts(
        self, method: Callable[..., Any], *args: Any
    ) -> Generator[Sequence[Array], None, None]:
        """Step a generator, among those of other calls."""
        parts = self._call(method, *args)
        try:
            while (part := self._call(next, parts, None)) is not None:
                yield part
        finally:
            self._call(parts.close)

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        with self._lock:
            try:
                return method(*args)
            except WrongValue as err:
                raise ModelError(str(err)) from err

    def _decoded(self, feeds: Feeds) -> list[Array]:
        """Return the arrays, with pictures as pixels."""
        arrays = []
        for tensor in self.tensors.inputs:
            array = feeds[tensor.name]
            if tensor.content == "picture":
                (pixels,) = decode([array.tolist()])
                array = np.empty(len(pixels), object)
                for at, each in enumerate(pixels):
                    array[at] = each
            arrays.append(array)
        sizes = [len(each) for each in arrays]
        if len(set(sizes)) > 1:
            raise InvalidRequest(f"expected as many rows of each input, got {sizes}")
        return arrays
