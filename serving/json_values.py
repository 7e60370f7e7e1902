"""JSON as BYTES: the values of `serving.Json()` as a handler and Python clients see them.

An element is JSON text in UTF-8; NaN and infinities, which JSON does not have, are refused.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from serving.errors import InvalidRequest
from serving.tensors import Array, Tensor, is_encodable

MAX_DEPTH, _MAX_ANSWER_DEPTH = 64, 128
"""Lists and objects inside of one another: in a caller's values, and in a handler's around them."""


class JsonText(str):
    """A text that is JSON already, in place of a value."""

    __slots__ = ()


def parse(text: str | bytes, max_depth: int = MAX_DEPTH) -> Any:
    """Parse a text of at most a number of levels.

    Raises:
        ValueError: it is no JSON, or too deep; the text has the reason.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode(), parse_constant=_refuse)
    except RecursionError as err:
        raise ValueError(_too_deep(max_depth)) from err
    _check_depth(value, max_depth)
    return value


def write(value: Any) -> str:
    """Write a value; numpy's numbers and arrays are numbers and lists.

    Raises:
        ValueError: JSON can't hold it; the text has the reason.
    """
    if isinstance(value, JsonText):
        return str(value)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
        _check_depth(value, _MAX_ANSWER_DEPTH)
    except RecursionError as err:
        raise ValueError(_too_deep(_MAX_ANSWER_DEPTH)) from err
    except TypeError as err:
        raise ValueError(str(err)) from err
    return text if is_encodable(text) else json.dumps(value, allow_nan=False, default=_plain)


def _too_deep(most: int) -> str:
    return f"more than {most} lists and objects inside of one another"


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _check_depth(value: Any, most: int) -> None:
    """Raise ValueError if lists and objects are too deep; each level is looked at once."""
    level = [each for each in (value,) if isinstance(each, _NESTED)]
    for _ in range(most):
        level = [inner for each in level for inner in _inner(each) if isinstance(inner, _NESTED)]
        if not level:
            return
    raise ValueError(_too_deep(most))


_NESTED = dict, list, tuple


def _inner(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    else:
        yield from value


def parsed(name: str, array: Array, max_depth: int = MAX_DEPTH) -> list[Any]:
    """Return the values of texts of at most a number of levels.

    Raises:
        InvalidRequest: one is no JSON; the text has its row.
    """
    values = []
    for row, text in enumerate(array.ravel().tolist()):
        try:
            values.append(parse(text, max_depth))
        except ValueError as err:
            raise InvalidRequest(f"{name}: row {row} is no JSON: {err}") from err
    return values


def column_of(values: list[Any]) -> Array:
    """Return values of any kind as an array of objects, (N,)."""
    column = np.empty(len(values), object)
    for row, value in enumerate(values):
        column[row] = value
    return column


def written_inputs(inputs: tuple[Tensor, ...], given: object) -> object:
    """Return a program's inputs with the values of JSON as texts; see `as_feeds`.

    Raises:
        InvalidRequest: JSON can't hold a value, or there is no list of a value for each row.
    """
    names = [each.name for each in inputs if each.is_json]
    if not names:
        return given
    if not isinstance(given, Mapping):
        return written(names[0], given) if len(inputs) == 1 else given
    return {name: written(name, value) if name in names else value for name, value in given.items()}


def as_texts(given: object) -> object:
    """Return a handler's inputs of another model with its texts as JSON already.

    A handler sends and gets the texts of JSON, since its process does not know the other model.
    """
    if isinstance(given, Mapping):
        return {name: as_texts(value) for name, value in given.items()}
    if isinstance(given, str):
        return JsonText(given)
    if isinstance(given, list | tuple):
        return [as_texts(each) for each in given]
    if isinstance(given, np.ndarray) and given.dtype.kind in "OU":
        return as_texts(given.tolist())
    return given


def written(name: str, given: object) -> Array:
    """Return values as an array of their texts; see `written_inputs`."""
    values = list(given) if isinstance(given, list | tuple | np.ndarray) else None
    if values is None:
        kind = type(given).__name__
        raise InvalidRequest(f"{name}: expected a list with a value for each row, got {kind}")
    texts = []
    for row, value in enumerate(values):
        try:
            texts.append(write(value))
        except ValueError as err:
            raise InvalidRequest(f"{name}: row {row} can't be JSON: {err}") from err
    return column_of(texts)


def parsed_output(tensor: Tensor, array: Array) -> Array:
    """Return an output as a program sees it: values in place of the texts of JSON.

    Raises:
        InvalidRequest: one is no JSON, as of a server that is none of ours.
    """
    if not tensor.is_json:
        return array
    return column_of(parsed(tensor.name, array, _MAX_ANSWER_DEPTH))
