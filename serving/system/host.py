"""The server's interface to its machine, which a simulated one can replace; addresses and ports."""

import errno
import logging
import mmap
import os
import queue
import selectors
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, NamedTuple, Protocol, TypeVar

from serving.errors import ConfigurationError

_log = logging.getLogger(__name__)
_REASONS = {
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EAFNOSUPPORT: "this machine has no such kind of address",
    errno.EACCES: "permission denied",
}
_UNIX = "unix:"
_BACKLOG = 1024
"""New connections that wait in the kernel."""
_FIRST_INHERITED = 3
"""The file descriptor of the first socket that systemd passes on (sd_listen_fds(3))."""
_FIRST_FREE_PORT = 1024
"""Ports below need a privilege."""
_TAKEN_S = 1.0
"""How long to wait for a taken port: workers of a killed supervisor are about to end."""
_AWAY = 1 << 62
"""In place of the connections of a worker that takes none."""
_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_NICE = 5
"""How far runners stand back behind the thread that reads and answers calls. Where both share a
core, callers of another model wait for a run's end else: p90 0.15 ms with it, 0.75 without."""


class Share:
    """One worker's part of the connections to a port that several workers serve.

    All write how many they have into memory that they share, so that those who have more leave new
    ones to the others. The kernel, which draws one of several sockets (SO_REUSEPORT), gives three
    of four callers to the same one of two workers in half of the cases.
    """

    def __init__(self, sock: socket.socket, numbers: memoryview, place: int) -> None:
        """Take the socket, and the numbers of connections, of which `place` is this worker's."""
        self.socket = sock
        self._numbers = numbers
        self._place = place

    def note(self, number: int = _AWAY) -> None:
        """Tell the others how many this worker has; without a number, that it takes none."""
        self._numbers[self._place] = number

    def listen(self) -> None:
        """Listen again: the supervisor knew of no ready worker yet; see `refuse_callers`."""
        self.socket.listen(_BACKLOG)

    @property
    def is_small(self) -> bool:
        """Whether no other worker has clearly fewer."""
        least = min(self._numbers)
        return self._numbers[self._place] <= least + least // 8


class Shared(NamedTuple):
    """A port of several workers: its socket, and a file in memory with their connections."""

    socket: socket.socket
    file: int

    def share(self, place: int) -> Share:
        """Return the part of the worker at a place."""
        return Share(self.socket, memoryview(mmap.mmap(self.file, 0)).cast("q"), place)


shares: dict[tuple[str, int], Share] = {}
"""By host and port: where `bind` returns a socket that outlives this process, and is shared."""


def is_target(text: str) -> bool:
    """Return whether a text is HOST:PORT, several, or another target of gRPC's by its scheme."""
    scheme, colon, _ = text.partition(":")
    if "/" in text or scheme in _SCHEMES:
        return bool(colon) and scheme in _SCHEMES
    parts = [part.strip().rpartition(":") for part in text.split(",") if part.strip()]
    return bool(parts) and all(host and port.isdecimal() for host, _, port in parts)


def with_port(host: str, port: int) -> str:
    """Write host and port as one word; an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cannot_listen(host: str, port: int, error: OSError | ValueError) -> ConfigurationError:
    """Build the error for an address that can't be bound, with the reason in plain words."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigurationError(f"can't listen on {with_port(host, port)}: the port is taken")
    if isinstance(error, socket.gaierror | ValueError):
        reason = f"the name {host!r} can't be resolved"
    else:
        number = error.errno or 0
        reason = _REASONS.get(number) or os.strerror(number)
        if number == errno.EACCES and port < _FIRST_FREE_PORT:
            reason += ", ports below 1024 need root or CAP_NET_BIND_SERVICE"
    return ConfigurationError(f"can't listen on {with_port(host, port)}: {reason}")


_Opened = TypeVar("_Opened")


