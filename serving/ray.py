"""Classifies the batches of Ray Data, to filter, join or write them elsewhere; needs no server.

    from ray.data import ActorPoolStrategy, expressions, read_parquet
    from serving.ray import Classify

    rows = read_parquet("s3://bucket/digits").map_batches(
        Classify, batch_format="pyarrow", batch_size=4096, compute=ActorPoolStrategy(size=8)
    )
    rows.filter(expr=expressions.col("probability") < 0.9).write_parquet("s3://bucket/unsure")

Nothing here imports Ray: it also maps any other `pyarrow.Table`.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from serving.config import Device, Precision
from serving.digits.pictures.reader import processes
from serving.model.loading import load_model
from serving.model.repository import PRETRAINED
from serving.scoring.scorer import RUN_IMAGES, answer, answered


class Classify:
    """Adds digit, probability, model_version and error to tables; loads the model once."""

    def __init__(
        self, column: str = "image", model: Path | str = PRETRAINED / "digits", *,
        version: str | None = None, device: Device = "cpu", precision: Precision = "fp32",
        prefix: str = "", drop_images: bool = False,
    ) -> None:  # fmt: skip
        """Load a model.

        Args:
            column: the images: bytes (pixels, or a picture's file), structs with a picture's file,
                or lists, as `score` takes them.
            model: the model's directory on the machine that runs it; the bundled one by default.
            version: the version; None for the newest good one.
            device: "auto", "cpu" or "cuda".
            precision: "fp32" or "int8".
            prefix: of the new columns' names.
            drop_images: leave the images out of the tables.

        Raises:
            DigitsError: see `load_model`.
        """
        self._column, self._prefix = column, prefix
        self._dropped = column if drop_images else None
        most = max(RUN_IMAGES.values())
        self._model = load_model(Path(model), version, device, precision, most)
        self._decoders = processes(1)

    def __call__(self, table: Any) -> Any:
        """Return a `pyarrow.Table` with its answers; a row that can't be read has its error."""
        signature = self._model.image_signature
        schema = answered(table.schema, self._dropped, self._prefix, signature)
        batches = [
            answer(batch, self._column, schema, self._model, self._decoders)
            for batch in table.to_batches()
        ]
        return pa.Table.from_batches(batches, schema)
