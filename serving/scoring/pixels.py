"""From a column of bytes, pictures or lists to images, without copying where all rows are good."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serving.images import Images

Decode = Callable[[Sequence[bytes]], Sequence[Images | str]]
"""Decodes picture files: (1, 784) uint8 each, or why there is none."""

_PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
"""How pictures begin; one may happen to have as many bytes as an image has pixels."""
_FIRST_BYTES = np.array(sorted({start[0] for start in _PICTURE_STARTS}), np.uint8)
_BYTES_FIELD = "bytes"
"""The field with the file's content, where a picture is a struct (Hugging Face datasets)."""

Numbers = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]


class Pixels(NamedTuple):
    """The images of some rows."""

    images: Images
    """(N, pixels) uint8, C-contiguous; zeros for a row without one."""
    errors: dict[int, str]
    """Row number to why it has none."""


def is_images(kind: Any) -> bool:
    """Return whether a column of an Arrow type can hold images."""
    kind = _storage_type(kind)
    if _is_list(kind):
        while _is_list(kind):
            kind = kind.value_type
        return bool(pa.types.is_integer(kind))
    return is_pictures(kind) or _is_bytes(kind)


def is_pictures(kind: Any) -> bool:
    """Return whether a type is a struct with a picture's file in it."""
    if not pa.types.is_struct(kind):
        return False
    index = kind.get_field_index(_BYTES_FIELD)
    return index >= 0 and _is_bytes(kind.field(index).type)


def as_images(column: Any, num_pixels: int, decode: Decode) -> Pixels:
    """Make images of a column.

    Args:
        column: a `pyarrow.Array` of a type for which `is_images` holds: bytes, which are pixels
            if there are as many, else a picture file; structs with picture files; or lists.
        num_pixels: bytes of an image.
        decode: decodes picture files.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    are_files = is_pictures(column.type)
    if are_files:
        column = pc.struct_field(column, _BYTES_FIELD)
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    make = _from_lists if _is_list(column.type) else _from_files if are_files else _from_bytes
    return make(column, num_pixels, is_null, decode)


def _storage_type(kind: Any) -> Any:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_bytes(kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


def _bytes_of(column: Any) -> tuple[Images, Numbers]:
    """Return the buffer of a column of bytes, and where each row begins and the last one ends."""
    rows = np.arange(column.offset, column.offset + len(column) + 1)
    if pa.types.is_fixed_size_binary(column.type):
        bounds: Numbers = rows * column.type.byte_width
        data = column.buffers()[1]
    else:
        _, offsets, data = column.buffers()
        size = np.int64 if pa.types.is_large_binary(column.type) else np.int32
        bounds = np.frombuffer(offsets, size)[rows].astype(np.int64)
    return np.frombuffer(data if data is not None else b"", np.uint8), bounds


def _whole_rows(
    values: Images, bounds: Numbers, num_pixels: int, is_null: Mask
) -> tuple[Images, Mask]:
    """Return the rows with as many values as an image has pixels, and which they are."""
    is_whole = (np.diff(bounds) == num_pixels) & ~is_null
    if is_whole.all():
        return values[bounds[0] : bounds[-1]].reshape(-1, num_pixels), is_whole
    images = np.zeros((len(is_whole), num_pixels), np.uint8)
    images[is_whole] = values[bounds[:-1][is_whole][:, None] + np.arange(num_pixels)]
    return images, is_whole


def _from_bytes(column: Any, num_pixels: int, is_null: Mask, decode: Decode) -> Pixels:
    """Take rows of the right length as they are, and the others as pictures."""
    values, bounds = _bytes_of(column)
    images, is_whole = _whole_rows(values, bounds, num_pixels, is_null)
    errors = _nulls(is_null)
    may_be_file = ~is_null & (~is_whole | np.isin(images[:, 0], _FIRST_BYTES))
    files = {}
    for row in np.flatnonzero(may_be_file).tolist():
        content = values[bounds[row] : bounds[row + 1]].tobytes()
        if not is_whole[row] or content.startswith(_PICTURE_STARTS):
            files[row] = content
    if not files:
        return Pixels(images, errors)
    images = images.copy()  # it may be the column's own memory
    failed = _decode_into(images, files, decode)
    for row, reason in failed.items():
        if not files[row].startswith(_PICTURE_STARTS):
            reason = f"expected {num_pixels} pixels or a picture, got {len(files[row])} bytes"
        errors[row] = reason
    return Pixels(images, errors)


def _from_files(column: Any, num_pixels: int, is_null: Mask, decode: Decode) -> Pixels:
    """Decode every row."""
    values, bounds = _bytes_of(column)
    images = np.zeros((len(column), num_pixels), np.uint8)
    rows = np.flatnonzero(~is_null).tolist()
    files = {row: values[bounds[row] : bounds[row + 1]].tobytes() for row in rows}
    failed = _decode_into(images, files, decode) if files else {}
    return Pixels(images, _nulls(is_null) | failed)


def _decode_into(images: Images, files: dict[int, bytes], decode: Decode) -> dict[int, str]:
    """Decode picture files into their rows; return why others can't be."""
    failed = {}
    for row, decoded in zip(files, decode(list(files.values())), strict=True):
        if isinstance(decoded, str):
            failed[row] = decoded
        elif decoded.shape[1] != images.shape[1]:
            failed[row] = f"pictures are read as images of 28 x 28, not of {images.shape[1]} pixels"
        else:
            images[row] = decoded
    return failed


