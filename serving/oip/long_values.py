"""Values of answers of a MiB and more: sent from their arrays, and texts written part by part.

One copy of all, or one call that writes all of it, holds the interpreter's lock, on any thread: 300
MB take 182 ms, in which no other caller is answered.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from serving.batching.run import answer_bytes, text_bytes
from serving.http2.pieces import Buffer, Written
from serving.oip.values import LENGTH
from serving.tensors import Array

LONG_BYTES = 1 << 20
"""Outputs that make an answer long."""
PART_BYTES = 96 << 10
"""How much text is written at a time; divisible by three, as base64 has it."""


def is_long(arrays: Sequence[Array]) -> bool:
    """Return whether outputs make an answer long."""
    return sum(map(answer_bytes, arrays)) >= LONG_BYTES


def raw_part(array: Array) -> tuple[int, Buffer | Written]:
    """Return the number of an output's raw bytes, and these: its own memory, unless it is texts."""
    if array.dtype != object:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return data.nbytes, data.data
    size = answer_bytes(array)
    return size, Written(size, joined(_raw_texts(array)))


def _raw_texts(array: Array) -> Iterator[Buffer]:
    for each in array.flat:
        yield LENGTH.pack(text_bytes(each))
        yield from _slices(each)


def _slices(text: str | bytes) -> Iterator[Buffer]:
    for at in range(0, len(text), PART_BYTES):
        part = text[at : at + PART_BYTES]
        yield part.encode() if isinstance(part, str) else part


def joined(parts: Iterator[Buffer]) -> Iterator[Buffer]:
    """Join short parts."""
    some: list[Buffer] = []
    size = 0
    for each in parts:
        some.append(each)
        size += len(each)
        if size >= PART_BYTES:
            yield b"".join(some)
            some.clear()
            size = 0
    yield b"".join(some)
