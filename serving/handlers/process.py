"""The server's end of a handler's process: its start, its frames, its end.

STARTING ──ready──▶ IDLE ──send──▶ BUSY ──outcome──▶ IDLE
    │                 │              │
    └──────── closed socket, or `end` ┴──▶ ENDED

A thread of the server waits for its end, and for that of its group: a child of it may hold the
socket, and the caller with it.
"""

import logging
import re
import selectors
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from serving.batching.run import Owner
from serving.errors import ConfigurationError, Unavailable
from serving.handlers import frames, worker
from serving.handlers.frames import BrokenFrame, Frame, FrameReader
from serving.handlers.loading import HandlerSource
from serving.handlers.signature import HandlerSignature
from serving.processes.child import Child, ChildCommand, Streams
from serving.processes.end import LOST, End, not_started
from serving.tensors import Array, TensorSignature

_log = logging.getLogger(__name__)

_LEVEL = re.compile(r"<(\d{1,2})>")
_MAX_LINE = 2000
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_SEND_BYTES = 1 << 20
"""The buffer of the kernel that is asked for."""
_REAP_S = 2.0
"""How long a process has to end by itself."""
_LOOK_S = 1.0
"""How often the memory of a process is looked at."""
_COMMAND = ChildCommand(
    worker.__name__,
    Streams(subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT),
    flags=["-u"],
)


class Program(NamedTuple):
    """What a process runs."""

    model: str
    """The model's name, for log lines."""
    source: HandlerSource
    folder: Path
    """The folder that `Handler.setup` gets."""
    network: TensorSignature | None
    """The inputs and outputs of the model between the handler's methods."""
    max_setup_s: float
    """Seconds that its imports and `setup` may take."""