def first_free(open_port: Callable[[int], _Opened], ports: Sequence[int], option: str) -> _Opened:
    """Open the first of these ports that is not taken; log a warning if it is a later one.

    Args:
        open_port: opens a port; raises the error of `cannot_listen`.
        ports: at least one.
        option: the option of the command line that names another one.

    Raises:
        ConfigurationError: all are taken, or one can't be bound for another reason.
    """
    for port in ports:
        try:
            opened = open_port(port)
        except ConfigurationError as err:
            is_taken = (
                isinstance(err.__cause__, OSError) and err.__cause__.errno == errno.EADDRINUSE
            )
            if not is_taken or port == ports[-1]:
                raise
            continue
        if port != ports[0]:
            _log.warning("port %d is taken: using %d; choose with %s", ports[0], port, option)
        return opened
    raise ValueError("no port to open")


def bind(host: str, port: int, *, backlog: int = 0) -> socket.socket:
    """Bind a TCP socket to the first address of a host that can be bound, or take an inherited one.

    Args:
        host: a name or an address.
        port: the TCP port; 0 lets the kernel choose.
        backlog: how many connections wait in the kernel; 0 does not listen yet. Two sockets may be
            bound to a port at the same time, but only one of them can listen.

    Raises:
        ConfigurationError: none can be bound, or the port is taken.
    """
    if (host, port) in shares:
        shared = shares[host, port].socket
        shared.listen(backlog)
        return shared
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as err:  # ValueError: not a host name, such as "a..b"
        raise cannot_listen(host, port, err) from err
    failure = OSError(errno.EADDRNOTAVAIL, "")
    for family, kind, protocol, _, address in found:
        try:
            return _bound(socket.socket(family, kind, protocol), address, backlog)
        except OSError as err:
            failure = err
    raise cannot_listen(host, port, failure) from failure


def _bound(listener: socket.socket, address: Any, backlog: int) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if backlog:
            listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


@contextmanager
def reserved_port(host: str, port: int, number: int = 1) -> Iterator[Shared]:
    """Reserve a port for the processes that inherit its socket; this one does not listen.

    So the port is known before a worker listens, and stays ours while no worker is alive. gRPC's
    core takes no socket: it binds its own to the port, with SO_REUSEPORT.

    Args:
        host: the address to bind.
        port: the TCP port; 0 lets the kernel choose.
        number: of the processes.

    Raises:
        ConfigurationError: the address can't be bound, or the port is taken and stays so for a
            second.
    """
    with ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            _wait_until_free(family, address)

            def bound(*options: int) -> socket.socket:
                sock = stack.enter_context(socket.socket(family, kind, protocol))
                sock.setblocking(False)
                for option in options:
                    sock.setsockopt(socket.SOL_SOCKET, option, 1)
                sock.bind(address)
                return sock

            # Without SO_REUSEADDR, this one keeps other servers' probes away while none listens.
            # It also keeps the number: `refuse_callers` would free a port that the kernel chose.
            try:
                keeper = bound(socket.SO_REUSEPORT)
            except OSError:  # connections in TIME_WAIT of a server that had no workers
                keeper = bound(socket.SO_REUSEPORT, socket.SO_REUSEADDR)
            address = keeper.getsockname()
            # SO_REUSEADDR: connections inherit it, and one in TIME_WAIT without it would block
            # the next start's probe for a minute.
            options = socket.SO_REUSEPORT, socket.SO_REUSEADDR
            shared = Shared(bound(*options), os.memfd_create("connections"))
            stack.callback(os.close, shared.file)
            os.truncate(shared.file, number * 8)
            for place in range(number):
                shared.share(place).note()
        except (OSError, ValueError) as err:
            raise cannot_listen(host, port, err) from err
        yield shared


def _wait_until_free(family: int, address: Any) -> None:
    """Return once no server listens on an address; a port just closed is free."""
    end_s = time.monotonic() + _TAKEN_S
    while True:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as err:
                if err.errno != errno.EADDRINUSE or time.monotonic() > end_s:
                    raise
            else:
                return
        time.sleep(0.05)


def refuse_callers(listener: socket.socket) -> None:
    """Have the kernel refuse callers until a process listens again; the port stays ours."""
    with suppress(OSError):  # nobody has listened on it
        listener.shutdown(socket.SHUT_RD)


