"""The class that a user writes: Python around a model, or in a model's place."""

from collections.abc import AsyncGenerator, Awaitable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from serving.handlers.kinds import Kind
    from serving.handlers.own_metrics import HandlerMetrics
    from serving.tensors import Outputs


class Models(Protocol):
    """The other models of the server, as a handler calls them."""

    def infer(self, name: str, inputs: Any, /) -> "Outputs":
        """Run another model, through its queue and batches, within this call's deadline.

        Several threads may call it at once, until the handler's method has returned.

        Args:
            name: a model that the handler's `uses` names.
            inputs: an array for each input, by its name; see `serving.Client.infer`.

        Returns:
            An array for each output, by its name.

        Raises:
            ServingError: as from `serving.Client.infer`; DeadlineExceeded once nobody waits for
                the handler's own call any more.
        """

    def stream(self, name: str, inputs: Any, /) -> "Generator[Outputs, None, None]":
        """Have another model answer in parts, and yield them: the next is made as one is taken.

        A model that does not answer in parts has one; see `infer` for the rest. Close the iterator
        to take no further one; with the call's own generator it is closed, too.
        """


class AsyncModels(Protocol):
    """The other models of the server, as the `async def` methods of a handler call them."""

    async def infer(self, name: str, inputs: Any, /) -> "Outputs":
        """Run another model, while other calls of the handler go on; see `Models.infer`.

        Tasks that a method starts may call it, too, and so may `asyncio.to_thread`. A task that is
        cancelled gives the other model's run up.
        """

    def stream(self, name: str, inputs: Any, /) -> "AsyncGenerator[Outputs, None]":
        """Have another model answer in parts, for `async for`; see `Models.stream`."""


class Handler:
    """Python around a model: define `preprocess`, `postprocess`, both, or `predict` without one.

        class Sentiment(serving.Handler):
            inputs = {"text": serving.Text()}
            outputs = {"label": serving.Text(), "score": serving.Array("float32")}

            def setup(self, folder): ...             # once in each process
            def preprocess(self, text): ...          # returns the model's inputs
            def postprocess(self, logits): ...       # returns `outputs`

    `preprocess` gets each of `inputs` by its name and returns the model's inputs: a mapping, or the
    array itself where the model has one input. It may return a tuple, (inputs, state); then
    `postprocess` gets the keyword `state`. `postprocess` gets each of the model's outputs by its
    name and returns `outputs` likewise. `predict` gets `inputs` and returns `outputs`.

    Each of them that names `parameters` gets the request's parameters, a mapping; one that names
    `metadata` gets the caller's headers. An instance is used by one thread at a time.

    With `async def` for one of them, many calls are in hand at a time in each process, up to
    `max_concurrency`, on one event loop. A call whose caller has left or is late is cancelled:
    CancelledError at its `await`. Methods without `async` run on that loop, too, and hold it up;
    `setup` may be `async def`, on the same loop.

    A `predict` or `postprocess` with `yield` answers in parts: each value that it yields is
    `outputs`, with the call's rows, and is sent at once. Generators of several calls are open in
    one process, and take turns: so they keep nothing of a call in `self`. One whose caller has
    left gets GeneratorExit at its `yield`.
    """

    inputs: "ClassVar[Mapping[str, Kind] | None]" = None
    """The kind of each input; the model's own inputs if there is no `preprocess`."""
    outputs: "ClassVar[Mapping[str, Kind] | None]" = None
    """The kind of each output; the model's own outputs if there is no `postprocess`."""
    batching: ClassVar[bool] = False
    """Whether rows of several calls may be handled together: no row's answer depends on others."""
    max_concurrency: ClassVar[int] = 64
    """The most calls that each process has in hand at a time, if a method is `async def`, or
    answers in parts."""
    uses: ClassVar[tuple[str, ...]] = ()
    """The names of the other models that it calls by `self.models`."""
    models: Models
    """The other models; set before `setup`."""
    async_models: AsyncModels
    """The same for `async def` methods; set before `setup`."""
    metrics: "HandlerMetrics"
    """Counters and histograms of its own, on the server's page of metrics; set before `setup`."""

    def setup(self, folder: Path) -> Awaitable[None] | None:
        """Prepare, once in each process: read files beside the model.

        Args:
            folder: of the model's version; of the handler's file if there is no model.
        """
