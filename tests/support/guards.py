"""Fields that a lock guards: each use of one by a thread that does not hold the lock is noted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest


class Guarded(NamedTuple):
    """What a lock of an object guards."""

    kind: type
    lock: str
    """The name of the field that has the lock."""
    uses: tuple[str, ...] = ()
    """Fields and methods that only who holds it reads, writes and calls."""
    writes: tuple[str, ...] = ()
    """Fields that anybody reads, and only who holds it writes."""


class OwnedLock:
    """A lock that knows which thread holds it, in place of one of `threading`."""

    def __init__(self, lock: Any) -> None:
        self._lock, self._owner = lock, 0

    def acquire(self, *args: Any, **more: Any) -> bool:
        is_held: bool = self._lock.acquire(*args, **more)
        if is_held:
            self._owner = threading.get_ident()
        return is_held

    def release(self) -> None:
        self._owner = 0
        self._lock.release()

    def locked(self) -> bool:
        return bool(self._lock.locked())

    def _is_owned(self) -> bool:
        return self._owner == threading.get_ident()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def is_held(lock: Any) -> bool:
    """Whether this thread holds a lock: an `OwnedLock`, or an RLock or Condition."""
    return bool(lock._is_owned())


@contextmanager
def guarding(*guarded: Guarded) -> Iterator[list[str]]:
    """Note each use of what locks guard without them, in objects made meanwhile."""
    noted: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for each in guarded:
            _guard(patch, each, noted)
        yield noted


def _guard(patch: pytest.MonkeyPatch, guarded: Guarded, noted: list[str]) -> None:
    kind, name = guarded.kind, guarded.lock
    begin: Any = kind.__init__  # type: ignore[misc]
    read, write = kind.__getattribute__, kind.__setattr__
    made: dict[int, Any] = {}

    def init(self: Any, *args: Any, **more: Any) -> None:
        made.pop(id(self), None)  # of an object that was here before
        begin(self, *args, **more)
        lock = object.__getattribute__(self, name)
        if not hasattr(lock, "_is_owned"):
            lock = OwnedLock(lock)
            object.__setattr__(self, name, lock)
        made[id(self)] = lock

    def check(self: Any, field: str, use: str) -> None:
        lock = made.get(id(self))
        if lock is not None and not is_held(lock):
            noted.append(f"{kind.__name__}.{field} {use} without {name}")

    def getting(self: Any, field: str) -> Any:
        if field in guarded.uses:
            check(self, field, "used")
        return read(self, field)

    def setting(self: Any, field: str, value: Any) -> None:
        if field in guarded.uses or field in guarded.writes:
            check(self, field, "written")
        write(self, field, value)

    patch.setattr(kind, "__init__", init)
    patch.setattr(kind, "__getattribute__", getting)
    patch.setattr(kind, "__setattr__", setting)


def fixtures(*guarded: Guarded) -> tuple[Any, Any]:
    """Return two fixtures that have each test of a package hold locks where they are to be held."""

    @pytest.fixture(scope="package", autouse=True)
    def uses_without_locks() -> Iterator[list[str]]:
        with guarding(*guarded) as noted:
            yield noted

    @pytest.fixture(autouse=True)
    def locks_are_held(uses_without_locks: list[str]) -> Iterator[None]:
        yield
        found = sorted({*uses_without_locks})
        uses_without_locks.clear()
        if found:
            pytest.fail("; ".join(found), pytrace=False)

    return uses_without_locks, locks_are_held
