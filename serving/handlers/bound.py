"""A handler beside a model: its methods run where its caller says, here or in another process.

    rows ──▶ prepare ──▶ inputs ──▶ the caller runs the model ──▶ outputs ──▶ finish ──▶ outputs
                └────────────────── state: as it is, or packed ─────────────────┘

Paths of the HTTP port and commands call a handler so, with files of strangers: `prepare` and
`finish` are functions for a pool of processes. Models have processes of their own: `pipeline.py`.
"""

import inspect
import pickle
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.errors import InvalidRequest, ModelNotFound
from serving.handlers.handler import Handler
from serving.handlers.instance import Instance
from serving.handlers.kinds import Text
from serving.handlers.signature import PARAMETERS
from serving.tensors import Array, TensorSignature

_MAX_KEPT = 64
_MAX_STATE_BYTES = 16 << 10
"""States that are larger travel packed."""


class Packed(NamedTuple):
    """A state that is large, or has objects of the handler's own: only `finish` unpacks it."""

    content: bytes


class Prepared(NamedTuple):
    """What `preprocess` has made of rows."""

    inputs: Sequence[Array]
    """The model's, in its order."""
    state: Any
    """For `postprocess`: None, plain values and arrays, or `Packed`."""


class _NoModels:
    def infer(self, name: str, inputs: Any) -> Any:
        raise ModelNotFound(f"a handler beside a model calls no others, got {name[:80]!r}")


@lru_cache(_MAX_KEPT)
def pack(handler: Handler, network: TensorSignature | None) -> bytes:
    """Return a handler with its model's inputs and outputs, as `prepare` and `finish` take it.

    Args:
        handler: of a module, with one input.
        network: None for one with `predict`.
    """
    return pickle.dumps((handler, network), 5)


@lru_cache(_MAX_KEPT)
def _opened(code: bytes) -> Instance:
    """Make a handler ready in this process, once."""
    handler, network = pickle.loads(code)
    instance = Instance(handler, network, _NoModels())
    instance.setup(Path(inspect.getfile(type(handler))).parent)
    return instance


def prepare(code: bytes, rows: Sequence[bytes], parameters: Mapping[str, Any]) -> Prepared:
    """Call `preprocess`.

    Args:
        code: see `pack`.
        rows: the values of the handler's input.
        parameters: of the call.

    Raises:
        InvalidRequest: the handler refuses them.
        WrongValue: it returns something else than the model takes.
    """
    instance = _opened(code)
    inputs, state = instance.preprocess(_column(instance, rows), {PARAMETERS: parameters})
    if not _is_small(state):
        state = Packed(pickle.dumps(state, 5))
    return Prepared(inputs, state)


def finish(
    code: bytes,
    outputs: Sequence[Array],
    num_rows: int,
    parameters: Mapping[str, Any],
    state: Any,
) -> dict[str, Array]:
    """Call `postprocess`; return the handler's outputs by name.

    Args:
        code: see `pack`.
        outputs: the model's.
        num_rows: those that `prepare` got.
        parameters: of the call.
        state: from `prepare`.

    Raises:
        ServingError: the handler can't answer.
        WrongValue: it returns something else than it declares.
    """
    instance = _opened(code)
    if isinstance(state, Packed):
        state = pickle.loads(state.content)
    found = instance.postprocess(outputs, num_rows, {PARAMETERS: parameters}, state)
    return _named(instance, found)


def predict(code: bytes, rows: Sequence[bytes], parameters: Mapping[str, Any]) -> dict[str, Array]:
    """Call `predict`; see `prepare` and `finish`."""
    instance = _opened(code)
    found = instance.predict(_column(instance, rows), len(rows), {PARAMETERS: parameters})
    return _named(instance, found)


def _column(instance: Instance, rows: Sequence[bytes]) -> list[Array]:
    (kind,) = (instance.signature.inputs or {}).values()
    column = np.empty(len(rows), object)
    try:
        column[:] = [row.decode() for row in rows] if isinstance(kind, Text) else rows
    except UnicodeDecodeError as err:
        raise InvalidRequest("expected a text in UTF-8") from err
    return [column]


def _named(instance: Instance, outputs: Sequence[Array]) -> dict[str, Array]:
    return dict(zip(instance.signature.outputs or {}, outputs, strict=True))


def _is_small(state: Any) -> bool:
    """Return whether a state is as well unpacked in any process, and of few bytes."""
    return _num_plain_bytes(state) <= _MAX_STATE_BYTES


def _num_plain_bytes(value: Any) -> float:
    if value is None or type(value) in (bool, int, float):
        return 8
    if type(value) in (str, bytes):
        return len(value)
    if type(value) is np.ndarray and value.dtype.kind in "biuf":
        return value.nbytes
    if type(value) in (list, tuple):
        return sum(map(_num_plain_bytes, value))
    if type(value) is dict:
        return sum(_num_plain_bytes(each) for pair in value.items() for each in pair)
    return float("inf")
