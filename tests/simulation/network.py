"""A network whose sockets, selector and faults are the simulation's."""

import errno
import selectors
import socket
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Any
from zlib import crc32

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Pipe:
    """One direction of a connection: the bytes that its sender's kernel accepted, until read."""

    def __init__(self, link, capacity, arrived):
        self.link, self.capacity, self.arrived = link, capacity, arrived
        self.buffer = bytearray()
        self.num_taken = self.num_read = self.crc = 0
        self.is_ended = self.is_shut = False
        self.reads: list[tuple[int, float]] = []
        """How many bytes were read, and when."""
        self._last_s = 0.0

    @property
    def room(self):
        return self.capacity - (self.num_taken - self.num_read)

    def push(self, data):
        """Take as much as there is room for, sometimes less; return how much."""
        random, room = self.link.random, self.room
        if room <= 0:
            raise BlockingIOError
        data = data[:room]
        if random.random() < self.link.cut_share:
            data = data[: random.choice((1, 1 + random.randrange(len(data))))]
        self.num_taken += len(data)
        self.link.is_changed = True
        at = random.randrange(len(data)) if random.random() < self.link.cut_share else 0
        for part in filter(None, (data[:at], data[at:])):
            self._later(self._arrive, part)
        return len(data)

    def shut(self):
        """End the direction after the bytes sent so far."""
        if not self.is_shut:
            self.is_shut = True
            self._later(self._end)

    def _later(self, action, *args):
        """Do something later, and after the bytes sent before."""
        link = self.link
        self._last_s = max(self._last_s, link.time.now_s + link.latency_s * link.random.random())
        link.time.after(self._last_s - link.time.now_s, action, *args)

    def _arrive(self, data):
        if not self.link.is_reset and not (self.link.is_gone and self is self.link.down):
            self.crc = crc32(data, self.crc)
            self.buffer += data
            self.link.is_torn |= self.link.closed_s is not None and self is self.link.up
            self.link.time.is_stirred = True
            self.arrived()

    def _end(self):
        if not self.link.is_reset and not (self.link.is_gone and self is self.link.down):
            self.is_ended = self.link.time.is_stirred = True
            self.arrived()

    def pop(self, most):
        data = bytes(self.buffer[:most])
        del self.buffer[:most]
        self.num_read += len(data)
        self.link.is_changed = self.link.time.is_stirred = True
        self.reads.append((self.num_read, self.link.time.now_s))
        return data

    def read_s(self, num_bytes):
        """Return when that many bytes had been read; None if they have not."""
        at = bisect_left(self.reads, (num_bytes, 0.0))
        return self.reads[at][1] if at < len(self.reads) else None

    @property
    def is_quiet(self):
        return self.num_taken == self.num_read


class Link:
    """A connection between a client of the simulation and the server."""

    def __init__(self, time, random, address, arrived, capacity=1 << 20):
        self.time, self.random, self.address = time, random, address
        self.latency_s = random.choice((1e-5, 1e-4, 0.005, 0.1))
        self.cut_share = random.choice((0.0, 0.0, 0.1, 0.5))
        self.is_reset = self.is_gone = self.is_changed = False
        self.client: Any = None
        self.closed_s: float | None = None
        """When the server closed its socket."""
        self.is_torn = False
        """Whether it did while bytes were under way to it: the client may not get the last ones."""
        self.up = Pipe(self, capacity, lambda: None)
        self.down = Pipe(self, capacity, arrived)
        self.resume: Callable[[], None] = lambda: None
        """Called when the server has read something."""

    def calm(self):
        """Be quick and wide from now on."""
        self.latency_s, self.cut_share = 1e-4, 0.0
        self.up.capacity = self.down.capacity = 1 << 20

    def reset(self):
        """Lose the connection, in both directions, as both will see."""
        self.is_reset = self.time.is_stirred = True

    def vanish(self):
        """Let the client disappear without a word: nobody reads the server's bytes."""
        self.is_gone = True


