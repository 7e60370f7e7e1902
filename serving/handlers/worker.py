"""The program of a handler's process: import, `setup`, then its jobs.

    server ◀─────────── ready, or failed
           ── job ────▶ done, or failed, error      (in between, from any thread: infer ──▶ reply,
                                                     or stream ──▶ reply, more ──▶ reply ..., leave)
           ── next ───▶ part, or end, failed, error
           ── drop ───▶                              (of a state; or of a job in hand: its outcome,
                                                     one for all steps that are asked for)
                        metrics, before an outcome
                        blocked, at any time

A job is one phase of a call: `preprocess`, `postprocess` or `predict`. The state between the first
two stays here, by the number of the call, until the second, or until the server drops it. The last
phase of a call that is answered in parts is a generator, which stays here likewise: its job, and
each `next`, is one step of it.

One job is done after the other. If a method is `async def` the main thread runs an event loop, and
each job is a task of it (`_LoopWorker`): `drop` cancels it. However a job ends, it has one outcome.

Whichever thread waits for a frame reads the socket, one at a time, and leaves to the others what is
theirs: jobs to the main thread, the reply to a request to the thread or the task that made it.
"""

import asyncio
import itertools
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextvars import ContextVar, copy_context
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from serving import errors
from serving.batching.run import answer_bytes
from serving.handlers import frames
from serving.handlers.frames import BrokenFrame, Frame, FrameReader
from serving.handlers.instance import Instance, Parts, at_once
from serving.handlers.kinds import WrongValue, is_writable
from serving.handlers.loading import (
    HandlerSource,
    imported_beside,
    line_of,
    load,
    place_of,
    text_of,
)
from serving.handlers.signature import PREDICT, PREPROCESS
from serving.processes.end import LOST
from serving.tensors import DTYPES, Array, Outputs, to_array

_PASSED = (errors.InvalidRequest, errors.TooLarge, errors.Unsupported, errors.Overloaded,
           errors.Unavailable, errors.DeadlineExceeded, errors.ModelNotFound)  # fmt: skip
"""Errors of another model's that a handler may pass on to its caller."""
_MAX_TRACEBACK = 8_000
_BEAT_S = 1.0
"""The longest time between two looks whether the event loop is blocked."""
_GRACE_S = 0.1
"""How long a loop may still take to answer."""
_JOB: ContextVar[int | None] = ContextVar("job", default=None)
"""The job of a task, and of the tasks that it starts."""
_log = logging.getLogger(__name__)


