"""Workloads: a model, and rows to ask it about, drawn or of a file."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving import Model
from serving.model import repository
from serving.tensors import Array, Feeds, Tensor, TensorSignature

LARGEST_BATCH = 4096
_MAX_BYTES = 256 << 20
"""Seeds the rows that are drawn."""
_OPEN_AXIS = 16
"""The size of drawn axes that the model leaves open, but for the rows'."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Workload:
    """A model, and rows to ask it about."""

    model: str
    """Its name."""
    rows: Mapping[str, Array]
    """By input: as many rows as a call may have."""
    fixed: Mapping[str, Array] = field(default_factory=dict)
    """By input: arrays that are no rows, the same in each call."""
    outputs: Array | None = None
    """The numbers of the first output for the first row; None if an answer is not compared."""
    answers: list[int] | None = None
    """The digits that the model sees in the first rows; None if it reads none."""

    @property
    def num_rows(self) -> int:
        """How many rows there are; 1 if the model's calls have none."""
        return min(map(len, self.rows.values()), default=1)

    def feeds(self, batch: int, first: int = 0) -> Feeds:
        """Return the inputs of a call.

        Args:
            batch: how many rows.
            first: the place of the first one; those behind the last row are the first ones again.

        Raises:
            OSError: a call can't have that number of rows.
        """
        if any(len(array) < batch for array in self.rows.values()):
            raise OSError(f"{batch} rows of {self.model} are too many here")
        if first + batch <= self.num_rows or not self.rows:
            found = {name: array[first : first + batch] for name, array in self.rows.items()}
        else:
            places = np.arange(first, first + batch)
            found = {
                name: array.take(places, axis=0, mode="wrap") for name, array in self.rows.items()
            }
        return {**self.fixed, **found}


def golden(models: Path) -> Workload:
    """Take the model's own golden samples, which are real digits: zeros may cost less.

    Raises:
        ServingError: there is no model in this repository.
    """
    newest = repository.versions(models / "digits")[0]
    manifest = repository.load_manifest(models / "digits" / newest)
    images = manifest.golden_images
    answers = manifest.golden_probabilities["fp32"].argmax(axis=1).tolist()
    rows = {"images": np.resize(images, (LARGEST_BATCH, images.shape[1]))}
    return Workload(model="digits", rows=rows, answers=answers)


def drawn(file: Path, seed: int = 0, largest_batch: int = LARGEST_BATCH) -> Workload:
    """Draw inputs for any model: numbers from 0 to 1, bytes of all values, whole numbers 0 and 1.

    Args:
        file: an ONNX file.
        seed: the same seed draws the same inputs.
        largest_batch: the most rows of a call.

    Raises:
        OSError: an input is of texts.
        ServingError: the model can't be used.
    """
    signature = signature_of(file)
    generator, rows, fixed = np.random.default_rng(seed), dict[str, Array](), dict[str, Array]()
    most = _MAX_BYTES // max(1, sum(each.row_bytes or 1 << 16 for each in signature.inputs))
    for each in signature.inputs:
        if each.dtype.kind == "O":
            raise OSError(f"{each}: texts are not drawn: name samples")
        shape = [_OPEN_AXIS if size < 0 else size for size in each.shape]
        if has_rows(each):
            shape[0] = max(1, min(largest_batch, most))
        highest = 256 if each.dtype == np.uint8 else 2
        array = (
            generator.random(shape)
            if each.dtype.kind == "f"
            else generator.integers(0, highest, shape)
        )
        (rows if has_rows(each) else fixed)[each.name] = np.asarray(array, each.dtype)
    return Workload(model=file.stem, rows=rows, fixed=fixed)


def of_samples(file: Path, samples: Path, largest_batch: int = LARGEST_BATCH) -> Workload:
    """Take the inputs of an NPZ file that has an array for each input by its name.

    Rows are repeated in turn where a call has more of them.

    Raises:
        OSError: the file can't be read, or an array is missing or does not fit the input.
        ServingError: the model can't be used.
    """
    signature = signature_of(file)
    try:
        with np.load(samples, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as err:
        raise OSError(f"{samples} is no NPZ file of arrays") from err
    rows, fixed = dict[str, Array](), dict[str, Array]()
    for each in signature.inputs:
        if each.name not in arrays:
            raise OSError(f"{samples} has no array {each.name!r}; it has {', '.join(arrays)}")
        array = arrays[each.name]
        fits = (
            array.ndim == len(each.shape)
            and array.size
            and all(
                size in (-1, found) for size, found in zip(each.shape, array.shape, strict=True)
            )
        )
        if not fits or array.dtype != each.dtype:
            raise OSError(
                f"{samples}: expected {each}, got {array.dtype} {list(array.shape)} as {each.name}"
            )
        if has_rows(each):
            rows[each.name] = np.resize(array, (largest_batch, *array.shape[1:]))
        else:
            fixed[each.name] = array
    return Workload(model=file.stem, rows=rows, fixed=fixed)


def has_rows(tensor: Tensor) -> bool:
    """Return whether the first axis of an input is that of rows: the model leaves it open."""
    return tensor.shape[:1] == (-1,)


def signature_of(file: Path) -> TensorSignature:
    """Return the inputs and outputs of an ONNX file.

    Raises:
        ServingError: the model can't be used.
    """
    with Model.load(file, device="cpu") as model:
        return model.served.tensors