class Socket:
    """The server's end of a link."""

    family = socket.AF_INET

    def __init__(self, link):
        self.link = link
        self.is_closed = False
        link.time.num_sockets += 1

    def setblocking(self, flag): ...

    def setsockopt(self, *option):
        if self.link.is_reset:
            raise OSError(errno.EINVAL, "reset")

    def getpeername(self):
        if self.link.is_reset:
            raise OSError(errno.ENOTCONN, "not connected")
        return self.link.address, 1

    @property
    def is_readable(self):
        return bool(self.link.up.buffer or self.link.up.is_ended or self.link.is_reset)

    @property
    def is_writable(self):
        return self.link.down.room > 0 or self.link.is_reset

    def recv_into(self, buffer):
        link = self.link
        assert not self.is_closed
        if link.is_reset:
            raise ConnectionResetError
        if not link.up.buffer:
            if link.up.is_ended:
                return 0
            raise BlockingIOError
        most = min(len(buffer), len(link.up.buffer))
        if link.random.random() < link.cut_share:
            most = 1 + link.random.randrange(most)
        data = link.up.pop(most)
        buffer[: len(data)] = data
        link.time.after(link.latency_s, link.resume)
        link.time.spend(2e-6 + len(data) * 2e-9)
        return len(data)

    def send(self, data):
        assert not self.is_closed
        if self.link.is_reset:
            raise BrokenPipeError
        return self.link.down.push(bytes(data))

    def shutdown(self, how):
        self.link.down.shut()

    def close(self):
        if not self.is_closed:
            self.is_closed = True
            self.link.time.num_sockets -= 1
            self.link.closed_s = self.link.time.now_s
            self.link.is_torn |= bool(self.link.up.buffer)
            self.link.down.shut()


class Listener:
    """The server's port."""

    family = socket.AF_INET

    def __init__(self, time):
        self._time = time
        self.waiting: deque[Link] = deque()
        self.is_closed = self.is_writable = False
        time.num_sockets += 1

    def setblocking(self, flag): ...

    @property
    def is_readable(self):
        return bool(self.waiting)

    def connect(self, link):
        self.waiting.append(link)
        self._time.is_stirred = True

    def accept(self):
        if not self.waiting:
            raise BlockingIOError
        if self._time.is_file_table_full:
            raise OSError(errno.EMFILE, "Too many open files")
        return Socket(self.waiting.popleft()), None

    def close(self):
        self.is_closed = True
        self._time.num_sockets -= 1


class Bell:
    """One end of the pair by which other threads wake the loop: the other receives it."""

    is_writable = True

    def __init__(self, time):
        self.time, self.rung = time, 0
        self.other = self

    @property
    def is_readable(self):
        return self.rung > 0

    def send(self, data):
        self.other.rung += 1
        self.time.is_stirred = True
        return 1

    def recv(self, size):
        self.rung = 0
        return b"\0"

    def close(self): ...


def bells(time):
    first, second = Bell(time), Bell(time)
    first.other, second.other = second, first
    return first, second


class Selector:
    """Waits for sockets, while the rest of the simulation goes on; the ready ones have no order."""

    def __init__(self, time, random):
        self._time, self._random = time, random
        self.keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, sock, events, data=None):
        assert sock not in self.keys
        self.keys[sock] = selectors.SelectorKey(sock, 0, events, data)

    def modify(self, sock, events, data=None):
        assert sock in self.keys
        self.keys[sock] = selectors.SelectorKey(sock, 0, events, data)

    def unregister(self, sock):
        del self.keys[sock]

    def select(self, timeout_s=None):
        self._time.sleep(timeout_s, lambda: any(map(_mask, self.keys.values())))
        ready = [(key, mask) for key in self.keys.values() if (mask := _mask(key))]
        self._random.shuffle(ready)
        return ready

    def close(self):
        self.keys.clear()


def _mask(key):
    sock = key.fileobj
    return key.events & (READ * bool(sock.is_readable) | WRITE * bool(sock.is_writable))
