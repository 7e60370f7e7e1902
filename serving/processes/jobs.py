"""The program of a pool's process: it imports, and forks a child that does one job at a time.

It never does a job itself. A child that ends in one is replaced by the next fork, with all imports,
in some milliseconds.
"""

import gc
import os
import pickle
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from serving.errors import TooLarge
from serving.processes.end import End
from serving.processes.lifeline import Lifeline, end_with
from serving.system.usage import DATA, RESIDENT, SHARED, memory

CRASHED = -1
"""In place of a job's number: the child has ended without an outcome; how, comes with it."""
READ = b""
"""In place of an outcome: the child has read the job."""
_TOO_LARGE = pickle.dumps((False, TooLarge("it needs too much memory")), 5)
_ENOUGH = 77
"""The exit code of a child that has ended behind an outcome."""
_KEPT_BYTES = 32 << 20
"""A child that keeps more than this of its jobs' memory ends."""
_NICENESS = 10


def main(channel: socket.socket, modules: Sequence[str]) -> NoReturn:
    """Fork a child that does jobs, again and again."""
    os.nice(_NICENESS)
    for name in modules:
        with suppress(ImportError):
            import_module(name)
    gc.freeze()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lifeline = Lifeline()
    channel.send(b"\0")
    while child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != _ENOUGH:
            channel.send(pickle.dumps((CRASHED, End(code))))
    _work(channel, lifeline.reader)


def _work(channel: socket.socket, lifeline: int) -> NoReturn:
    """Do jobs until the channel is closed, or until they have left too much memory behind."""
    end_with(lifeline, signal.SIGKILL, os.getpid())  # with this parent alone: it may be killed
    resting_bytes = _own_bytes()
    stream = channel.makefile("rwb")
    while _own_bytes() - resting_bytes <= _KEPT_BYTES:
        try:
            number, memory_bytes = pickle.load(stream)
            _limit_memory(memory_bytes)
            try:
                function, args = pickle.load(stream)
            except MemoryError:
                pickle.dump((number, _TOO_LARGE), stream, 5)
                stream.flush()
                raise
        except BaseException:  # it is no use without its job
            os._exit(1)
        pickle.dump((number, READ), stream, 5)
        stream.flush()
        pickle.dump((number, _outcome(function, args)), stream, 5)
        del args
        stream.flush()
    os._exit(_ENOUGH)


def _limit_memory(num_bytes: int) -> None:
    """Set how much the next job may allocate, with its arguments; 0 for any."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = memory(DATA) + num_bytes if num_bytes else hard
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _own_bytes() -> int:
    """Return this process's memory without that of files, such as the code of libraries."""
    return memory(RESIDENT) - memory(SHARED)


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """Return whether it is good, and the result or the error, pickled."""
    try:
        return pickle.dumps((True, function(*args)), 5)
    except MemoryError:
        return _TOO_LARGE
    except Exception as err:
        with suppress(Exception):
            return pickle.dumps((False, err))
        return pickle.dumps((False, RuntimeError(f"{type(err).__name__}: {err}"[:500])))
