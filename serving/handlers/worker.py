"""The program of a handler's process: import, `setup`, then one job after the other.

    server ◀─────────── ready, or failed
           ── job ────▶ done, or failed, error      (in between, from any thread: infer ──▶ reply,
                                                     or stream ──▶ reply, more ──▶ reply ..., leave)
           ── next ───▶ part, or end, failed, error
                        metrics, before an outcome

A job is one phase of a call: `preprocess`, `postprocess` or `predict`. The state between the first
two stays here, by the number of the call, until the second, or until the server drops it. The last
phase of a call that is answered in parts is a generator, which stays here likewise: its job, and
each `next`, is one step of it.

Whichever thread waits for a frame reads the socket, one at a time, and leaves to the others what is
theirs: the next job to the main thread, the reply to a request to the thread that made it.
"""

import itertools
import logging
import os
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from serving import errors
from serving.batching.run import answer_bytes
from serving.handlers import frames
from serving.handlers.frames import BrokenFrame, Frame, FrameReader
from serving.handlers.instance import Instance
from serving.handlers.kinds import WrongValue, is_writable
from serving.handlers.loading import HandlerSource, imported_beside, line_of, load, text_of
from serving.handlers.signature import PREDICT, PREPROCESS
from serving.processes.end import LOST
from serving.tensors import DTYPES, Array, Outputs, to_array

_PASSED = (errors.InvalidRequest, errors.TooLarge, errors.Unsupported, errors.Overloaded,
           errors.Unavailable, errors.DeadlineExceeded, errors.ModelNotFound)  # fmt: skip
"""Errors of another model's that a handler may pass on to its caller."""
_MAX_TRACEBACK = 8_000
_log = logging.getLogger(__name__)


class _ServerLink:
    """The socket to the server; used by several threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._frames = self._read(FrameReader(sock))
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._news = threading.Condition(self._receiving)
        self._is_read = False
        """Whether a thread waits for the socket."""
        self._num_waiting = 0
        """Threads that wait for news of the one that does."""
        self._jobs: deque[Frame] = deque()
        self._replies: dict[int, Frame] = {}
        """By the number of the request."""
        self._numbers = itertools.count(1)
        self._job = 0
        """The call in hand; 0 for none. Changed while nothing is sent."""
        self.states: dict[int, Any] = {}
        """By the number of the call."""

    @staticmethod
    def _read(reader: FrameReader) -> Iterator[Frame]:
        while True:
            yield from reader.read()

    def next_job(self) -> Frame:
        """Wait for the next job."""
        frame = self._wait(0)
        # Of a call that is dropped, other models are not called any more.
        self._job = frame.fields.get("job", 0) if frame.fields["kind"] != "drop" else 0
        return frame

    def _wait(self, request: int) -> Frame:
        """Read frames, or let another thread read, until the one that is waited for has come.

        Args:
            request: the number of the request whose reply it is; 0 for the next job.
        """
        jobs, replies = self._jobs, self._replies
        with self._receiving:
            while not (jobs if request == 0 else request in replies):
                if self._is_read:
                    self._num_waiting += 1
                    self._news.wait()
                    self._num_waiting -= 1
                    continue
                self._is_read = True
                self._receiving.release()
                try:
                    frame = next(self._frames)
                except (EOFError, OSError, BrokenFrame):
                    os._exit(LOST)  # this thread may be any
                finally:
                    self._receiving.acquire()
                    self._is_read = False
                self._sort(frame)
                if self._num_waiting:
                    self._news.notify_all()
            return replies.pop(request) if request else jobs.popleft()

    def _sort(self, frame: Frame) -> None:
        kind = frame.fields["kind"]
        if kind == "reply":
            self._replies[frame.fields["request"]] = frame
        else:
            self._jobs.append(frame)

    def send(self, fields: dict[str, Any], arrays: Any = ()) -> None:
        """Send a frame."""
        buffers = frames.encode(fields, arrays)
        with self._sending:
            self._send(buffers)

    def end_job(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Send the outcome of the job; later requests for it are refused."""
        with self._sending:
            self._job = 0
            self._send(buffers)

    def _send(self, buffers: Sequence[bytes | memoryview]) -> None:
        if sum(map(len, buffers)) <= frames.FEW_BYTES:
            buffers = [b"".join(buffers)]
        try:
            for buffer in buffers:
                self._socket.sendall(buffer)
        except OSError:
            os._exit(LOST)

    def ask(self, job: int | None, fields: dict[str, Any], arrays: Sequence[Array]) -> Frame:
        """Send a request for a job, None for the one in hand, and wait for the reply.

        Raises:
            Unavailable: that job is not in hand.
        """
        number = next(self._numbers)
        buffers = None if job is None else self._request(fields, job, number, arrays)
        with self._sending:
            if not self._job or job not in (None, self._job):
                raise errors.Unavailable("models can be called while their call is answered")
            self._send(buffers or self._request(fields, self._job, number, arrays))
        return self._wait(number)

    def ask_more(self, number: int) -> Frame:
        """Ask for the next part of the answer to a request, and wait for it."""
        self.send({"kind": "more", "request": number})
        return self._wait(number)

    def leave(self, number: int) -> None:
        """Take no further part of the answer to a request, nor an error that has come."""
        self.send({"kind": "leave", "request": number})
        with self._receiving:
            self._replies.pop(number, None)

    @staticmethod
    def _request(
        fields: dict[str, Any], job: int, number: int, arrays: Sequence[Array]
    ) -> Sequence[bytes | memoryview]:
        return frames.encode({**fields, "job": job, "request": number}, arrays)


