"""Scores one piece: reads its rows, runs the model, writes them with the answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.errors import ConfigurationError
from serving.images import Images
from serving.model.loaded_model import LoadedModel
from serving.predictions import Probabilities, digit_type
from serving.scoring.dataset import Piece, Reader, Rows
from serving.scoring.location import one_line
from serving.scoring.output import Output, Scored
from serving.scoring.pixels import Decode, as_images
from serving.signature import Signature

RUN_IMAGES = {"cpu": 256, "cuda": 4_096}
"""Images of one run on each device: past 128 an image is no cheaper on a core."""
_GROUP_BYTES = 32 << 20
"""A row group is written once its rows take this much memory."""
_GROUP_ROWS = 131_072


class Stopped(Exception):
    """Another piece failed, or Ctrl-C was pressed: this piece is not finished."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is done with each piece; can be pickled."""

    reader: Reader
    output: Output
    prefix: str
    """What the names of the answers' columns begin with."""
    are_images_kept: bool
    """Whether the image column is written too."""

    @property
    def kept(self) -> list[str]:
        """The input's columns that are written."""
        names: list[str] = self.reader.schema.names
        if self.are_images_kept:
            return names
        return [name for name in names if name != self.reader.image_column]

    def schema(self, signature: Signature) -> Any:
        """Return the output's `pyarrow.Schema`.

        Raises:
            ConfigurationError: the input has a column with the name of an answer's.
        """
        digit = pa.from_numpy_dtype(digit_type(signature.num_classes))
        text = pa.string()
        answers = [
            pa.field(self.prefix + name, kind)
            for name, kind in (("digit", digit), ("probability", pa.float32()),
                               ("model_version", text), ("error", text))
        ]  # fmt: skip
        schema = self.reader.schema
        for field in answers:
            if field.name in self.kept:
                raise ConfigurationError(
                    f"the input has a column {field.name!r} already: --prefix names the new ones"
                )
        return pa.schema([*(schema.field(name) for name in self.kept), *answers])


class Scorer:
    """Scores pieces with one model; safe to call from many threads."""

    def __init__(
        self,
        task: Task,
        model: LoadedModel,
        decode: Decode,
        advance: Callable[[int], None],
    ) -> None:
        """Take what all pieces have in common.

        Args:
            task: what is done with each piece.
            model: a loaded model.
            decode: decodes picture files.
            advance: called with a number of rows once they are scored; what it raises ends the
                piece.
        """
        self._task = task
        self._model = model
        self._decode = decode
        self._advance = advance
        self._schema = task.schema(model.image_signature)

    def score(self, piece: Piece) -> Scored:
        """Score a piece, unless its file is there already.

        Raises:
            ConfigurationError: its rows can't be read, or the file can't be written.
            ModelError: the model failed.
        """
        output = self._task.output
        with one_line(output.folder.path):
            done = output.scored(piece)
            if done is not None:
                self._advance(done.num_rows)
                return done
            with output.writing(piece) as stream, self._writer(stream) as writer:
                return self._write(piece, writer)

    def _write(self, piece: Piece, writer: Any) -> Scored:
        num_rows = num_errors = 0
        group = _Group(writer)
        for rows in self._task.reader.read(piece):
            batch, errors = self._scored(rows)
            num_rows, num_errors = num_rows + len(batch), num_errors + errors
            group.add(batch)
            self._advance(len(batch))
        group.write()
        if num_rows != piece.num_rows:
            raise ConfigurationError(
                f"{piece.path} has changed: {piece.num_rows} rows expected, got {num_rows}"
            )
        return Scored(num_rows, num_errors)

    def _scored(self, rows: Rows) -> tuple[Any, int]:
        """Return rows with their answers, and how many have none."""
        batch, num_rows = rows.batch, len(rows.batch)
        signature = self._model.image_signature
        column = batch.column(self._task.reader.image_column)
        images, errors = as_images(column, signature.image_bytes, self._decode)
        errors = errors | rows.errors
        is_bad = np.zeros(num_rows, bool)
        is_bad[list(errors)] = True
        digits = np.zeros(num_rows, digit_type(signature.num_classes))
        certain = np.zeros(num_rows, np.float32)
        if len(errors) < num_rows:
            probabilities = self._run(images[~is_bad] if errors else images)
            best = probabilities.argmax(axis=1)
            digits[~is_bad] = best
            certain[~is_bad] = probabilities[np.arange(len(best)), best]
        texts = pa.nulls(num_rows, pa.string())
        if errors:
            texts = pa.array([errors.get(row) for row in range(num_rows)], pa.string())
        mask = is_bad if errors else None
        answers = [
            pa.array(digits, mask=mask), pa.array(certain, mask=mask),
            pa.repeat(pa.scalar(self._model.version, pa.string()), num_rows), texts,
        ]  # fmt: skip
        kept = [batch.column(name) for name in self._task.kept]
        return pa.RecordBatch.from_arrays([*kept, *answers], schema=self._schema), len(errors)

    def _run(self, images: Images) -> Probabilities:
        size = RUN_IMAGES[self._model.device]
        starts = range(0, len(images), size)
        parts = [self._model.classify(images[start : start + size]) for start in starts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _writer(self, stream: Any) -> Any:
        task, format_ = self._task, self._task.reader.format
        digit, probability, *texts = [name for name in self._schema.names if name not in task.kept]
        new = (digit, probability, *texts)
        images = task.reader.image_column
        return pq.ParquetWriter(
            stream, self._schema,
            compression=format_.compression | dict.fromkeys(new, "SNAPPY"),
            use_dictionary=[*format_.dictionaries, digit, *texts],
            # Of images, the least and the greatest would be no use.
            write_statistics=[name for name in self._schema.names if name != images],
        )  # fmt: skip


class _Group:
    """Rows that become one row group; written once there are enough."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._batches: list[Any] = []
        self._num_rows = self._num_bytes = 0

    def add(self, batch: Any) -> None:
        self._batches.append(batch)
        self._num_rows += len(batch)
        self._num_bytes += batch.nbytes
        if self._num_rows >= _GROUP_ROWS or self._num_bytes >= _GROUP_BYTES:
            self.write()

    def write(self) -> None:
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches))
        self._batches, self._num_rows, self._num_bytes = [], 0, 0
