"""Calls of the C library: free memory that stays or is used."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

FREE_BYTES = 16 << 20
"""Free memory that the process keeps; after so much more was freed, it goes back to the kernel."""
_MAPPED_BYTES = 4 << 20
"""The least bytes of a block that gets a mapping of its own, if no free memory has room for it."""
_MALLOC_OPTIONS = {-1: FREE_BYTES, -3: _MAPPED_BYTES}
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (mallopt(3))."""
_MOST_HELD, _IS_MAPPED = 1024, 2
"""Large blocks that hold what is free, and the bit of a block's size that says that it is mapped
(glibc's malloc/malloc.c, unchanged since 2.0): the first such one shows that nothing is free."""


def limit_free_memory() -> None:
    """Set how much free memory the process keeps, with glibc.

    By itself it raises both limits with the blocks that are freed, up to 64 and 32 MiB: then it
    kept 0.6 GiB of forms.
    """
    with suppress(OSError, AttributeError):
        for option, num_bytes in _MALLOC_OPTIONS.items():
            _libc().mallopt(option, num_bytes)


def trim_memory() -> None:
    """Give free pages back to the kernel, with glibc."""
    with suppress(OSError, AttributeError):
        _libc().malloc_trim(0)


@contextmanager
def without_free_blocks() -> Iterator[None]:
    """Keep large blocks from this thread's free memory, as in a thread that has none.

    So the memory that others have left, such as a load, says nothing about the runs that follow.
    The blocks that hold it are never written to, so that they take none.
    """
    blocks: list[int] = []
    with suppress(OSError, AttributeError):
        while len(blocks) < _MOST_HELD and (block := _libc().malloc(_MAPPED_BYTES)):
            blocks.append(block)
            if _size_of(block) & _IS_MAPPED:
                break
    try:
        yield
    finally:
        for block in blocks:
            _libc().free(block)


def _size_of(block: int) -> int:
    """Return the size of a block as glibc has it before the block, with bits in its low end."""
    import ctypes

    return ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value


@cache
def _libc() -> Any:
    import ctypes  # some milliseconds, which most programs need not spend

    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc
