"""Scores a data set on this machine: Parquet files or pictures in, whole Parquet files out.

They are on any file system that pyarrow opens. A data set is cut into parts, always the same ones,
and each becomes one file, whole or not there: so a run goes on after an interruption.

    OUT/_manifest.json           the model, the input and the options
    OUT/part-000042.parquet
    OUT/_summary.json            rows and errors, once all files are there

Readers of Parquet folders, such as pyarrow, Spark and DuckDB's globs, leave out names with an
underscore, which a file has until it is whole.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from digit_scoring.answers import answer
from digit_scoring.files import one_line, writing
from digit_scoring.output import Output, errors_of
from digit_scoring.source import Part, Source
from serving.errors import ConfigurationError
from serving.model.loaded import LoadedModel
from serving.pictures.reader import processes

_GROUP_BATCHES = 8
"""Batches in a row group of the output: up to 32,768 rows, 26 MB of pixels."""


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
    with (
        one_line(folder),
        writing(filesystem, path) as stream,
        pq.ParquetWriter(stream, schema, use_dictionary=others, write_statistics=others) as writer,
    ):
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
    source: Source,
    output: Output,
    model: LoadedModel,
    num_threads: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, str]]:
    """Score all parts on this machine's cores; yields `errors_of` each one, in any order.

    Reading, running and writing release the GIL, so threads use all cores.

    Raises:
        ServingError: a part failed; those in progress end without a file.
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
