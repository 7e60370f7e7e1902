"""Any model in your own process: `Model` for threads, `AsyncModel` for an event loop."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from serving.batching.parallel import run_parallel, run_whole
from serving.config import BatchingConfig, Device, ModelConfig, Precision
from serving.errors import (
    ConfigurationError,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Unavailable,
)
from serving.handlers.handler import Handler
from serving.handlers.stepped import stepped
from serving.json_values import written_inputs
from serving.model.loaded import LoadedModel
from serving.model.loading import load_model
from serving.model.onnx_errors import reason_of
from serving.system.cores import usable_cores
from serving.tensors import Array, Feeds, ModelInfo, Outputs, as_feeds, as_names

FEW_ROWS = 16
"""The largest call of an event loop that is worth waiting for others: a run of 16 rows takes as
long as the way to a thread and back, some 100 µs."""


_Answer = TypeVar("_Answer")
_Path = str | Path
_Waiting = tuple[Feeds, "asyncio.Future[Outputs]"]
_Outcome = Outputs | BaseException


def never() -> bool:
    """Say that nobody has cancelled a call."""
    return False


class BaseModel:
    """A loaded model: the common part of `Model` and `AsyncModel`."""

    _is_described = False
    """Whether a version needs a manifest."""

    def __init__(self, model: LoadedModel, batching: BatchingConfig | None = None) -> None:
        """Serve a loaded model; most callers use `load`.

        Args:
            model: the model to run.
            batching: sizes and limits.
        """
        self.batching = batching or BatchingConfig()
        self.served = model
        self._network = model.network
        num_threads = max(1, model.settings.num_threads)
        engine = None if self._network is None else self._network.engine
        cores = None if engine is None else engine.max_concurrent_runs
        self._cores = cores or max(1, usable_cores() // num_threads)
        self._names = [each.name for each in model.tensors.outputs]
        is_wide = getattr(engine, "wide", None) is not None
        self._alone = self._network.run_alone if is_wide and self._network else None
        """Runs a call that is alone on all cores, if the model gains by that."""
        self._is_closed = False
        self._reopen: Callable[[], Self] | None = None

    @classmethod
    def load(
        cls,
        path: _Path | None = None,
        version: str | int | None = None,
        device: Device = "auto",
        precision: Precision = "fp32",
        *,
        batching: BatchingConfig | None = None,
        handler: str | Path | Handler | type[Handler] | None = None,
        models: Mapping[str, Any] | None = None,
        threads: int = 0,
    ) -> Self:
        """Load a model, verify it, and check it.

        One with a manifest is checked on its golden samples. Of others this finds out whether their
        rows can be batched.

        Args:
            path: an ONNX file, or the directory of a model with `<version>/model.onnx`; None for a
                handler with `predict`.
            version: which version to load, such as "3" or 3; None for the one that a server
                answers with: the one that `labels.json` calls stable, else the newest good one
                that callers of the version below can go on with. Others are skipped with a
                warning in the log.
            device: "cpu", "cuda", or "auto", which takes CUDA where it works and the CPU elsewhere.
            precision: "fp32" or "int8": model.onnx or model.int8.onnx in the directory. int8 runs
                on the CPU only, which "auto" means for it.
            batching: `max_batch_size` is the most rows in one run, where rows can be batched; the
                queue's limits bind only a server.
            handler: a subclass of `serving.Handler`, an object of it, or its file: inputs and
                outputs are its own. It runs in this process, on one thread at a time; with `async
                def` on an event loop of its own, many calls at a time.
            models: the models that the handler calls by `self.models`, such as other `Model`s.
            threads: of one run, as `--threads` of a server. 0 is one, but as many as cores where a
                call is alone, if that was measured to be faster: it takes a second copy of the
                model's weights, which 1 saves. A model's config.pbtxt takes precedence.

        Raises:
            ModelNotFound: no such model, or no such version of it.
            CorruptModel: the version is damaged, differs from its manifest, answers its golden
                samples wrongly, can't be built or served, or takes too long: 60 s of processor time
                to read and build, 10 s to check. With version None: every version is.
            DeviceError: the device can't be used on this machine.
            ConfigurationError: the version has no int8 variant, int8 was requested on CUDA, the
                directory can't be read, or a device or a precision is unknown.
        """
        ModelConfig(device=device, precision=precision, threads=threads)  # refuses others
        if not isinstance(batching, BatchingConfig | None):
            expected = "BatchingConfig(max_batch_size=64)"
            raise ConfigurationError(f"batching: expected {expected}, got {batching!r:.80}")
        batching = batching or BatchingConfig()
        if path is None:
            if handler is None:
                raise ConfigurationError("expected an ONNX file, a model's directory, or a handler")
            return cls(_alone(handler, models or {}), batching)
        if not isinstance(path, str | os.PathLike):
            raise ConfigurationError(f"path: expected a file or a folder, got {path!r:.80}")
        path = Path(path).absolute()
        asked = None if version is None else str(version)
        loaded = load_model(
            path,
            asked,
            device,
            precision,
            batching.max_batch_size,
            is_described=cls._is_described,
            num_threads=threads or 1,
            most_threads=1 if threads else usable_cores(),
        )
        if handler is not None:
            folder = path.parent if path.is_file() else path / loaded.version
            # Late, here and below: few models have a handler.
            from serving.handlers.local import LocalHandler
            from serving.handlers.model import with_handler

            around = LocalHandler(handler, loaded.tensors, folder, models or {})
            return cls(with_handler(loaded, around), loaded.settings.of(batching))
        model = cls(loaded, loaded.settings.of(batching))
        model._reopen = partial(
            cls.load, path, loaded.version, device, precision, batching=batching, threads=threads
        )
        return model

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        """Pickle path, version and settings; unpickling loads the model again."""
        if self._reopen is None:
            raise TypeError(f"only a {type(self).__name__} from load() can be pickled")
        return self._reopen, ()

    @property
    def version(self) -> str:
        """The version that was loaded, such as "3"."""
        return self.served.version

    def _run(
        self,
        feeds: Feeds,
        is_cancelled: Callable[[], bool] = never,
        parameters: Mapping[str, Any] | None = None,
    ) -> Outputs:
        run = self._runner(is_cancelled)
        return self._outputs(self.served.answer(feeds, parameters or {}, run))

    def _runner(self, is_cancelled: Callable[[], bool] = never) -> Callable[[Feeds], list[Array]]:
        """Return what runs the model itself for a call."""
        if self._is_closed:
            raise Unavailable("the model is closed")
        return partial(self._run_network, is_cancelled=is_cancelled)

    def _outputs(self, arrays: Sequence[Array], names: Sequence[str] = ()) -> Outputs:
        found = Outputs(dict(zip(self._names, arrays, strict=True)), self.served.version)
        return _chosen(found, names)

    def _stream(
        self,
        feeds: Feeds,
        outputs: Sequence[str],
        parameters: Mapping[str, Any] | None,
        is_cancelled: Callable[[], bool] = never,
    ) -> Generator[Outputs, None, None]:
        run = self._runner(is_cancelled)
        with closing(self.served.stream(feeds, parameters or {}, run)) as parts:
            for arrays in parts:
                yield self._outputs(arrays, outputs)

    def _run_network(self, feeds: Feeds, is_cancelled: Callable[[], bool] = never) -> list[Array]:
        """Run the model itself; returns its outputs in order."""
        model, most = self._network, self.batching.max_batch_size
        assert model is not None
        is_batchable = model.tensors.is_batchable
        num_rows = min(map(len, feeds.values())) if is_batchable else 1
        try:
            # As in a server: cores that are free share the rows, or the one run that is worth no
            # more parts.
            is_few = num_rows <= most and num_rows < 2 * model.enough_rows
            alone = self._alone if is_few else None
            if alone is None and num_rows <= most and num_rows <= model.enough_rows:
                return model.run(feeds)
            if not is_batchable:
                return run_whole(model.run, feeds, alone)
            enough, cores = model.enough_rows, self._cores
            return run_parallel(model.run, feeds, most, enough, cores, is_cancelled, alone)
        except ModelError as err:
            raise ModelError(f"the model failed: {reason_of(err.__cause__ or err)}") from err

    def _described(self, version: str | int | None) -> ModelInfo:
        model = self.served
        if version not in (None, "") and str(version) != model.version:
            raise ModelNotFound(f"version {model.version} is loaded, not {str(version)[:40]!r}")
        return replace(model.describe(self.batching), max_request_rows=None)  # a server's limit


class Model(BaseModel):
    """Runs any ONNX model in this process; safe to call from many threads.

        with Model.load("model.onnx") as model:
            outputs = model.infer({"x": array})

    The verbs are those of `serving.Client`. Use it as a context manager, or call `close`.
    """

    def infer(
        self,
        inputs: object,
        *,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> Outputs:
        """Run the model on this thread; past 128 rows the other cores help.

        Args:
            inputs: an array for each input, by its name, of its type and shape; or the array itself
                where the model has one input. Lists and numbers are converted where that loses
                nothing, float64 goes into float32 where every finite value stays finite, and
                integers into another type that holds them.
            outputs: the names of the outputs to return; all by default.
            parameters: for a handler that names `parameters`.

        Returns:
            An array for each output, by its name, and the version.

        Raises:
            InvalidRequest: an input is missing or unknown, or has another type or shape; an output
                is unknown; or an operator of the model, or its handler, refuses its values.
            Unavailable: the model is closed.
            DeviceError: it uses CUDA and was loaded before this process was forked.
            ModelError: the run failed; the text is ONNX Runtime's reason.
        """
        tensors = self.served.tensors
        feeds = as_feeds(tensors, written_inputs(tensors.inputs, inputs))
        return _chosen(self._run(feeds, parameters=parameters), outputs)

    def stream(
        self,
        inputs: object,
        *,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> Generator[Outputs, None, None]:
        """Yield the parts of the answer as they are made, on the thread that takes them.

        A model that does not answer in parts has one. Close the iterator, or drop it, to take no
        further one.

        Args:
            inputs: see `infer`, as for the others.
            outputs: the names of the outputs to return; all by default.
            parameters: for a handler that names `parameters`.

        Yields:
            An array for each output, by its name, and the version.

        Raises:
            ServingError: see `infer`.
        """
        tensors = self.served.tensors
        feeds = as_feeds(tensors, written_inputs(tensors.inputs, inputs))
        return self._stream(feeds, outputs, parameters)

    def describe(self, version: str | int | None = None) -> ModelInfo:
        """Return the model's inputs and outputs, how it is run, and its limits.

        Raises:
            ModelNotFound: another version was asked for than the one that was loaded.
        """
        return self._described(version)

    def models(self) -> list[str]:
        """Return the names of the models: the one that was loaded."""
        return [self.served.manifest.name]

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Return at once: a loaded model is ready.

        Raises:
            Unavailable: the model is closed.
        """
        if self._is_closed:
            raise Unavailable("the model is closed")

    def close(self) -> None:
        """Refuse later calls; calls in progress finish. May be called again."""
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncModel(BaseModel):
    """Runs any ONNX model in this process, for event loops: the same as `Model`, awaited.

    Runs are on threads of the event loop's executor, and a handler's `async def` methods on a loop
    of their own. Calls of up to 16 rows that come while others
    run are run together, where rows can be batched.
    """

    def __init__(self, model: LoadedModel, batching: BatchingConfig | None = None) -> None:
        super().__init__(model, batching)
        self._joined: WeakKeyDictionary[asyncio.AbstractEventLoop, JoinedCalls]
        self._joined = WeakKeyDictionary()

    async def infer(
        self,
        inputs: object,
        *,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> Outputs:
        """Run the model; see `Model.infer`. A call that is cancelled begins no further run."""
        tensors = self.served.tensors
        feeds = as_feeds(tensors, written_inputs(tensors.inputs, inputs))
        # Rows are proved independent for axes of one or more.
        can_join = self.served is self._network and tensors.is_batchable
        can_join = can_join and all(array.size for array in feeds.values())
        sizes = {len(array) for array in feeds.values()} if can_join else set()
        if len(sizes) == 1 and min(sizes) <= min(FEW_ROWS, self.batching.max_batch_size):
            return _chosen(await self._joined_calls().run(feeds), outputs)
        if self.served.is_awaited:
            served: Any = self.served
            found = await served.answer_awaited(feeds, parameters or {}, self._runner())
            return self._outputs(found, outputs)
        run = partial(self._run, parameters=parameters)
        return _chosen(await on_thread(run, feeds), outputs)

    async def stream(
        self,
        inputs: object,
        *,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Outputs, None]:
        """Yield the parts of the answer; see `Model.stream`.

        Each is made on a thread, or on the loop of a handler whose generator is `async def`.
        """
        tensors = self.served.tensors
        feeds = as_feeds(tensors, written_inputs(tensors.inputs, inputs))
        if self.served.is_awaited:
            served: Any = self.served
            parts = served.stream_awaited(feeds, parameters or {}, self._runner())
            async with aclosing(parts):
                async for arrays in parts:
                    yield self._outputs(arrays, outputs)
            return
        async with aclosing(stepped(self._stream(feeds, outputs, parameters))) as steps:
            async for part in steps:
                yield part

    async def describe(self, version: str | int | None = None) -> ModelInfo:
        """Return the model's inputs and outputs, how it is run, and its limits."""
        return self._described(version)

    async def models(self) -> list[str]:
        """Return the names of the models: the one that was loaded."""
        return [self.served.manifest.name]

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Return at once: a loaded model is ready."""
        if self._is_closed:
            raise Unavailable("the model is closed")

    async def close(self) -> None:
        """Refuse later calls; calls in progress finish. May be called again."""
        self._is_closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _joined_calls(self) -> "JoinedCalls":
        loop = asyncio.get_running_loop()
        if (calls := self._joined.get(loop)) is None:
            enough = min(self.served.enough_rows, self.batching.max_batch_size)
            calls = self._joined[loop] = JoinedCalls(loop, self._run, enough, self._cores)
        return calls


def _alone(handler: str | Path | Handler | type[Handler], models: Mapping[str, Any]) -> LoadedModel:
    """Load a handler that predicts without a model."""
    from serving.handlers.local import LocalHandler
    from serving.handlers.model import without_model

    around = LocalHandler(handler, None, None, models)
    return without_model(around.signature.name, around)


def _chosen(found: Outputs, names: Sequence[str]) -> Outputs:
    """Return the outputs of these names; all if none is named."""
    names = as_names("outputs", names)
    if not names:
        return found
    unknown = [str(name)[:80] for name in names if name not in found]
    if unknown:
        raise InvalidRequest(f"expected outputs of {', '.join(found)}, got {unknown[0]!r}")
    return Outputs({name: found[name] for name in names}, found.model_version)


async def on_thread(work: Callable[[Any, Callable[[], bool]], _Answer], inputs: object) -> _Answer:
    """Do work on a thread of the event loop's executor, which is cancelled with this task."""
    is_cancelled = threading.Event()
    try:
        return await asyncio.to_thread(work, inputs, is_cancelled.is_set)
    finally:
        is_cancelled.set()


# Small calls of an event loop, joined: 1.8 to 8 times the rate of as many calls by to_thread.


class JoinedCalls:
    """The small calls of one event loop; used on that loop's thread only."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        run: Callable[[Feeds], Outputs],
        max_batch_size: int,
        num_threads: int,
    ) -> None:
        """Prepare; the threads are those of the loop's executor.

        Args:
            loop: the event loop.
            run: runs one batch; safe to call from many threads.
            max_batch_size: rows that are enough for a run of their own; the most in one.
            num_threads: the most concurrent runs.
        """
        self._loop = loop
        self._run = run
        self._max_batch_size = max_batch_size
        self._num_threads = num_threads
        self._num_running = 0
        self._waiting: deque[_Waiting] = deque()
        self._num_rows = 0
        """Rows of the calls that wait."""
        self._is_due = False
        """Whether the loop's next turn starts a run."""

    async def run(self, feeds: Feeds) -> Outputs:
        """Run rows together with those of other calls.

        A call that is cancelled before its run begins is left out.

        Args:
            feeds: as many rows of each input.

        Raises:
            ServingError: as from `run` for these rows.
        """
        future: asyncio.Future[Outputs] = self._loop.create_future()
        self._waiting.append((feeds, future))
        self._num_rows += _num_rows(feeds)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._start)  # behind the tasks that are ready to call, too
        return await future

    def _start(self) -> None:
        """Start a run if none is on, and further ones that are full."""
        self._is_due = False
        while self._waiting and (
            not self._num_running
            or (self._num_rows >= self._max_batch_size and self._num_running < self._num_threads)
        ):
            calls, futures = self._take()
            if not calls:
                continue
            try:
                run = self._loop.run_in_executor(None, _outcomes, self._run, calls)
            except RuntimeError as err:  # the executor was shut down
                _deliver(futures, [err] * len(futures))
                continue
            self._num_running += 1
            run.add_done_callback(partial(self._finish, futures))

    def _take(self) -> tuple[list[Feeds], list["asyncio.Future[Outputs]"]]:
        """Take the calls of one run, without those that were cancelled: rows of like shapes."""
        calls: list[Feeds] = []
        futures: list[asyncio.Future[Outputs]] = []
        room, shapes = self._max_batch_size, _shapes(self._waiting[0][0])
        while self._waiting:
            feeds, future = self._waiting[0]
            number = _num_rows(feeds)
            if calls and (number > room or _shapes(feeds) != shapes):
                break
            self._waiting.popleft()
            self._num_rows -= number
            if not future.done():
                calls.append(feeds)
                futures.append(future)
                room -= number
        return calls, futures

    def _finish(
        self,
        futures: list["asyncio.Future[Outputs]"],
        run: "asyncio.Future[Sequence[_Outcome]]",
    ) -> None:
        self._num_running -= 1
        self._start()
        if run.cancelled():  # the executor was shut down
            _deliver(futures, [asyncio.CancelledError()] * len(futures))
        else:
            _deliver(futures, run.result())


def _num_rows(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def _shapes(feeds: Feeds) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in feeds.values()]


def _outcomes(run: Callable[[Feeds], Outputs], calls: list[Feeds]) -> Sequence[_Outcome]:
    """Run a batch; if it fails, each call's rows alone, so that only the poison call fails."""
    if len(calls) == 1:
        try:
            return [run(calls[0])]
        except BaseException as err:
            return [err]
    try:
        found = run({name: np.concatenate([each[name] for each in calls]) for name in calls[0]})
    except Exception:
        return [outcome for each in calls for outcome in _outcomes(run, [each])]
    parts, first = [], 0
    for each in calls:
        end = first + _num_rows(each)
        arrays: dict[str, Array] = {name: array[first:end] for name, array in found.items()}
        parts.append(Outputs(arrays, found.model_version))
        first = end
    return parts


def _deliver(futures: list["asyncio.Future[Outputs]"], outcomes: Sequence[_Outcome]) -> None:
    for future, outcome in zip(futures, outcomes, strict=True):
        if future.done():  # its caller left
            continue
        if isinstance(outcome, Outputs):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