class HandlerProcess:
    """A process that has imported its handler and called `setup`; of the owner's thread."""

    def __init__(
        self,
        running: "_Running",
        signature: HandlerSignature,
        files: Sequence[Path],
        start_s: float,
    ) -> None:
        """Take over a process that is ready; `attach` comes next."""
        self.signature = signature
        self.files = files
        """Files beside the handler's that it has imported."""
        self.start_s = start_s
        """Seconds that its start took, with `setup`."""
        self._running, self._socket = running, running.child.channel
        self._reader = FrameReader(self._socket)
        self._unsent: deque[memoryview] = deque()
        self._owner: Any = None
        self._mask = _READ
        self._is_over = False

    @property
    def pid(self) -> int:
        """Its id."""
        return self._running.child.pid

    def attach(
        self, owner: Owner, on_frame: Callable[[Frame], None], on_end: Callable[[str], None]
    ) -> None:
        """Have frames and the end of the process reported, on the owner's thread.

        Args:
            owner: whose thread all else is called on.
            on_frame: takes a frame.
            on_end: called once, with how the process has ended.
        """
        self._owner, self._on_frame, self._on_end = owner, on_frame, on_end
        self._socket.setblocking(False)
        self._owner.watch(self._socket, _READ, self)
        self._running.notify(lambda: owner.post(self._shut))

    def _shut(self) -> None:
        """Read what has come, and then the end, though a child of the process has the socket."""
        if not self._is_over:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def send(self, fields: dict[str, Any], arrays: Sequence[Array] = ()) -> None:
        """Send a frame, as far as the kernel takes it now, and the rest soon."""
        if self._is_over:
            return
        buffers = frames.encode(fields, arrays)
        if not self._unsent and sum(map(len, buffers)) <= frames.FEW_BYTES:
            buffers = [b"".join(buffers)]
        self._unsent += map(memoryview, buffers)
        if len(self._unsent) == len(buffers):  # else it waits for room
            self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                first = self._unsent[0]
                sent = self._socket.send(first)
                if sent < len(first):
                    self._unsent[0] = first[sent:]
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:  # it has ended: `accept` is about to learn it
            self._unsent.clear()
        mask = _READ | (_WRITE if self._unsent else 0)
        if mask != self._mask and not self._is_over:
            self._mask = mask
            self._owner.watch(self._socket, mask, self)

    def accept(self, now_s: float, turns_s: float) -> None:
        """Read, and write, what the socket is ready for; called by the owner's loop."""
        if self._is_over:
            return
        if self._unsent:
            self._flush()
        try:
            for frame in self._reader.read():
                self._on_frame(frame)
                if self._is_over:
                    return
        except BlockingIOError:
            pass
        except (EOFError, OSError):
            self._end()
        except BrokenFrame as err:
            _log.error("a handler's process is ended: %s", err)
            self._running.child.kill()
            self._end()
        except Exception:  # a bug of ours: it ends this process, and never the loop
            _log.exception("a handler's process is ended")
            self._running.child.kill()
            self._end()

    def _end(self) -> None:
        self._close(self._on_end)

    def kill(self) -> None:
        """End it now, though it hang; `on_end` is not called."""
        self._running.child.kill()
        self.close()

    def close(self) -> None:
        """Let it end: it does so by itself once its socket is closed; `on_end` is not called."""
        self._close(None)

    def _close(self, on_end: Callable[[str], None] | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._owner is not None:
            self._owner.watch(self._socket, 0, self)
        self._socket.close()
        self._unsent.clear()
        threading.Thread(target=self._reap, args=(on_end,), name="handler-end", daemon=True).start()

    def _reap(self, on_end: Callable[[str], None] | None) -> None:
        """Wait for its end, and end it if it hangs; then report how it ended."""
        end = self._running.child.end(_REAP_S)
        if on_end is not None:
            self._owner.post(partial(on_end, str(end)))

    @property
    def memory_bytes(self) -> int:
        """Its resident memory with that of its children, a moment old; 0 once it has ended."""
        return self._running.memory_bytes


class _Running:
    """A child, and a thread that looks at its memory and waits for its end."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.memory_bytes = 0
        self._lock, self._has_ended = threading.Lock(), False
        self._notify: Callable[[], None] = partial(child.channel.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=self._watch, name="handler-watch", daemon=True).start()

    def _watch(self) -> None:
        while self.child.wait(_LOOK_S) is None:
            self.look()
        self.memory_bytes = 0
        with self._lock, suppress(OSError):
            self._has_ended = True
            self._notify()

    def look(self) -> None:
        """Look at its memory now."""
        self.memory_bytes = self.child.memory_bytes()

    def notify(self, function: Callable[[], None]) -> None:
        """Have a function called at the end; without one, its socket is shut."""
        with self._lock:
            self._notify = function
            if self._has_ended:
                function()


def start(program: Program) -> HandlerProcess:
    """Start a process, and wait until its `setup` has returned; from any thread.

    Raises:
        ConfigurationError: the handler can't be used; the text begins with its file and line.
        Unavailable: no process can be started, or it ended, or took too long.
    """
    begun_s = time.monotonic()
    source = program.source
    words = {
        "file": str(source.file),
        "name": source.name,
        "folder": str(program.folder),
        "network": program.network,
        "log_level": logging.getLogger().getEffectiveLevel(),
    }
    try:
        child = Child(_COMMAND, words)
    except OSError as err:
        raise Unavailable(f"a handler's process {not_started(err)}") from err
    threading.Thread(
        target=_log_lines, args=(child.output, program.model), name="handler-log", daemon=True
    ).start()
    running = _Running(child)
    try:
        return _ready(running, program, begun_s)
    except BaseException:
        child.end()
        child.channel.close()
        raise


def _ready(running: _Running, program: Program, begun_s: float) -> HandlerProcess:
    """Wait until a process is ready."""
    child, file = running.child, program.source.file
    sock = child.channel
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _SEND_BYTES)
    until_s = begun_s + program.max_setup_s
    try:
        sock.settimeout(program.max_setup_s)
        reader = FrameReader(sock)
        while not (found := list(reader.read())):
            sock.settimeout(max(0.01, until_s - time.monotonic()))
    except TimeoutError as err:
        raise Unavailable(
            f"{file.name}:1: imports and setup take more than {program.max_setup_s:g} s "
            "(--max-handler-setup)"
        ) from err
    except (EOFError, OSError, BrokenFrame) as err:
        how = child.wait(_REAP_S) or End(LOST)
        raise Unavailable(f"{file.name}:1: its process ended while it started: {how}") from err
    answer = found[0].fields
    if answer["kind"] != "ready":
        raise ConfigurationError(answer["text"])
    running.look()
    signature, files = HandlerSignature.of(answer["signature"]), [*map(Path, answer["files"])]
    return HandlerProcess(running, signature, files, time.monotonic() - begun_s)


def _log_lines(output: BinaryIO, model: str) -> None:
    """Log the lines that a process prints, until it ends."""
    with suppress(OSError, ValueError), output:
        for line in iter(lambda: output.readline(_MAX_LINE), b""):
            text = line.decode("utf-8", "replace").rstrip("\n")
            level = logging.INFO
            if found := _LEVEL.match(text):
                level, text = int(found[1]), text[found.end() :]
            if text:
                _log.log(level, "%s: %s", model, text)
