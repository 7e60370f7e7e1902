"""The answers to a batch of rows, as columns behind those of the input."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from digit_classifier.pictures import image_or_reason
from digit_classifier.predictions import digit_type
from digit_scoring.columns import as_images
from serving.errors import ConfigurationError
from serving.model.loaded import LoadedModel
from serving.processes.pool import ProcessPool, mapped
from serving.tensors import Images, Signature

RUN_IMAGES = {"cpu": 256, "cuda": 4_096}
"""Images of one run on each device: past 128 an image is no cheaper on a core."""
_ANSWERS = 4
"""Columns that are added."""
_AHEAD = 32
"""Pictures that wait for the processes that decode them."""


def decode(decoders: ProcessPool, contents: Sequence[bytes]) -> list[Images | str]:
    """Decode some picture files: (1, 784) uint8 each, or why it can't be read."""
    return list(mapped(decoders, image_or_reason, contents, _AHEAD))


def answered(schema: Any, dropped: str | None, prefix: str, signature: Signature) -> Any:
    """Return a schema with the answers' columns at its end.

    Raises:
        ConfigurationError: the input has a column with the name of an answer's.
    """
    digit = pa.from_numpy_dtype(digit_type(signature.num_classes))
    kinds = {"probability": pa.float32(), "model_version": pa.string(), "error": pa.string()}
    answers = [pa.field(prefix + name, kind) for name, kind in {"digit": digit, **kinds}.items()]
    both = pa.schema([*(field for field in schema if field.name != dropped), *answers])
    for name in both.names:
        if both.names.count(name) > 1:
            raise ConfigurationError(
                f"the input has a column {name!r} already: --prefix names the new ones"
            )
    return both


def answer(batch: Any, column: str, schema: Any, model: LoadedModel, decoders: ProcessPool) -> Any:
    """Answer the rows of a batch; one that can't be read has its error."""
    size, num_rows = RUN_IMAGES[model.device], len(batch)
    signature = model.image_signature
    decoded = partial(decode, decoders)
    images, errors = as_images(batch.column(column), signature.image_bytes, decoded)
    is_bad = np.zeros(num_rows, bool)
    is_bad[list(errors)] = True
    good = images[~is_bad] if errors else images
    runs = [model.classify(good[start : start + size]) for start in range(0, len(good), size)]
    digits = np.zeros(num_rows, digit_type(signature.num_classes))
    confidence = np.zeros(num_rows, np.float32)
    if runs:
        digits[~is_bad] = np.concatenate([each.argmax(axis=1) for each in runs])
        confidence[~is_bad] = np.concatenate([each.max(axis=1) for each in runs])
    mask = is_bad if errors else None
    version = pa.scalar(model.version, pa.string())
    return pa.RecordBatch.from_arrays(
        [
            *(batch.column(name) for name in schema.names[:-_ANSWERS]),
            pa.array(digits, mask=mask),
            pa.array(confidence, mask=mask),
            pa.repeat(version, num_rows),
            pa.array(map(errors.get, range(num_rows)), pa.string()),
        ],
        schema=schema,
    )
