"""Checks a caller's arrays against the inputs of a model."""

from collections.abc import Mapping

import numpy as np

from serving.errors import InvalidRequest
from serving.tensors import Array, Tensor, TensorSignature

_MAX_SHOWN = 200
"""Names and types that come from a caller are cut to this length in errors."""


def as_feeds(signature: TensorSignature, values: Mapping[str, object]) -> dict[str, Array]:
    """Check the arrays of a call, and convert lists and numbers where that loses nothing.

    Args:
        signature: what the model takes.
        values: an array for each input, by its name; or a list, a number or a text.

    Returns:
        The arrays, of the inputs' types and shapes, in the order of the inputs.

    Raises:
        InvalidRequest: an input is missing or unknown, has another type or shape, or there are not
            as many rows of each.
    """
    names = [each.name for each in signature.inputs]
    if values.keys() != set(names):
        got = ", ".join(map(str, values)) or "none"
        raise InvalidRequest(f"expected the inputs {', '.join(names)}, got {got[:_MAX_SHOWN]}")
    feeds = {each.name: as_array(each, values[each.name]) for each in signature.inputs}
    if signature.is_batchable:
        sizes = [len(array) for array in feeds.values()]
        if 0 in sizes:
            raise InvalidRequest("expected at least 1 row, got 0")
        if len({*sizes} - {1}) > 1:  # one row may be meant for all
            raise InvalidRequest(f"expected as many rows of each input, got {sizes}")
    return feeds


def as_array(tensor: Tensor, value: object) -> Array:
    """Return one input as an array of its type and shape; see `as_feeds`.

    Raises:
        InvalidRequest: it has another type or shape; the text says what was expected and what came.
    """
    array = value if type(value) is np.ndarray else _new_array(tensor, value)
    if array.dtype != tensor.dtype:
        array = _converted(tensor, array, is_typed=hasattr(value, "dtype"))
    elif array.dtype.kind == "O" and not all(isinstance(each, str | bytes) for each in array.flat):
        raise InvalidRequest(f"expected {tensor}, got objects that are no texts")
    # ONNX Runtime says () also of inputs that take any shape.
    wrong = [0 <= size != got for size, got in zip(tensor.shape, array.shape, strict=False)]
    if tensor.shape and (len(tensor.shape) != array.ndim or any(wrong)):
        raise InvalidRequest(f"expected {tensor}, got the shape {list(array.shape)}")
    return array


def _new_array(tensor: Tensor, value: object) -> Array:
    try:
        # An array of texts without a type would cut bytes off that are 0.
        array = np.asarray(value, tensor.dtype if tensor.dtype.kind == "O" else None)
    except (MemoryError, TimeoutError):  # as raised by a handler of a signal
        raise
    except Exception as err:  # ragged lists, and anything that an object's __array__ raises
        reason = f"a {type(value).__name__}: {' '.join(str(err).split())}"
        raise InvalidRequest(f"expected {tensor}, got {reason[:_MAX_SHOWN]}") from err
    if np.ma.is_masked(value):
        raise InvalidRequest(f"expected {tensor}, got a masked array: fill it first")
    return array


def _converted(tensor: Tensor, array: Array, *, is_typed: bool) -> Array:
    """Return an array in the tensor's type.

    An array that has a type must have the right one: floats may be 0..1 or 0..255. Lists have none:
    their numbers become floats of any size, and integers that hold them.
    """
    wanted, kind = tensor.dtype, array.dtype.kind
    if array.dtype.newbyteorder("=") == wanted or (wanted.kind == "O" and kind in "US"):
        return array.astype(wanted)
    if not is_typed and (not array.size or kind in "iuf"):
        with np.errstate(all="ignore"):
            converted = array.astype(wanted)
        is_exact = kind in "iu" and wanted.kind in "iu" and (converted == array).all()
        if is_exact or wanted.kind == "f" or not array.size:
            return converted
    raise InvalidRequest(f"expected {tensor}, got {str(array.dtype)[:_MAX_SHOWN]}")
