"""Scores pieces: reads their rows, runs the model, writes them with the answers."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.digits.pictures.files import image_or_reason, processes
from serving.errors import ConfigurationError
from serving.images import Images
from serving.model.loaded_model import LoadedModel
from serving.predictions import digit_type
from serving.scoring.dataset import Piece
from serving.scoring.location import Location, one_line
from serving.scoring.output import num_errors, writing
from serving.scoring.pixels import as_images
from serving.signature import Signature
from serving.system.processes import Processes, mapped

RUN_IMAGES = {"cpu": 256, "cuda": 4_096}
"""Images of one run on each device: past 128 an image is no cheaper on a core."""
_ANSWERS = 4
"""Columns that are added."""
_GROUP_BYTES = 32 << 20
"""A row group is written once its rows take this much memory."""
_GROUP_ROWS = 131_072
_AHEAD = 32
"""Pictures that wait for the processes that decode them."""


class Task(NamedTuple):
    """All that pieces have in common; can be pickled."""

    image_column: str
    compression: Mapping[str, str]
    """See `Dataset`."""
    output: Location
    schema: Any
    """The output's columns; see `answered`."""


def decode(decoders: Processes, contents: Sequence[bytes]) -> list[Images | str]:
    """Decode some picture files: (1, 784) uint8 each, or why it can't be read.

    Raises:
        ConfigurationError: Pillow or SciPy is not installed.
    """
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


def answer(
    batch: Any, unread: Mapping[int, str], column: str, schema: Any, model: LoadedModel,
    decoders: Processes,
) -> Any:  # fmt: skip
    """Answer some rows."""
    size, num_rows = RUN_IMAGES[model.device], len(batch)
    column, signature = batch.column(column), model.image_signature
    images, errors = as_images(column, signature.image_bytes, partial(decode, decoders))
    errors |= unread
    is_bad = np.zeros(num_rows, bool)
    is_bad[list(errors)] = True
    good = images[~is_bad] if errors else images
    runs = [model.classify(good[start : start + size]) for start in range(0, len(good), size)]
    digits = np.zeros(num_rows, digit_type(signature.num_classes))
    certain = np.zeros(num_rows, np.float32)
    if runs:
        digits[~is_bad] = np.concatenate([each.argmax(axis=1) for each in runs])
        certain[~is_bad] = np.concatenate([each.max(axis=1) for each in runs])
    mask = is_bad if errors else None
    texts = [*map(errors.get, range(num_rows))]
    version = pa.scalar(model.version, pa.string())
    return pa.RecordBatch.from_arrays(
        [
            *(batch.column(name) for name in schema.names[:-_ANSWERS]),
            pa.array(digits, mask=mask), pa.array(certain, mask=mask),
            pa.repeat(version, num_rows), pa.array(texts, pa.string()),
        ],
        schema=schema,
    )  # fmt: skip


def score_piece(
    task: Task,
    model: LoadedModel,
    decoders: Processes,
    advance: Callable[[int], None],
    piece: Piece,
) -> int:
    """Score a piece, unless its file is there already; return its number of errors.

    Raises:
        ConfigurationError: its rows can't be read, or the file can't be written.
        ModelError: the model failed.
    """
    file = task.output / f"part-{piece.number:06}-{piece.identity[:12]}.parquet"
    found = num_errors(file)
    if found is not None:
        advance(piece.num_rows)
        return found

    def answers() -> Iterator[Any]:
        for batch, unread in piece.read():
            yield answer(batch, unread, task.image_column, task.schema, model, decoders)
            advance(len(batch))

    num_rows = errors = 0
    with one_line(task.output.path), writing(file) as stream, _writer(task, stream) as writer:
        for table in _groups(answers()):
            writer.write_table(table)
            num_rows += len(table)
            errors += len(table) - table.column(len(task.schema) - 1).null_count
            del table  # while the next is gathered
        if num_rows != piece.num_rows:
            raise ConfigurationError(
                f"{piece.path} has changed: {piece.num_rows} rows expected, got {num_rows}"
            )
    return errors


def _groups(batches: Iterable[Any]) -> Iterator[Any]:
    """Gather batches into tables, which become a row group each."""
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(batch)
        num_rows, num_bytes = sum(map(len, waiting)), sum(each.nbytes for each in waiting)
        if num_rows >= _GROUP_ROWS or num_bytes >= _GROUP_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _writer(task: Task, stream: Any) -> Any:
    fields, image = task.schema, task.image_column
    answers = dict.fromkeys(fields.names[-_ANSWERS:], "SNAPPY")
    return pq.ParquetWriter(
        stream, fields, compression={**task.compression, **answers},
        # Images have no value twice, and their least and greatest would be no use.
        use_dictionary=[each.name for each in fields
                        if each.name != image or pa.types.is_dictionary(each.type)],
        write_statistics=[name for name in fields.names if name != image],
    )  # fmt: skip


def score(
    task: Task, pieces: Sequence[Piece], model: LoadedModel, num_threads: int,
    advance: Callable[[int], None],
) -> Iterator[int]:  # fmt: skip
    """Score all pieces on this machine's cores; yields each one's number of errors, in any order.

    Reading, running and writing release the GIL, so threads use all cores.

    Raises:
        DigitsError: a piece failed; those in progress end without a file.
    """
    is_stopped = threading.Event()

    def advance_or_stop(num_rows: int) -> None:
        if is_stopped.is_set():
            raise CancelledError
        advance(num_rows)

    decoders = processes(num_threads)
    common = (task, model, decoders, advance_or_stop)
    threads = ThreadPoolExecutor(num_threads, "scorer")
    try:
        futures = [threads.submit(score_piece, *common, piece) for piece in pieces]
        for future in as_completed(futures):
            yield future.result()
    finally:
        is_stopped.set()
        threads.shutdown(cancel_futures=True)
        decoders.close()