def _nulls(is_null: Mask) -> dict[int, str]:
    return dict.fromkeys(np.flatnonzero(is_null).tolist(), "no image: it is null")


def _from_lists(column: Any, num_pixels: int, is_null: Mask, _: Decode) -> Pixels:
    """Flatten lists of any depth, and check that their numbers are those of pixels."""
    bounds: Numbers = np.arange(len(column) + 1)
    while _is_list(column.type):
        if pa.types.is_fixed_size_list(column.type):
            bounds = (bounds + column.offset) * column.type.list_size
        else:
            bounds = column.offsets.to_numpy()[bounds].astype(np.int64)
        column = column.values
    first = int(bounds[0])
    leaves = column.slice(first, int(bounds[-1]) - first)
    bounds = bounds - first
    is_bad = _are_no_pixels(leaves)
    numbers = leaves.fill_null(0) if leaves.null_count else leaves
    values = numbers.to_numpy(zero_copy_only=False).astype(np.uint8, copy=False)
    images, is_whole = _whole_rows(values, bounds, num_pixels, is_null)
    errors = _nulls(is_null)
    for row in np.flatnonzero(~is_whole & ~is_null).tolist():
        errors[row] = f"expected {num_pixels} pixels, got {bounds[row + 1] - bounds[row]}"
    if is_bad is not None:
        for row in np.flatnonzero(is_whole).tolist():
            if is_bad[bounds[row] : bounds[row + 1]].any():
                errors[row] = "expected pixels from 0 to 255"
    return Pixels(images, errors)


def _are_no_pixels(leaves: Any) -> Mask | None:
    """Return which numbers are null or not 0 to 255; None if all are pixels."""
    if not leaves.null_count and leaves.type == pa.uint8():
        return None
    limits = pc.min_max(leaves)
    low, high = limits["min"].as_py(), limits["max"].as_py()
    if not leaves.null_count and (low is None or (low >= 0 and high <= 255)):
        return None
    numbers = leaves.fill_null(-1) if pa.types.is_signed_integer(leaves.type) else leaves
    is_null: Mask = leaves.is_null().to_numpy(zero_copy_only=False)
    values = numbers.fill_null(0).to_numpy(zero_copy_only=False)
    bad: Mask = is_null | (values < 0) | (values > 255)
    return bad