def listen(host: str, port: int) -> socket.socket:
    """Listen on a TCP port, or on a unix socket where the host is "unix:PATH".

    A socket that systemd opened for this process is used instead: callers who came before this
    process, or between two of them, wait in it.

    Args:
        host: the address.
        port: the port; 0 lets the kernel choose.

    Returns:
        A socket that does not block.

    Raises:
        ConfigurationError: it can't be bound.
    """
    if (inherited := activated("grpc")) is not None:
        listener = inherited
    elif host.startswith(_UNIX):
        listener = _bind_unix(host.removeprefix(_UNIX))
    else:
        listener = bind(host, port, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket, host: str) -> str:
    """Return the address of a listening socket, as clients write it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"{_UNIX}{name}"
    return with_port(name[0] if is_activated() else host, name[1])


def activated(name: str) -> socket.socket | None:
    """Return the listening socket that systemd passed on to this very process; None without one.

    Args:
        name: its FileDescriptorName: "http", or "grpc", which is any other one, too.
    """
    if not is_activated():
        return None
    number = int(os.environ.get("LISTEN_FDS", 0))
    names = os.environ.get("LISTEN_FDNAMES", "grpc").split(":")[:number]
    for i, each in enumerate(names):
        if (each == "http") == (name == "http"):
            return socket.socket(fileno=_FIRST_INHERITED + i)
    return None


def is_activated() -> bool:
    """Return whether systemd has passed sockets on to this very process."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def _bind_unix(path: str) -> socket.socket:
    try:
        if _is_abandoned(path):  # left behind by a server that was killed
            os.unlink(path)
        return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path, _BACKLOG)
    except OSError as err:
        raise ConfigurationError(f"can't listen on {_UNIX}{path}: {err.strerror or err}") from err


def _is_abandoned(path: str) -> bool:
    """Return whether a path is a socket without a listener."""
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                return True
    return False


Task = Callable[[], None]


class Runners(Protocol):
    """Does work elsewhere than its owner, which takes the results."""

    def put(self, work: Callable[[], Task], post: Callable[[Task], None]) -> None:
        """Have something done.

        Args:
            work: called on another thread; returns a function that takes the result.
            post: has that function called on the owner's thread.

        Raises:
            RuntimeError: there is no thread, and the system has no more.
        """

    def close(self) -> None:
        """End the threads once they are idle."""


class Threads:
    """Daemon threads, started as they are needed; used by one thread only."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._num_started = 0
        self._num_running = 0
        self._todo: queue.SimpleQueue[tuple[Callable[[], Task], Callable[[Task], None]] | None]
        self._todo = queue.SimpleQueue()

    def put(self, work: Callable[[], Task], post: Callable[[Task], None]) -> None:
        if self._num_started < min(self._number, self._num_running + 1):
            self._start()
        self._num_running += 1
        self._todo.put((work, post))

    def _start(self) -> None:
        try:
            threading.Thread(target=self._work, name="runner", daemon=True).start()
        except RuntimeError:  # the system has no more threads: fewer will do
            if not self._num_started:
                raise
        else:
            self._num_started += 1

    def _work(self) -> None:
        if sys.platform == "linux":  # elsewhere threads have no niceness of their own
            number = threading.get_native_id()
            with suppress(OSError):  # a sandbox may forbid it
                os.setpriority(os.PRIO_PROCESS, number, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)
        while (task := self._todo.get()) is not None:
            work, post = task
            post(partial(self._end, work()))

    def _end(self, take: Task) -> None:
        self._num_running -= 1
        take()

    def close(self) -> None:
        for _ in range(self._num_started):
            self._todo.put(None)
        self._num_started = 0


Run = Callable[[Any], Any]


def _unguarded(label: tuple[str, str], run: Run) -> Run:
    """Return the run as it is."""
    return run


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """Clock, network and chance: by default those of this machine."""

    clock: Callable[[], float] = time.monotonic
    """Returns seconds that never go back."""
    selector: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector
    """Makes the selector."""
    listen: Callable[[str, int], socket.socket] = listen
    """Listens on a host and a port; see `listen`."""
    socketpair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair
    """Makes the sockets by which other threads wake the server's."""
    random: Random = field(default_factory=Random)
    runners: Callable[[int], Runners] = Threads
    """Makes the runners of long work: at most this many at once."""
    guard: Callable[[tuple[str, str], Run], Run] = _unguarded
    """Wraps the run of a model, named by its name and version, so that a crash is known as its."""