class _ServerLink:
    """The socket to the server; used by several threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = FrameReader(sock)
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._news = threading.Condition(self._receiving)
        self._is_read = False
        """Whether a thread waits for the socket."""
        self._num_waiting = 0
        """Threads that wait for news of the one that does."""
        self.frames: deque[Frame] = deque()
        """Those for the main thread: jobs, and replies that no thread waits for."""
        self._replies: dict[int, deque[Frame]] = {}
        """Those that threads wait for, or will, by the number of the request, as they have come."""
        self._numbers = itertools.count(1)
        self._job: int | None = None
        """The latest of jobs that come one by one; None for none, or if several may be open."""
        self.open: set[int] = set()
        """The jobs in hand. Changed while nothing is sent."""
        self.wake: Callable[[], object] | None = None
        """Called where another thread has read frames for the main thread, which runs a loop."""
        self.states: dict[int, Any] = {}
        """By the number of the call."""

    def next_job(self) -> Frame:
        """Wait for the next job."""
        frame = self._wait(0)
        # Of a call that is dropped, other models are not called any more.
        if frame.fields["kind"] != "drop":
            self._job = frame.fields["job"]
            self.open.add(self._job)
        return frame

    def _wait(self, request: int) -> Frame:
        """Read frames, or let another thread read, until the one that is waited for has come.

        Args:
            request: the number of the request whose reply it is; 0 for the next job.
        """
        replies = self._replies
        with self._receiving:
            while not (self.frames if request == 0 else replies[request]):
                if self._is_read:
                    self._num_waiting += 1
                    self._news.wait()
                    self._num_waiting -= 1
                    continue
                self._is_read = True
                self._receiving.release()
                try:
                    found = [*self._reader.read()]
                except (EOFError, OSError, BrokenFrame):
                    os._exit(LOST)  # this thread may be any
                finally:
                    self._receiving.acquire()
                    self._is_read = False
                self._sort(found)
                if self._num_waiting:
                    self._news.notify_all()
                if self.wake is not None and self.frames:
                    self.wake()
            if request == 0:
                return self.frames.popleft()
            frame = replies[request].popleft()
            if not frame.fields.get("is_part"):  # else an error may come before it asks for more
                del replies[request]
            return frame

    def read_ready(self) -> None:
        """Read what has come, unless another thread does."""
        with self._receiving:
            if self._is_read:
                return
            try:
                self._sort([*self._reader.read(socket.MSG_DONTWAIT)])
            except BlockingIOError:
                return
            except (EOFError, OSError, BrokenFrame):
                os._exit(LOST)
            if self._num_waiting:
                self._news.notify_all()

    def _sort(self, found: Sequence[Frame]) -> None:
        for frame in found:
            number = frame.fields.get("request")
            if frame.fields["kind"] == "drop" and self.wake is None:
                self._void(frame)
                self.frames.appendleft(frame)
            elif number in self._replies:
                self._replies[number].append(frame)
            elif number is None or self.wake is not None:
                self.frames.append(frame)

    def _void(self, drop: Frame) -> None:
        """Forget the steps that were asked for ahead, of a job that is dropped."""
        job = drop.fields["job"]
        stays = [
            each
            for each in self.frames
            if each.fields["kind"] != "next" or each.fields["job"] != job
        ]
        drop.fields["is_asked"] = len(stays) < len(self.frames)
        self.frames.clear()
        self.frames.extend(stays)

    def send(self, fields: dict[str, Any], arrays: Any = ()) -> None:
        """Send a frame."""
        buffers = frames.encode(fields, arrays)
        with self._sending:
            self._send(buffers)

    @property
    def fileno(self) -> int:
        """The socket's, for an event loop."""
        return self._socket.fileno()

    def end_job(self, job: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Send the outcome of a job; later requests for it are refused."""
        with self._sending:
            self.open.discard(job)
            self._send(buffers)

    def _send(self, buffers: Sequence[bytes | memoryview]) -> None:
        if sum(map(len, buffers)) <= frames.FEW_BYTES:
            buffers = [b"".join(buffers)]
        try:
            for buffer in buffers:
                self._socket.sendall(buffer)
        except OSError:
            os._exit(LOST)

    def request(
        self, number: int, job: int | None, fields: dict[str, Any], arrays: Sequence[Array]
    ) -> None:
        """Send a request of a number for a job, None for the only one in hand.

        Raises:
            Unavailable: that job is not in hand.
        """
        buffers = None if job is None else self._request(fields, job, number, arrays)
        with self._sending:
            known = self._job if job is None else job
            if known is None or known not in self.open:
                raise errors.Unavailable("models can be called while their call is answered")
            self._send(buffers or self._request(fields, known, number, arrays))

    def ask(self, job: int | None, fields: dict[str, Any], arrays: Sequence[Array]) -> Frame:
        """Send a request, as `request` does, and wait for the reply."""
        number = self.new_number()
        self._replies[number] = deque()
        try:
            self.request(number, job, fields, arrays)
        except BaseException:
            del self._replies[number]
            raise
        return self._wait(number)

    def new_number(self) -> int:
        """Return a number for a request."""
        return next(self._numbers)

    def ask_more(self, number: int) -> Frame:
        """Ask for the next part of the answer to a request, and wait for it."""
        self.send({"kind": "more", "request": number})
        return self._wait(number)

    def leave(self, number: int) -> None:
        """Take no further part of the answer to a request, nor an error that comes."""
        self._replies.pop(number, None)
        self.send({"kind": "leave", "request": number})

    @staticmethod
    def _request(
        fields: dict[str, Any], job: int, number: int, arrays: Sequence[Array]
    ) -> Sequence[bytes | memoryview]:
        return frames.encode({**fields, "job": job, "request": number}, arrays)


class _OtherModels:
    """The other models behind the server."""

    def __init__(self, server: _ServerLink, uses: Sequence[str], job: int | None = None) -> None:
        """Prepare.

        Args:
            server: is asked.
            uses: the models that may be called.
            job: the one that calls are part of; None for that of the task, or the only one in hand.
        """
        self._server, self._uses, self._only = server, uses, job

    @property
    def _job(self) -> int | None:
        return _JOB.get() if self._only is None else self._only

    def _asked(self, kind: str, name: str, inputs: Any) -> tuple[dict[str, Any], list[Array]]:
        if name not in self._uses:
            known = ", ".join(self._uses) or "none"
            raise errors.ModelNotFound(f"the handler's `uses` has no model {name!r}, only {known}")
        given = inputs if isinstance(inputs, dict) else {"": inputs}
        arrays = [_sendable(f"an array for {key}", value) for key, value in given.items()]
        return {"kind": kind, "name": name, "names": [*map(str, given)]}, arrays

    @staticmethod
    def _outputs_of(reply: Frame) -> Outputs:
        if (reason := reply.fields.get("error")) is not None:
            raise getattr(errors, reason)(reply.fields["text"])
        outputs = dict(zip(reply.fields["names"], reply.arrays, strict=True))
        return Outputs(outputs, reply.fields["version"])


class _Models(_OtherModels):
    """For threads."""

    def infer(self, name: str, inputs: Any) -> Outputs:
        """Have the server run another model, as `Models.infer` describes it."""
        reply = self._server.ask(self._job, *self._asked("infer", name, inputs))
        return self._outputs_of(reply)

    def stream(self, name: str, inputs: Any) -> Generator[Outputs, None, None]:
        """Have the server stream another model, as `Models.stream` describes it."""
        reply = self._server.ask(self._job, *self._asked("stream", name, inputs))
        number, is_open = reply.fields["request"], True
        try:
            while not reply.fields.get("is_end"):
                is_open = reply.fields.get("is_part", False)
                yield self._outputs_of(reply)
                if not is_open:
                    return
                reply = self._server.ask_more(number)
            is_open = False
        finally:
            if is_open:
                self._server.leave(number)


class _AsyncModels(_OtherModels):
    """For tasks of the event loop."""

    def __init__(
        self, server: _ServerLink, uses: Sequence[str], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Prepare; see `_OtherModels`."""
        super().__init__(server, uses)
        self._loop = loop
        self._replies: dict[int, asyncio.Future[Frame]] = {}
        """Those that tasks wait for, by the number of the request."""

    async def infer(self, name: str, inputs: Any) -> Outputs:
        """Have the server run another model, as `AsyncModels.infer` describes it."""
        fields, arrays = self._asked("infer", name, inputs)
        return self._outputs_of(await self._ask(self._server.new_number(), fields, arrays))

    async def stream(self, name: str, inputs: Any) -> AsyncGenerator[Outputs, None]:
        """Have the server stream another model, as `AsyncModels.stream` describes it."""
        fields, arrays = self._asked("stream", name, inputs)
        number, is_open = self._server.new_number(), False
        try:
            reply = await self._ask(number, fields, arrays)
            while not reply.fields.get("is_end"):
                is_open = reply.fields.get("is_part", False)
                yield self._outputs_of(reply)
                if not is_open:
                    return
                is_open = False  # where it is cancelled, `_reply` leaves
                reply = await self._reply(number, {"kind": "more", "request": number})
        finally:
            if is_open:
                self._leave(number)

    async def _ask(self, number: int, fields: dict[str, Any], arrays: Sequence[Array]) -> Frame:
        self._server.request(number, self._job, fields, arrays)
        return await self._reply(number)

    async def _reply(self, number: int, fields: dict[str, Any] | None = None) -> Frame:
        """Wait for the reply to a request; a task that is cancelled takes none."""
        future = self._replies.setdefault(number, self._loop.create_future())
        if fields is not None:
            self._server.send(fields)
        try:
            reply: Frame = await future
            if self._replies.get(number) is future:  # no further one comes
                del self._replies[number]
            return reply
        except asyncio.CancelledError:
            self._leave(number)
            raise

    def _leave(self, number: int) -> None:
        self._replies.pop(number, None)
        self._server.leave(number)

    def take(self, reply: Frame) -> None:
        """Take a reply, which may have come too late."""
        number = reply.fields["request"]
        future = self._replies.get(number)
        if future is None or future.done():
            return
        if reply.fields.get("is_part"):  # an error may come before it is asked for more
            self._replies[number] = self._loop.create_future()
        future.set_result(reply)


def _sendable(what: str, value: Any) -> Array:
    """Return a handler's input of another model as an array that a frame holds."""
    array = to_array(value, what)
    if array.dtype.kind in "US":
        array = array.astype(object)
    if array.dtype.kind != "O":
        if array.dtype not in DTYPES.values():
            raise errors.InvalidRequest(f"expected {what}, got one of {array.dtype.name}")
        return array
    for each in array.flat:
        if not is_writable(each):
            raise errors.InvalidRequest(f"expected {what} of texts or bytes, got {each!r:.80}")
    return array


class _Worker:
    """Does jobs, one after the other."""

    def __init__(self, server: _ServerLink, instance: Instance) -> None:
        self._server, self._instance = server, instance
        self._states, self._uses = server.states, instance.signature.uses

    def run(self) -> NoReturn:
        """Do jobs until the server is gone."""
        while True:
            if self._server.frames:  # steps that are asked for ahead: some may be dropped
                self._server.read_ready()
            fields, arrays = self._server.next_job()
            job = fields["job"]
            if fields["kind"] == "drop":
                is_asked = fields["is_asked"] and job in self._states  # else it has had its outcome
                at_once(self._close(job))
                if is_asked:
                    self._server.end_job(job, _dropped(job))
                continue
            if fields["kind"] == "next" and job not in self._states:  # it has ended before
                continue
            if self._uses:
                self._instance.use(_Models(self._server, self._uses, job))
            self._end(job, at_once(self._outcome(fields, arrays)))
            del arrays

    def _end(self, job: int, outcome: list[bytes | memoryview]) -> None:
        """Send the outcome of a job."""
        if (own := self._instance.metrics.take()) is not None:
            self._server.send({"kind": "metrics", "own": own})
        self._server.end_job(job, outcome)

    async def _outcome(
        self, fields: dict[str, Any], arrays: list[Array]
    ) -> list[bytes | memoryview]:
        answer: dict[str, Any] = {"kind": "done", "job": fields["job"]}
        try:
            has_state, outputs = await self._do(fields, arrays)
            if outputs is None:
                return frames.encode(answer | {"kind": "end"})
            if fields["phase"] != PREPROCESS and (too_large := self._too_large(fields, outputs)):
                await self._close(fields["job"])
                return frames.encode(answer | too_large)
            if has_state and fields["phase"] != PREPROCESS:
                answer["kind"] = "part"
            return frames.encode(answer | {"state": has_state}, outputs)
        except errors.InvalidRequest as err:
            answer |= {"kind": "error", "error": type(err).__name__, "text": _line(err)}
        except WrongValue as err:
            answer |= {"kind": "failed", "text": str(err)}
        except _PASSED as err:
            answer |= {"kind": "error", "error": type(err).__name__, "text": _line(err)}
        except (Exception, asyncio.CancelledError):  # it was cancelled here, or by the handler
            answer |= {"kind": "failed", "text": _traceback()}
        return frames.encode(answer)

    def _too_large(self, fields: dict[str, Any], outputs: list[Array]) -> dict[str, Any] | None:
        """Return the outcome of outputs that have more bytes than an answer may."""
        sizes = [*map(answer_bytes, outputs)]
        if sum(sizes) <= fields["max_bytes"]:
            return None
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        name = [*(self._instance.signature.outputs or {})][largest]
        return {"kind": "too_large", "output": name, "bytes": sizes[largest]}

    async def _do(
        self, fields: dict[str, Any], arrays: list[Array]
    ) -> tuple[bool, list[Array] | None]:
        """Do a step; returns whether its call has a state here, and the outputs: None at the end.

        What a generator raises is its end, too.
        """
        job, phase, options = fields["job"], fields["phase"], fields.get("options", {})
        if fields["kind"] == "next":
            return await self._step(job, self._states.pop(job))
        if phase != PREPROCESS and self._instance.signature.in_parts:
            rows, state = fields["rows"], self._states.pop(job, None)
            if phase == PREDICT:
                return await self._step(job, self._instance.predict_parts(arrays, rows, options))
            parts = self._instance.postprocess_parts(arrays, rows, options, state)
            return await self._step(job, parts)
        if phase == PREPROCESS:
            inputs, state = await self._instance.preprocess(arrays, options)
            if state is not None:
                self._states[job] = state
            return state is not None, inputs
        if phase == PREDICT:
            return False, await self._instance.predict(arrays, fields["rows"], options)
        state = self._states.pop(job, None)
        return False, await self._instance.postprocess(arrays, fields["rows"], options, state)

    async def _step(self, job: int, parts: Parts) -> tuple[bool, list[Array] | None]:
        """Take the next part of a call, None at its end."""
        async for outputs in parts:
            self._states[job] = parts
            return True, outputs
        return False, None

    async def _close(self, job: int) -> None:
        """Forget a state; a generator whose parts nobody takes gets GeneratorExit."""
        parts = self._states.pop(job, None)
        if isinstance(parts, AsyncGenerator):
            try:
                await parts.aclose()
            except Exception:
                _log.warning("a generator failed at GeneratorExit: %s", _traceback())


class _LoopWorker(_Worker):
    """Does jobs as tasks of an event loop, many at a time."""

    def __init__(
        self, server: _ServerLink, instance: Instance, loop: asyncio.AbstractEventLoop, file: Path
    ) -> None:
        """Prepare.

        Args:
            server: has the jobs.
            instance: does them.
            loop: runs them.
            file: the handler's.
        """
        super().__init__(server, instance)
        self._loop, self._file = loop, file
        self._tasks: dict[int, asyncio.Task[list[bytes | memoryview]]] = {}
        """By the number of the job."""
        self._following: dict[int, deque[Frame]] = {}
        """The further steps that are asked for, of jobs that are in one."""
        self._voided: set[int] = set()
        """Those whose further steps were dropped."""
        self._closing: set[asyncio.Task[None]] = set()
        self._models = _AsyncModels(server, self._uses, loop)
        self._max_s = 0.0
        """How long the loop may be blocked; 0 before the first job."""
        instance.use(_Models(server, self._uses), self._models)

    def run(self) -> NoReturn:
        """Do jobs until the server is gone."""
        self._server.wake = partial(self._loop.call_soon_threadsafe, self._take_frames)
        self._loop.add_reader(self._server.fileno, self._read)
        main = threading.get_ident()
        threading.Thread(target=self._watch, args=(main,), name="loop-watch", daemon=True).start()
        self._loop.run_forever()
        os._exit(1)  # the handler has stopped the loop

    def _read(self) -> None:
        self._server.read_ready()
        self._take_frames()

    def _take_frames(self) -> None:
        while self._server.frames:
            frame = self._server.frames.popleft()
            kind = frame.fields["kind"]
            if kind == "reply":
                self._models.take(frame)
            elif kind == "drop":
                self._drop(frame.fields["job"])
            elif kind == "job":
                self._begin(frame)
            elif (job := frame.fields["job"]) in self._tasks:
                self._following.setdefault(job, deque()).append(frame)
            elif job in self._states:  # else it has ended before
                self._begin(frame)

    def _begin(self, frame: Frame) -> None:
        job = frame.fields["job"]
        self._max_s = frame.fields["max_s"]
        self._server.open.add(job)
        context = copy_context()
        context.run(_JOB.set, job)
        task = self._loop.create_task(self._outcome(*frame), context=context)
        self._tasks[job] = task
        task.add_done_callback(partial(self._take_end, job))

    def _take_end(self, job: int, task: "asyncio.Task[list[bytes | memoryview]]") -> None:
        del self._tasks[job]
        following = self._following.get(job)
        if task.cancelled():  # before its first step
            self._close_soon(job)
            self._end(job, _dropped(job))
        else:
            self._end(job, task.result())
            if following is not None and job in self._states:
                if following:
                    self._begin(following.popleft())
                    return
                if job in self._voided:
                    self._close_soon(job)
                    self._end(job, _dropped(job))
        self._following.pop(job, None)
        self._voided.discard(job)

    def _drop(self, job: int) -> None:
        """Cancel a job in hand, whose outcome comes soon; or forget a state."""
        if self._following.get(job):
            self._following[job].clear()
            self._voided.add(job)
        if (task := self._tasks.get(job)) is not None:
            task.cancel()
        else:
            self._close_soon(job)

    def _close_soon(self, job: int) -> None:
        task = self._loop.create_task(self._close(job))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _watch(self, main: int) -> None:
        """Report that the loop is blocked, on a thread of its own: the server ends this process.

        Args:
            main: the thread of the loop.
        """
        while True:
            time.sleep(min(_BEAT_S, self._max_s / 4 or _BEAT_S))
            beat = threading.Event()
            self._loop.call_soon_threadsafe(beat.set)
            # Once more: a process that was stopped as a whole may go on just now.
            if beat.wait(self._max_s or None) or beat.wait(_GRACE_S):
                continue
            task = asyncio.current_task(self._loop)
            job = next((job for job, each in [*self._tasks.items()] if each is task), 0)
            place = place_of(sys._current_frames().get(main), self._file)
            self._server.send({"kind": "blocked", "job": job, "text": place})
            return


def _dropped(job: int) -> list[bytes | memoryview]:
    """Return the outcome of a job that was dropped, and had none."""
    return frames.encode({"kind": "failed", "job": job, "text": "it was dropped"})


def _line(err: Exception) -> str:
    return text_of(err)[:1000].encode("utf-8", "replace").decode()  # of a lone surrogate


def _traceback() -> str:
    """Return the traceback of the error in hand, without the lines of this package."""
    kind, err, trace = sys.exc_info()
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).parent == _HERE:
        trace = trace.tb_next
    text = "".join(traceback.format_exception(kind, err, trace))
    return text[-_MAX_TRACEBACK:]


