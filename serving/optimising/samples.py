"""Samples of a model: calls that it gets, from an NPZ file, a folder of these, or arrays."""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from serving.errors import ConfigurationError, InvalidRequest
from serving.tensors import Array, Feeds, Tensor, TensorSignature, as_array

LABELS, IMAGES = "labels", "images"
_MAX_SHOWN = 8
_MOST_CALIBRATION = 200
"""Calls that scales are calibrated with: more change them hardly."""
SamplesSource = str | Path | Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class CallSamples:
    """Calls that a model gets, all of them different."""

    calls: tuple[Feeds, ...]
    """Of each call an array for each input: one row, where the first axis is the batch."""
    labels: Array | None
    """The class of each call's answer, integers from 0; None where they are unknown."""
    others: tuple[Mapping[str, Array], ...]
    """Of each call the arrays that are no inputs, for a score of one's own."""
    digest: str
    """SHA-256 of what was read."""
    num_copies: int = 0
    """Calls that were left out, since they repeat others."""

    def __len__(self) -> int:
        return len(self.calls)

    def take(self, numbers: Sequence[int]) -> Self:
        """Return some of the calls."""
        return replace(
            self,
            calls=tuple(self.calls[at] for at in numbers),
            labels=None if self.labels is None else self.labels[list(numbers)],
            others=tuple(self.others[at] for at in numbers),
        )

    def split(self, seed: int) -> tuple[Self, Self]:
        """Return those to calibrate with, and those held out for the gate."""
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        num = max(1, min(_MOST_CALIBRATION, len(self) // 3))
        return self.take(order[:num]), self.take(order[num:])


def read_samples(source: SamplesSource, signature: TensorSignature) -> CallSamples:
    """Read samples, and check them against a model's inputs.

    Args:
        source: an NPZ file with an array for each input by its name, and optionally `labels`; a
            folder of such files, of which each may have other sizes; or the arrays by name. One
            input's array may be called `images`, as those for `digit-serving export`.
        signature: the model's inputs.

    Raises:
        ConfigurationError: a file can't be read, or an array is missing, of another type or shape,
            or has numbers that are not finite; all calls are alike.
    """
    calls: list[Feeds] = []
    labels: list[Array] = []
    others: list[Mapping[str, Array]] = []
    digest = hashlib.sha256()
    for name, arrays in _parts(source, digest):
        found, more = _calls_of(name, arrays, signature)
        calls += found
        others += more
        if LABELS in arrays and LABELS not in _names(signature):
            labels.append(_labels_of(name, arrays[LABELS], len(found)))
        elif labels:
            raise ConfigurationError(f"{name}: expected {LABELS}, as the files before it have them")
        if labels and sum(map(len, labels)) != len(calls):
            raise ConfigurationError(f"{name}: {LABELS}, which the files before it lack")
    samples = CallSamples(
        tuple(calls),
        np.concatenate(labels) if labels else None,
        tuple(others),
        digest.hexdigest(),
    )
    return _different(samples)


def _parts(source: SamplesSource, digest: Any) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield the arrays of each file by name, and what the file is called in errors."""
    if isinstance(source, Mapping):
        arrays = {str(name): np.asarray(each) for name, each in source.items()}
        for name in sorted(arrays):
            digest.update(name.encode())
            array = arrays[name]
            data = repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes()
            digest.update(data)
        yield "samples", arrays
        return
    path = Path(source)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise ConfigurationError(f"{path}: expected files *.npz in the folder")
    for file in files:
        try:
            digest.update(file.read_bytes())
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array, without a name")
            with archive:
                arrays = {name: archive[name] for name in archive.files}
        except OSError as err:
            raise ConfigurationError(f"{file}: {err.strerror or err}") from err
        except (ValueError, EOFError, zipfile.BadZipFile) as err:
            reason = " ".join(str(err).split())[:120]
            advice = "; save texts as an array of str" if "allow_pickle" in reason else ""
            raise ConfigurationError(f"{file}: expected an NPZ file: {reason}{advice}") from err
        yield str(file), arrays


def _names(signature: TensorSignature) -> list[str]:
    return [each.name for each in signature.inputs]


def _calls_of(
    name: str, arrays: Mapping[str, Array], signature: TensorSignature
) -> tuple[list[Feeds], list[Mapping[str, Array]]]:
    names = _names(signature)
    given = {each: array for each, array in arrays.items() if each != LABELS or LABELS in names}
    if len(names) == 1 and names[0] not in given and IMAGES in given:
        given[names[0]] = given.pop(IMAGES)
    if len(names) == len(given) == 1 and names[0] not in given:
        given = {names[0]: next(iter(given.values()))}  # it can't be another
    if missing := [each for each in names if each not in given]:
        got = ", ".join(sorted(arrays)[:_MAX_SHOWN]) or "none"
        expected = ", ".join(map(str, signature.inputs[:_MAX_SHOWN]))
        raise ConfigurationError(
            f"{name}: expected an array for each input ({expected}), got {got}: "
            f"{missing[0]} is missing"
        )
    stacks = {each.name: _stack(name, each, given[each.name]) for each in signature.inputs}
    sizes = {each: len(stack) for each, stack in stacks.items() if stack is not None}
    if not sizes or len({*sizes.values()}) != 1 or not min(sizes.values()):
        raise ConfigurationError(f"{name}: expected as many samples of each input, got {sizes}")
    num = next(iter(sizes.values()))
    calls: list[Feeds] = []
    for at in range(num):
        call = {}
        for tensor in signature.inputs:
            stack = stacks[tensor.name]
            value = given[tensor.name] if stack is None else stack[at]
            try:
                call[tensor.name] = as_array(tensor, value)
            except InvalidRequest as err:
                raise ConfigurationError(f"{name}: sample {at}: {err}") from err
            array = call[tensor.name]
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ConfigurationError(
                    f"{name}: sample {at} of {tensor.name} has numbers that are not finite"
                )
        calls.append(call)
    more = {each: array for each, array in arrays.items() if each not in names}
    of_calls = {each: array for each, array in more.items() if len(np.atleast_1d(array)) == num}
    return calls, [{each: np.asarray(a)[at] for each, a in of_calls.items()} for at in range(num)]


def _stack(name: str, tensor: Tensor, array: Array) -> Array | None:
    """Return an array whose first axis counts calls; None if all calls get the array as it is."""
    shape = tensor.shape
    array = array.astype(object) if array.dtype.kind in "US" else array
    if not shape:
        return array if array.ndim else None
    if array.ndim == len(shape) + 1 and _fits(array.shape[1:], shape):
        return array
    if array.ndim and shape[0] in (-1, 1):
        rest = shape[1:]
        if array.ndim == len(shape):
            return array[:, np.newaxis]
        if len(array) and min(rest, default=1) > 0 and array[0].size == int(np.prod(rest)):
            return array.reshape(len(array), 1, *rest)  # images for a graph that takes them flat
    raise ConfigurationError(
        f"{name}: expected {tensor} with its samples along the first axis, got the shape "
        f"{list(array.shape)} of {tensor.name}"
    )


def _fits(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    return all(each in (-1, size) for size, each in zip(sizes, shape, strict=True))


def _labels_of(name: str, labels: Array, num: int) -> Array:
    labels = labels.reshape(len(labels)) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "iub" or len(labels) != num:
        raise ConfigurationError(
            f"{name}: expected {LABELS} of shape [{num}], integers from 0, got "
            f"{labels.dtype} {list(labels.shape)}"
        )
    if labels.size and int(labels.min()) < 0:
        raise ConfigurationError(f"{name}: expected {LABELS} from 0, got {int(labels.min())}")
    return labels.astype(np.int64)


def _different(samples: CallSamples) -> CallSamples:
    """Leave out copies: a call that is calibrated with would be held out, too."""
    seen: dict[bytes, int] = {}
    for at, call in enumerate(samples.calls):
        digest = hashlib.sha256()
        for name, array in call.items():
            data = repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes()
            digest.update(f"{name} {array.shape} ".encode() + data)
        seen.setdefault(digest.digest(), at)
    if len(seen) == 1 < len(samples):
        raise ConfigurationError(
            f"all {len(samples):,} samples are alike: they show nothing of the model"
        )
    if len(seen) < 2:
        raise ConfigurationError("expected at least 2 samples: to calibrate with, and to test with")
    kept = samples.take(sorted(seen.values()))
    return replace(kept, num_copies=len(samples) - len(seen))
