"""From a column of bytes, pictures or lists to images, without copying where all rows are good."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from serving.images import Images

Decode = Callable[[Sequence[bytes]], Sequence[Images | str]]
"""Decodes picture files: (1, 784) uint8 each, or why there is none."""

_PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
"""How pictures begin; one may happen to have as many bytes as an image has pixels."""
_FIRST_BYTES = np.array(sorted({start[0] for start in _PICTURE_STARTS}), np.uint8)

Bounds = npt.NDArray[np.int64]
"""Where each row's values begin, and the last one's end."""


def is_images(kind: Any) -> bool:
    """Return whether a column of an Arrow type can hold images."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not _is_list(kind):
        return is_pictures(kind) or _is_bytes(kind)
    while _is_list(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind))


def is_pictures(kind: Any) -> bool:
    """Return whether a type is a struct with a picture's file, as in Hugging Face's data sets."""
    index = kind.get_field_index("bytes") if types.is_struct(kind) else -1
    return index >= 0 and _is_bytes(kind.field(index).type)


def as_images(column: Any, num_pixels: int, decode: Decode) -> tuple[Images, dict[int, str]]:
    """Make images of a column.

    Args:
        column: a `pyarrow.Array` of a type for which `is_images` holds: bytes, which are pixels
            if there are as many, else a picture file; structs with picture files; or lists.
        num_pixels: of an image.
        decode: decodes picture files.

    Returns:
        (N, num_pixels) uint8, and by row number why a row has none.
    """
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    column = column.dictionary_decode() if types.is_dictionary(column.type) else column
    are_files = is_pictures(column.type)
    column = pc.struct_field(column, "bytes") if are_files else column
    is_list = _is_list(column.type)
    values, bounds, num_bad = _numbers(column) if is_list else _bytes(column)
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    errors = dict.fromkeys(np.flatnonzero(is_null).tolist(), "no image: it is null")
    sizes = np.diff(bounds)
    is_full = (sizes == num_pixels) & ~is_null & (not are_files)
    if is_full.all():
        images = values[bounds[0] : bounds[-1]].reshape(-1, num_pixels)
    else:
        images = np.zeros((len(column), num_pixels), np.uint8)
        images[is_full] = values[bounds[:-1][is_full][:, None] + np.arange(num_pixels)]
    if is_list:
        for row in np.flatnonzero(~is_full & ~is_null).tolist():
            errors[row] = f"expected {num_pixels} pixels, got {sizes[row]}"
        for row in np.flatnonzero(is_full & (num_bad > 0)).tolist():
            errors[row] = "expected pixels from 0 to 255"
        return images, errors
    may_be_file = ~is_null & (~is_full | np.isin(images[:, 0], _FIRST_BYTES))
    files = {}
    for row in np.flatnonzero(may_be_file).tolist():
        content = values[bounds[row] : bounds[row + 1]].tobytes()
        if not is_full[row] or content.startswith(_PICTURE_STARTS):
            files[row] = content
    if files:
        images = images.copy()  # it may be the column's own memory
        errors |= _decode_into(images, files, decode, are_files)
    return images, errors


def _decode_into(
    images: Images, files: dict[int, bytes], decode: Decode, are_files: bool
) -> dict[int, str]:
    """Decode picture files into their rows; return why others can't be."""
    errors, num_pixels = {}, images.shape[1]
    for (row, content), decoded in zip(files.items(), decode([*files.values()]), strict=True):
        if not isinstance(decoded, str) and decoded.shape[1] == num_pixels:
            images[row] = decoded
        elif not isinstance(decoded, str):
            errors[row] = f"pictures are read as images of 28 x 28, not of {num_pixels} pixels"
        elif are_files or content.startswith(_PICTURE_STARTS):
            errors[row] = decoded
        else:
            errors[row] = f"expected {num_pixels} pixels or a picture, got {len(content)} bytes"
    return errors


def _is_list(kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_bytes(kind: Any) -> bool:
    is_any = types.is_binary(kind) or types.is_large_binary(kind)
    return bool(is_any or types.is_fixed_size_binary(kind))


def _bytes(column: Any) -> tuple[Images, Bounds, int]:
    rows = np.arange(column.offset, column.offset + len(column) + 1)
    *_, offsets, data = column.buffers()
    if types.is_fixed_size_binary(column.type):
        bounds = rows * column.type.byte_width
    else:
        size = np.int64 if types.is_large_binary(column.type) else np.int32
        bounds = np.frombuffer(offsets, size)[rows].astype(np.int64)
    return np.frombuffer(data if data is not None else b"", np.uint8), bounds, 0


def _numbers(column: Any) -> tuple[Images, Bounds, npt.NDArray[np.int64]]:
    """Flatten lists of any depth; count each row's numbers that are no pixels."""
    bounds = np.arange(len(column) + 1)
    while _is_list(column.type):
        if types.is_fixed_size_list(column.type):
            bounds = (bounds + column.offset) * column.type.list_size
        else:
            bounds = column.offsets.to_numpy()[bounds].astype(np.int64)
        column = column.values
    leaves = column.slice(bounds[0], bounds[-1] - bounds[0])
    bounds = bounds - bounds[0]
    values = (leaves.fill_null(0) if leaves.null_count else leaves).to_numpy(zero_copy_only=False)
    num_bad = np.zeros(len(bounds) - 1, np.int64)
    limits = pc.min_max(leaves).as_py()
    if leaves.null_count or (len(leaves) and not 0 <= limits["min"] <= limits["max"] <= 255):
        is_bad = leaves.is_null().to_numpy(zero_copy_only=False) | (values < 0) | (values > 255)
        num_bad = np.diff(np.append(0, is_bad.cumsum())[bounds])
    return values.astype(np.uint8, copy=False), bounds, num_bad
