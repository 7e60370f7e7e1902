"""Ray: a class that maps over batches of Ray Data, and `score --ray`, by the same class.

To filter, join or write the answers elsewhere, without a server:

    from ray.data import ActorPoolStrategy, expressions, read_parquet
    from digit_scoring.ray import Classify

    rows = read_parquet("s3://bucket/digits").map_batches(
        Classify, batch_format="pyarrow", batch_size=4096, compute=ActorPoolStrategy(size=8)
    )
    rows.filter(expr=expressions.col("probability") < 0.9).write_parquet("s3://bucket/unsure")

Importing this imports no Ray: the class also maps any other `pyarrow.Table`.
"""

import logging
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset

from digit_classifier import PRETRAINED
from digit_scoring.answers import RUN_IMAGES, answer, answered
from digit_scoring.files import reason
from digit_scoring.output import Output, errors_of
from digit_scoring.source import BATCH_ROWS, TABLES, Source
from serving.config import Device, Precision
from serving.errors import ConfigurationError, ModelError, Unavailable
from serving.model.loading import load_model
from serving.pictures.reader import SUFFIXES, processes

_CONNECT_S = 5.0


class Classify:
    """Adds digit, probability, model_version and error to tables; loads the model once."""

    def __init__(
        self,
        column: str = "image",
        model: Path | str = PRETRAINED / "digits",
        *,
        version: str | None = None,
        device: Device = "cpu",
        precision: Precision = "fp32",
        prefix: str = "",
        drop_images: bool = False,
    ) -> None:
        """Load a model.

        Args:
            column: the images: bytes (pixels, or a picture's file), structs with a picture's file,
                or lists, as `score` takes them.
            model: the model's directory on the machine that runs it; the bundled one by default.
            version: the version; None for the one that a server answers with.
            device: "auto", "cpu" or "cuda".
            precision: "fp32" or "int8".
            prefix: of the new columns' names.
            drop_images: leave the images out of the tables.

        Raises:
            ServingError: see `load_model`.
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


def connect(address: str) -> None:
    """Connect to a cluster; without an address to the usual one, else to a new one.

    Raises:
        ConfigurationError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it would call its vendor
    import ray

    place = address or os.environ.get("RAY_ADDRESS", "")
    host, _, port = place.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        ray.init(
            address or None,
            include_dashboard=False,
            logging_level=logging.CRITICAL,
            log_to_driver=False,
        )
    except (OSError, RuntimeError, ValueError) as err:
        raise ConfigurationError(f"can't reach the cluster {place}: {reason(err)}") from err


def score(
    source: Source,
    output: Output,
    classify: dict[str, Any],
    num_workers: int | None,
    rows_per_file: int | None,
) -> list[tuple[int, str]]:
    """Score a data set on the cluster that is connected; return `errors_of` each file.

    Args:
        source: the data set; its paths must be those of every machine.
        output: likewise.
        classify: arguments of `Classify`; device "cuda" takes a GPU a process, others a core.
        num_workers: of processes; None for one on each core or GPU.
        rows_per_file: the least of a file; None as Ray chooses.

    Raises:
        ConfigurationError: the cluster has no such device.
        Unavailable: the run failed.
    """
    import ray.data

    is_cuda = classify["device"] == "cuda"
    kind = "GPU" if is_cuda else "CPU"
    free = int(ray.cluster_resources().get(kind, 0))
    if not free:
        raise ConfigurationError(f"the cluster has no {kind}")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    root = source.path
    try:
        # One path, not many: for those Ray 2.60 has threads that import a module in a race.
        if source.are_pictures:
            rows = ray.data.read_binary_files(
                root,
                filesystem=source.filesystem,
                include_paths=True,
                file_extensions=[suffix.removeprefix(".") for suffix in SUFFIXES],
            )
            rows = rows.map_batches(partial(_named, root=root), batch_format="pyarrow")
        else:
            kinds = [suffix.removeprefix(".") for suffix in TABLES]
            rows = ray.data.read_parquet(root, filesystem=source.filesystem, file_extensions=kinds)
        answers = rows.map_batches(
            Classify,
            fn_constructor_kwargs=classify,
            batch_format="pyarrow",
            # Half a core: the rest reads and writes, also once a machine is lost.
            batch_size=BATCH_ROWS,
            num_cpus=0.5,
            num_gpus=int(is_cuda),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_workers or free),
        )
        answers.write_parquet(
            output.path, filesystem=output.filesystem, min_rows_per_file=rows_per_file
        )
    except ray.exceptions.RayError as err:
        raise Unavailable(f"the cluster failed: {reason(err)}") from err
    finally:
        ray.shutdown()
    files = pyarrow.dataset.dataset(output.path, filesystem=output.filesystem)
    num_rows, expected = files.count_rows(), sum(part.num_rows for part in source.parts)
    if num_rows != expected:
        raise ModelError(f"{source.path} has {expected} rows, and Ray wrote {num_rows}")
    return [errors_of(output.filesystem, path) or (0, "") for path in files.files]


def _named(files: Any, root: str) -> Any:
    """Return pictures as `open_source` has them: a path in the folder, and the file in a struct."""
    names = [os.path.relpath(path, root) for path in files["path"].to_pylist()]
    contents = files["bytes"].combine_chunks()
    contents = pa.StructArray.from_arrays([contents], ["bytes"])
    return pa.table({"picture": pa.array(names), "image": contents})
