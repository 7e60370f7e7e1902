"""golden.npz, written: calls of any model with its own answers; `model/golden.py` reads it."""

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from serving.model.agreement import GOLDEN_FILE, AnswerComparison
from serving.model.golden import MAX_GOLDEN_BYTES
from serving.tensors import Array, Feeds


def golden_file(calls: Sequence[Feeds], answers: Sequence[Mapping[str, Array]]) -> bytes:
    """Write calls and their answers.

    Args:
        calls: of each an array for each input, by its name.
        answers: of each an array for each output, by its name.

    Raises:
        ValueError: the file would be larger than a server reads, or there is no call.
    """
    if not calls:
        raise ValueError("at least one golden call expected")
    arrays = dict(_arrays(calls, answers))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    if len(data) > MAX_GOLDEN_BYTES:
        raise ValueError(f"golden calls of {len(data)} bytes, at most {MAX_GOLDEN_BYTES} expected")
    return data


def _arrays(
    calls: Sequence[Feeds], answers: Sequence[Mapping[str, Array]]
) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of the file: calls of equal shapes are stacked, in groups."""
    groups: dict[object, list[int]] = {}
    for at, both in enumerate(zip(calls, answers, strict=True)):
        shapes = tuple((name, each.shape) for side in both for name, each in side.items())
        groups.setdefault(shapes, []).append(at)
    for number, rows in enumerate(groups.values()):
        for side, values in (("input", calls), ("output", answers)):
            for name in values[rows[0]]:
                stacked = np.stack([np.asarray(values[at][name]) for at in rows])
                yield f"{number}/{side}/{name}", _plain(stacked)


def _plain(array: Array) -> Array:
    """Return an array as it is in a file: texts as such, not as Python objects."""
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array)
    texts = [each.decode() if isinstance(each, bytes) else each for each in array.flat]
    return np.array(texts, np.str_).reshape(array.shape)


def golden_entry(comparison: AnswerComparison, **facts: object) -> dict[str, object]:
    """Return the manifest's field `golden` for the file.

    Args:
        comparison: how other answers are compared with the writer's.
        facts: what else a reader may know, such as `gated_on`.
    """
    return {"file": GOLDEN_FILE, **comparison.document(), **facts}
