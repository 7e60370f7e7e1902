"""golden.npz, read: calls of any model with the answers that its writer got.

    0/input/NAME    (calls, ...) of each input: calls of equal shapes, one above the other
    0/output/NAME   (calls, ...) of each output: the answers to them
    1/input/NAME    calls of other shapes, and so on

The manifest has the file's digest, and how its answers are compared. A stranger's file may claim
any size: no array is made before its bytes are there.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy

from serving.errors import CorruptModel
from serving.model.agreement import GOLDEN_FILE, AnswerComparison
from serving.tensors import Array, Feeds

MAX_GOLDEN_BYTES = 64 << 20
"""The most bytes of the file, and of what is in it."""
_KINDS = "biufU"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Calls, their answers, and how other answers to them are compared."""

    calls: tuple[Feeds, ...]
    """Of each call an array for each input, by its name."""
    answers: tuple[Mapping[str, Array], ...]
    """Of each call an array for each output, by its name."""
    comparison: AnswerComparison
    """How answers are compared."""
    gated_on: str = ""
    """The processor and device that the answers come from; empty if that is unknown."""


def read_golden(data: bytes, comparison: AnswerComparison, gated_on: str = "") -> Golden:
    """Parse the file.

    Args:
        data: its content.
        comparison: what the manifest states.
        gated_on: the processor and device that the answers come from.

    Raises:
        CorruptModel: it is malformed, too large, or lacks a call or an output that is compared.
    """
    try:
        calls, answers = _calls_of(data)
        if not calls:
            raise ValueError("there is no call")
        if missing := set(comparison.kinds) - set(answers[0]):
            raise ValueError(f"output {min(missing)} is missing")
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile, MemoryError) as err:
        reason = f"{type(err).__name__}: {str(err)[:100]}"
        raise CorruptModel(f"{GOLDEN_FILE} is malformed: {reason}") from err
    return Golden(tuple(calls), tuple(answers), comparison, gated_on)


def _calls_of(data: bytes) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    if len(data) > MAX_GOLDEN_BYTES:
        raise ValueError(f"{len(data)} bytes, at most {MAX_GOLDEN_BYTES} expected")
    groups: dict[str, dict[str, dict[str, Array]]] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        entries = file.infolist()
        if sum(each.file_size for each in entries) > MAX_GOLDEN_BYTES:
            raise ValueError(f"at most {MAX_GOLDEN_BYTES} bytes of arrays expected")
        for entry in entries:
            group, side, name = entry.filename.removesuffix(".npy").split("/", 2)
            with file.open(entry) as stream:
                array = _array_of(stream.read(entry.file_size))
            groups.setdefault(group, {"input": {}, "output": {}})[side][name] = array
    calls: list[dict[str, Array]] = []
    answers: list[dict[str, Array]] = []
    for _, sides in sorted(groups.items()):
        sizes = {len(array) for side in sides.values() for array in side.values()}
        if len(sizes) != 1 or not sides["input"] or not sides["output"]:
            raise ValueError("as many calls of each input and output expected")
        for at in range(sizes.pop()):
            calls.append({name: array[at] for name, array in sides["input"].items()})
            answers.append({name: array[at] for name, array in sides["output"].items()})
    return calls, answers


def _array_of(data: bytes) -> Array:
    """Parse a .npy file of numbers or texts, without an allocation that its header asks for."""
    stream = io.BytesIO(data)
    read = _HEADERS[npy.read_magic(stream)]
    shape, is_fortran, dtype = read(stream)
    body = data[stream.tell() :]
    if dtype.kind not in _KINDS or not shape or is_fortran:
        raise ValueError(f"arrays of numbers or texts expected, got {dtype}")
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"{len(body)} bytes for {list(shape)} of {dtype}")
    array: np.ndarray[Any, Any] = np.frombuffer(body, dtype).reshape(shape)
    return array.astype(object) if dtype.kind == "U" else array
