"""Columns of images in a data set: pixels, lists of pixels, or picture files."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from serving.tensors import Images

Decode = Callable[[Sequence[bytes]], Sequence[Images | str]]
"""Decodes picture files: (1, 784) uint8 each, or why there is none."""
_PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
"""How pictures begin; one may happen to have as many bytes as an image has pixels."""


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
    are_files, is_list = is_pictures(column.type), _is_list(column.type)
    if is_list and (regular := _regular(column, num_pixels)) is not None:
        return regular, {}
    rows = (pc.struct_field(column, "bytes") if are_files else column).to_pylist()
    errors, files = dict[int, str](), dict[int, bytes]()
    for row, content in enumerate(rows):
        if content is None:
            errors[row] = "no image: it is null" + " or can't be read" * are_files
        elif is_list:
            rows[row] = found = _pixels([*_leaves(content)], num_pixels)
            if isinstance(found, str):
                errors[row] = found
        elif are_files or len(content) != num_pixels or content.startswith(_PICTURE_STARTS):
            files[row] = content
    for (row, content), decoded in zip(files.items(), decode([*files.values()]), strict=True):
        if not isinstance(decoded, str) and decoded.shape[1] == num_pixels:
            rows[row] = decoded.tobytes()
        elif not isinstance(decoded, str):
            errors[row] = f"pictures are read as images of 28 x 28, not of {num_pixels} pixels"
        elif are_files or content.startswith(_PICTURE_STARTS):
            errors[row] = decoded
        else:
            errors[row] = f"expected {num_pixels} pixels or a picture, got {len(content)} bytes"
    for row in errors:
        rows[row] = bytes(num_pixels)
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, num_pixels), errors


def _regular(column: Any, num_pixels: int) -> Images | None:
    """Return the images of lists of any depth; None if any is null, too short or no pixel."""
    num_rows, size = len(column), 1
    while _is_list(column.type):
        sizes = pc.min_max(pc.list_value_length(column)).as_py()
        if column.null_count or sizes["min"] != sizes["max"]:
            return None
        size *= sizes["min"]
        column = column.flatten()
    limits = pc.min_max(column).as_py()
    if column.null_count or size != num_pixels or limits["min"] < 0 or limits["max"] > 255:
        return None
    images: Images = column.to_numpy().astype(np.uint8, copy=False)
    return images.reshape(num_rows, num_pixels)


def _leaves(row: Any) -> Iterator[int | None]:
    for each in row:
        if isinstance(each, list):
            yield from _leaves(each)
        else:
            yield each


def _pixels(row: list[int | None], num_pixels: int) -> bytes | str:
    if len(row) != num_pixels:
        return f"expected {num_pixels} pixels, got {len(row)}"
    if not all(each is not None and 0 <= each <= 255 for each in row):
        return "expected pixels from 0 to 255"
    return bytes(row)  # type: ignore[arg-type]


def _is_list(kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_bytes(kind: Any) -> bool:
    is_any = types.is_binary(kind) or types.is_large_binary(kind)
    return bool(is_any or types.is_fixed_size_binary(kind))