class _Models:
    """The other models behind the server, for the time of a job or, without one, of any."""

    def __init__(self, server: _ServerLink, uses: Sequence[str], job: int | None = None) -> None:
        self._server, self._uses, self._job = server, uses, job

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
    """Does jobs."""

    def __init__(self, server: _ServerLink, instance: Instance) -> None:
        self._server, self._instance = server, instance
        self._states, self._uses = server.states, instance.signature.uses

    def run(self) -> NoReturn:
        """Do jobs until the server is gone."""
        while True:
            fields, arrays = self._server.next_job()
            if fields["kind"] == "drop":
                self._close(fields["job"])
                continue
            if self._uses:
                self._instance.use(_Models(self._server, self._uses, fields["job"]))
            outcome = self._outcome(fields, arrays)
            if (own := self._instance.metrics.take()) is not None:
                self._server.send({"kind": "metrics", "own": own})
            self._server.end_job(outcome)
            del arrays

    def _outcome(self, fields: dict[str, Any], arrays: list[Array]) -> list[bytes | memoryview]:
        answer: dict[str, Any] = {"kind": "done", "job": fields["job"]}
        try:
            has_state, outputs = self._do(fields, arrays)
            if outputs is None:
                return frames.encode(answer | {"kind": "end"})
            if fields["phase"] != PREPROCESS and (too_large := self._too_large(fields, outputs)):
                self._close(fields["job"])
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
        except Exception:
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

    def _do(self, fields: dict[str, Any], arrays: list[Array]) -> tuple[bool, list[Array] | None]:
        """Do a step; returns whether its call has a state here, and the outputs: None at the end.

        What a generator raises is its end, too.
        """
        job, phase, options = fields["job"], fields["phase"], fields.get("options", {})
        if fields["kind"] == "next":
            return self._step(job, self._states.pop(job))
        if phase != PREPROCESS and self._instance.signature.in_parts:
            rows, state = fields["rows"], self._states.pop(job, None)
            if phase == PREDICT:
                return self._step(job, self._instance.predict_parts(arrays, rows, options))
            parts = self._instance.postprocess_parts(arrays, rows, options, state)
            return self._step(job, parts)
        if phase == PREPROCESS:
            inputs, state = self._instance.preprocess(arrays, options)
            if state is not None:
                self._states[job] = state
            return state is not None, inputs
        if phase == PREDICT:
            return False, self._instance.predict(arrays, fields["rows"], options)
        state = self._states.pop(job, None)
        return False, self._instance.postprocess(arrays, fields["rows"], options, state)

    def _step(
        self, job: int, parts: Generator[list[Array], None, None]
    ) -> tuple[bool, list[Array] | None]:
        """Take the next part of a call, None at its end."""
        for outputs in parts:
            self._states[job] = parts
            return True, outputs
        return False, None

    def _close(self, job: int) -> None:
        """End a generator whose parts nobody takes: it gets GeneratorExit."""
        parts = self._states.pop(job, None)
        if isinstance(parts, Generator):
            try:
                parts.close()
            except Exception:
                _log.warning("a generator failed at GeneratorExit: %s", _traceback())


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
    try:
        # A cache of bytecode knows seconds alone: of a file that changes twice within one, to the
        # same length, the next process would run what it was.
        sys.dont_write_bytecode = True
        instance = Instance(load(source), network, None)
        instance.use(_Models(server, instance.signature.uses))
        # Else the server refuses it; its `setup` could fail before, for want of the model.
        if instance.signature.needs_model == (network is not None):
            instance.setup(Path(words["folder"]))
    except BaseException as err:  # of the user's code: it raises anything
        if not isinstance(err, errors.ConfigurationError):  # its line has all but the way there
            _log.debug("%s", _traceback())
        server.send({"kind": "failed", "text": line_of(err, source.file)})
        os._exit(1)
    files = [str(each) for each in imported_beside(source.file)]
    server.send({"kind": "ready", "signature": instance.signature.document(), "files": files})
    _Worker(server, instance).run()
