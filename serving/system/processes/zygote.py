"""The program that `Zygote` starts: it forks workers, which do jobs."""

import ctypes
import gc
import logging
import os
import pickle
import signal
import socket
import struct
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from typing import BinaryIO, NoReturn

from serving.errors import TooLarge
from serving.system.process import DATA, RESIDENT, memory

HEADER = struct.Struct("=?Q")
"""Before an outcome: whether the worker ends behind it, and the outcome's size."""
PID = struct.Struct("=i")
"""The zygote's answer to a socket: the worker that has it, or -1."""
NICENESS = 10
CAN_FORK = hasattr(os, "fork")
_KEPT_BYTES = 32 << 20
"""A worker that keeps more than this of its jobs' memory ends."""
_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Fork a worker for each socket that comes; end when the last one has come."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets ended workers
    os.nice(NICENESS)
    silence_pillow()
    control, memory_bytes = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for name in sys.argv[3:]:
        with suppress(ImportError):
            import_module(name)
    gc.freeze()
    zygote = os.getpid()
    while True:
        data, files, *_ = socket.recv_fds(control, 1, 1)
        if not data:
            os._exit(0)
        try:
            worker = os.fork()
        except OSError:  # no more processes, or memory
            worker = -1
        if not worker:
            control.close()
            _end_with(zygote)
            _work(socket.socket(fileno=files[0]), memory_bytes)
        os.close(files[0])
        control.send(PID.pack(worker))


def silence_pillow() -> None:
    """Keep Pillow's remarks on damaged files off stderr: each file gets one line from us."""
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _end_with(zygote: int) -> None:
    """Have the kernel end this process with its parent, where it can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote:
        os._exit(1)


def _work(sock: socket.socket, memory_bytes: int) -> NoReturn:
    """Do jobs until the socket is closed."""
    import resource  # Windows has none

    data_bytes = memory(DATA)
    if memory_bytes and data_bytes:
        limit = data_bytes + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resting_bytes = memory(RESIDENT)
    stream = sock.makefile("rb")
    while True:
        outcome = _outcome(stream)
        is_last = memory(RESIDENT) - resting_bytes > _KEPT_BYTES
        sock.sendall(HEADER.pack(is_last, len(outcome)))
        sock.sendall(outcome)
        del outcome
        if is_last:
            os._exit(0)


def _outcome(stream: BinaryIO) -> bytes:
    try:
        function, args = pickle.load(stream)
    except BaseException:  # it is no use without its job
        os._exit(1)
    try:
        return pickle.dumps((True, function(*args)), 5)
    except MemoryError:
        return pickle.dumps((False, TooLarge("it needs too much memory")))
    except Exception as err:
        with suppress(Exception):
            return pickle.dumps((False, err))
        return pickle.dumps((False, RuntimeError(f"{type(err).__name__}: {err}"[:500])))
