"""Scores the parts of a data set on this machine: reads, classifies, writes whole files.

    OUT/_manifest.json           the model, the input and the options
    OUT/part-000042.parquet
    OUT/_summary.json            rows and errors, once all files are there

Readers of Parquet folders, such as pyarrow, Spark and DuckDB's globs, leave out names with an
underscore, which a file has until it is whole.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from serving.digits.pictures.files import image_or_reason, processes
from serving.errors import ConfigurationError
from serving.model.engine import LoadedModel
from serving.predictions import Images, digit_type
from serving.scoring.source import Part, Source, as_images, one_line
from serving.system.processes import Processes, mapped
from serving.tensors import Signature

RUN_IMAGES = {"cpu": 256, "cuda": 4_096}
"""Images of one run on each device: past 128 an image is no cheaper on a core."""
_ANSWERS = 4
"""Columns that are added."""
_GROUP_BATCHES = 8
"""Of a row group of the output: up to 32,768 rows, 26 MB of pixels."""
_AHEAD = 32
"""Pictures that wait for the processes that decode them."""
_MANIFEST, SUMMARY = "_manifest.json", "_summary.json"
_UNFINISHED = "_unfinished-"


class Output(NamedTuple):
    """A folder for results, and their columns; see `answered`."""

    filesystem: Any
    path: str
    schema: Any


def decode(decoders: Processes, contents: Sequence[bytes]) -> list[Images | str]:
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


def answer(batch: Any, column: str, schema: Any, model: LoadedModel, decoders: Processes) -> Any:
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
            pa.array(digits, mask=mask), pa.array(confidence, mask=mask),
            pa.repeat(version, num_rows), pa.array(map(errors.get, range(num_rows)), pa.string()),
        ],
        schema=schema,
    )  # fmt: skip


def prepare(output: Output, manifest: dict[str, Any], *, is_resumed: bool) -> None:
    """Make the folder ready: a new one, or one that holds results of the same run.

    Raises:
        ConfigurationError: there are results and they are not to be resumed, or they are of
            something else, or the folder can't be written.
    """
    filesystem, path, _ = output
    with one_line(path):
        filesystem.create_dir(path, recursive=True)
        names = {each.base_name for each in filesystem.get_file_info(fs.FileSelector(path))}
        if _MANIFEST not in names:
            if any(name[0] not in "._" for name in names):
                raise ConfigurationError(f"{path} is not empty, and holds no results to resume")
            write_json(output, _MANIFEST, manifest)
            return
        if not is_resumed:
            raise ConfigurationError(
                f"{path} holds results already: --resume goes on, or name another folder"
            )
        with filesystem.open_input_file(f"{path}/{_MANIFEST}") as stream:
            found = json.loads(stream.read())
        for subject, value in manifest.items():
            if found.get(subject) != value:
                before, now = str(found.get(subject))[:160], str(value)[:160]
                raise ConfigurationError(
                    f"{path} holds results of another {subject} ({before}), not of this one "
                    f"({now}): name another folder"
                )
        for name in names:
            if name.startswith(_UNFINISHED):
                filesystem.delete_file(f"{path}/{name}")


@contextmanager
def writing(filesystem: Any, path: str) -> Iterator[Any]:
    """Open a file that gets its name once the block ends without an exception."""
    folder, _, name = path.rpartition("/")
    unfinished = f"{folder}/{_UNFINISHED}{name}"
    try:
        with filesystem.open_output_stream(unfinished) as stream:
            yield stream
        if isinstance(filesystem, fs.LocalFileSystem):
            with open(unfinished, "rb") as file:  # a name must not outlive a crash without content
                os.fsync(file.fileno())
        filesystem.move(unfinished, path)
    except BaseException:
        # An object store completes the upload of a stream that is closed by an exception.
        with suppress(OSError, pa.ArrowException):
            filesystem.delete_file(unfinished)
        raise


def write_json(output: Output, name: str, document: object) -> None:
    """Write a JSON file, whole."""
    path = f"{output.path}/{name}"
    with one_line(path), writing(output.filesystem, path) as stream:
        stream.write(json.dumps(document, indent=2).encode() + b"\n")


def errors_of(filesystem: Any, path: str) -> tuple[int, str] | None:
    """Return how many rows of a file have no answer, and why one has none; None without a file.

    Raises:
        ConfigurationError: it is damaged.
    """
    with one_line(path):
        try:
            with filesystem.open_input_file(path) as stream:
                footer = pq.read_metadata(stream)
        except FileNotFoundError:
            return None
    num_errors, text = 0, ""
    for number in range(footer.num_row_groups):
        column = footer.row_group(number).column(footer.num_columns - 1)
        num_errors += column.num_values - column.statistics.null_count
        text = text or column.statistics.max or ""
    return num_errors, text


def _score_part(
    source: Source, output: Output, classified: Callable[[Any], Any], part: Part
) -> tuple[int, str]:
    """Score a part, unless its file is there already; see `errors_of`."""
    filesystem, folder, schema = output
    path = f"{folder}/part-{part.number:06}.parquet"
    if (found := errors_of(filesystem, path)) is not None:
        return found
    # Images have no value twice, and their least and greatest would be no use.
    others = [name for name in schema.names if name != source.image_column]
    num_rows = 0
    with one_line(folder), writing(filesystem, path) as stream, pq.ParquetWriter(
        stream, schema, use_dictionary=others, write_statistics=others
    ) as writer:  # fmt: skip
        answers = map(classified, part.read())
        for first in answers:
            rows = pa.Table.from_batches([first, *islice(answers, _GROUP_BATCHES - 1)])
            writer.write_table(rows)
            num_rows += len(rows)
        if num_rows != part.num_rows:
            raise ConfigurationError(
                f"the input has changed: {part.num_rows} rows expected, got {num_rows}"
            )
    return errors_of(filesystem, path) or (0, "")


def score(
    source: Source, output: Output, model: LoadedModel, num_threads: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, str]]:  # fmt: skip
    """Score all parts on this machine's cores; yields `errors_of` each one, in any order.

    Reading, running and writing release the GIL, so threads use all cores.

    Raises:
        DigitsError: a part failed; those in progress end without a file.
    """
    is_stopped = threading.Event()
    decoders = processes(num_threads)

    def classified(batch: Any) -> Any:
        if is_stopped.is_set():
            raise CancelledError
        advance(len(batch))
        return answer(batch, source.image_column, output.schema, model, decoders)

    threads = ThreadPoolExecutor(num_threads, "scorer")
    try:
        run = partial(_score_part, source, output, classified)
        for future in as_completed([threads.submit(run, part) for part in source.parts]):
            yield future.result()
    finally:
        is_stopped.set()
        threads.shutdown(cancel_futures=True)
        decoders.close()
