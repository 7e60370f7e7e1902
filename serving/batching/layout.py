"""Where the tensors of messages lie in their bytes, for messages that differ in values alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from serving.errors import InvalidRequest
from serving.tensors import Array


class Piece(NamedTuple):
    """A tensor in the bytes of a message."""

    begin: int
    end: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Layout(NamedTuple):
    """Where the tensors of messages lie in their bytes: the same place in each of them."""

    pieces: tuple[Piece, ...]
    """In the order of the model's inputs."""
    between: tuple[tuple[int, bytes], ...]
    """Where other bytes are, and which."""

    def arrays(self, messages: Sequence[bytes | memoryview]) -> list[Array]:
        """Join each input of all messages.

        Raises:
            InvalidRequest: the bytes between the tensors are others, or a truth value is neither 0
                nor 1.
        """
        for at, expected in self.between:
            end = at + len(expected)
            if any(message[at:end] != expected for message in messages):
                raise InvalidRequest("expected tensors of the sizes that their shapes have")
        return [_joined(piece, messages) for piece in self.pieces]


def _joined(piece: Piece, messages: Sequence[bytes | memoryview]) -> Array:
    begin, end, dtype, shape = piece
    # A copy is needed anyway: in messages numbers lie at any address.
    data = b"".join([message[begin:end] for message in messages])
    if dtype.kind == "b" and data.translate(None, b"\0\1"):
        raise InvalidRequest("expected bytes of 0 or 1 as truth values, got others")
    if len(messages) > 1:
        shape = (len(messages) * shape[0], *shape[1:])
    return np.frombuffer(data, dtype).reshape(shape)