_HERE = Path(__file__).parent


class _LogLines(logging.Handler):
    """Writes log records to stderr, where the server reads them: a level in brackets, a line."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record).replace("\n", "\\n")
            sys.stderr.write(f"<{record.levelno}>{text}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def main(channel: socket.socket, words: dict[str, Any]) -> NoReturn:
    """Run a process, as `process.start` describes it."""
    server = _ServerLink(channel)
    logging.basicConfig(
        level=words["log_level"], handlers=[_LogLines()], format="%(name)s: %(message)s"
    )
    source, network = HandlerSource(Path(words["file"]), words["name"]), words["network"]
    loop = None
    try:
        # A cache of bytecode knows seconds alone: of a file that changes twice within one, to the
        # same length, the next process would run what it was.
        sys.dont_write_bytecode = True
        instance = Instance(load(source), network, None)
        uses, worker = instance.signature.uses, _Worker(server, instance)
        instance.use(_Models(server, uses))
        if instance.signature.is_async:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            worker = _LoopWorker(server, instance, loop, source.file)
        # Else the server refuses it; its `setup` could fail before, for want of the model.
        if instance.signature.needs_model == (network is not None):
            setup = instance.setup(Path(words["folder"]))
            at_once(setup) if loop is None else loop.run_until_complete(setup)
    except BaseException as err:  # of the user's code: it raises anything
        if not isinstance(err, errors.ConfigurationError):  # its line has all but the way there
            _log.debug("%s", _traceback())
        server.send({"kind": "failed", "text": line_of(err, source.file)})
        os._exit(1)
    files = [str(each) for each in imported_beside(source.file)]
    server.send({"kind": "ready", "signature": instance.signature.document(), "files": files})
    worker.run()
