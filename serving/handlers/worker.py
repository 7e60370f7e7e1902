"""The program of a handler's process: import, `setup`, then one job after the other.

    server ── setup ──▶ ready, or failed
           ── job ────▶ done, or invalid, failed, error      (in between: infer ──▶ reply)

A job is one phase of a call: `preprocess`, `postprocess` or `predict`. The state between the first
two stays here, by the number of the call, until the second, or until the server drops it.
"""

import logging
import os
import select
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from serving import errors
from serving.handlers import frames
from serving.handlers.frames import Frame, FrameReader
from serving.handlers.instance import Instance
from serving.handlers.kinds import WrongValue
from serving.handlers.loading import HandlerSource, imported_beside, line_of, load
from serving.handlers.signature import PREDICT, PREPROCESS
from serving.tensors import Array, Outputs, Tensor, TensorSignature, to_array

_PASSED = (errors.InvalidRequest, errors.TooLarge, errors.Unsupported, errors.Overloaded,
           errors.Unavailable, errors.DeadlineExceeded, errors.ModelNotFound)  # fmt: skip
"""Errors of another model's that a handler may pass on to its caller."""
_MAX_TRACEBACK = 8_000
_log = logging.getLogger(__name__)


class _Server:
    """The socket to the server, and the other models behind it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._frames = self._read(FrameReader(sock))
        self.uses: tuple[str, ...] = ()
        self.job = 0
        """The number of the call that is in hand; 0 for none."""
        self.states: dict[int, Any] = {}
        """By the number of the call."""

    @staticmethod
    def _read(reader: FrameReader) -> Iterator[Frame]:
        while True:
            yield from reader.read()

    def next(self) -> Frame:
        """Wait for the next frame."""
        return next(self._frames)

    def send(self, head: dict[str, Any], arrays: Any = ()) -> None:
        """Send a frame."""
        buffers = frames.encode(head, arrays)
        if sum(map(len, buffers)) <= frames.FEW_BYTES:
            self._socket.sendall(b"".join(buffers))
            return
        for buffer in buffers:
            self._socket.sendall(buffer)

    def infer(self, name: str, inputs: Any) -> Outputs:
        """Have the server run another model, as `Models.infer` describes it."""
        if name not in self.uses:
            known = ", ".join(self.uses) or "none"
            raise errors.ModelNotFound(f"the handler's `uses` has no model {name!r}, only {known}")
        if not self.job:
            raise errors.Unavailable("models can be called while a call is answered")
        given = inputs if isinstance(inputs, dict) else {"": inputs}
        arrays = [to_array(value, f"an array for {key}") for key, value in given.items()]
        arrays = [each.astype(object) if each.dtype.kind in "US" else each for each in arrays]
        head = {"kind": "infer", "job": self.job, "name": name, "names": [*map(str, given)]}
        self.send(head, arrays)
        while (reply := self.next()).head["kind"] == "drop":
            self.states.pop(reply.head["job"], None)
        if (reason := reply.head.get("error")) is not None:
            raise getattr(errors, reason)(reply.head["text"])
        outputs = dict(zip(reply.head["names"], reply.arrays, strict=True))
        return Outputs(outputs, reply.head["version"])


class _Worker:
    """Does jobs."""

    def __init__(self, server: _Server, instance: Instance) -> None:
        self._server, self._instance = server, instance
        self._states = server.states

    def run(self) -> NoReturn:
        """Do jobs until the server is gone."""
        while True:
            head, arrays = self._server.next()
            if head["kind"] == "drop":
                self._states.pop(head["job"], None)
            elif head["kind"] == "job":
                self._server.job = head["job"]
                self._server.send(*self._outcome(head, arrays))
                self._server.job = 0
            del arrays

    def _outcome(self, head: dict[str, Any], arrays: list[Array]) -> tuple[dict[str, Any], Any]:
        answer: dict[str, Any] = {"kind": "done", "job": head["job"]}
        try:
            has_state, outputs = self._do(head, arrays)
            return answer | {"state": has_state}, outputs
        except errors.InvalidRequest as err:
            answer |= {"kind": "error", "error": type(err).__name__, "text": _line(err)}
        except WrongValue as err:
            answer |= {"kind": "failed", "text": str(err)}
        except _PASSED as err:
            answer |= {"kind": "error", "error": type(err).__name__, "text": _line(err)}
        except Exception:
            answer |= {"kind": "failed", "text": _traceback()}
        return answer, ()

    def _do(self, head: dict[str, Any], arrays: list[Array]) -> tuple[bool, list[Array]]:
        job, phase, options = head["job"], head["phase"], head.get("options", {})
        if phase == PREPROCESS:
            inputs, state = self._instance.preprocess(arrays, options)
            if state is not None:
                self._states[job] = state
            return state is not None, inputs
        if phase == PREDICT:
            return False, self._instance.predict(arrays, head["rows"], options)
        state = self._states.pop(job, None)
        return False, self._instance.postprocess(arrays, head["rows"], options, state)


def _line(err: Exception) -> str:
    return " ".join(str(err).split())[:1000]


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


def _end_with_server(sock: socket.socket) -> None:
    """End this process once the server has gone, even if the handler hangs."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def main() -> NoReturn:
    """Run a process; its only argument is the descriptor of the socket to the server."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(
        target=_end_with_server, args=(sock,), name="server-watch", daemon=True
    ).start()
    server = _Server(sock)
    head, _ = server.next()
    logging.basicConfig(
        level=head["log_level"], handlers=[_LogLines()], format="%(name)s: %(message)s"
    )
    source = HandlerSource(Path(head["file"]), head["name"])
    try:
        instance = Instance(load(source), network_of(head["network"]), server)
        server.uses = instance.signature.uses
        # Else the server refuses it; its `setup` could fail before, for want of the model.
        if instance.signature.needs_model == (head["network"] is not None):
            instance.setup(Path(head["folder"]))
    except BaseException as err:  # of the user's code: it raises anything
        if not isinstance(err, errors.ConfigurationError):  # its line has all but the way there
            _log.debug("%s", _traceback())
        server.send({"kind": "failed", "text": line_of(err, source.file)})
        os._exit(1)
    files = [str(each) for each in imported_beside(source.file)]
    server.send({"kind": "ready", "signature": instance.signature.document(), "files": files})
    try:
        _Worker(server, instance).run()
    except (EOFError, OSError):
        os._exit(0)


def document_of(network: TensorSignature | None) -> Any:
    """Return a model's inputs and outputs as JSON has them."""
    if network is None:
        return None
    inputs, outputs = (
        [[each.name, each.datatype, each.shape] for each in side]
        for side in (network.inputs, network.outputs)
    )
    return {"inputs": inputs, "outputs": outputs, "is_batchable": network.is_batchable}


def network_of(document: Any) -> TensorSignature | None:
    """Parse `document_of`."""
    if document is None:
        return None
    inputs, outputs = (
        tuple(Tensor(name, datatype, tuple(shape)) for name, datatype, shape in document[side])
        for side in ("inputs", "outputs")
    )
    return TensorSignature(inputs, outputs, is_batchable=document["is_batchable"])
