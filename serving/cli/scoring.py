"""The command `score`: opens input, output and model, shows the progress, prints the sum."""

import argparse
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from serving.commandline import installation, values
from serving.commandline.terminal import Bar
from serving.config import ModelConfig
from serving.errors import ConfigurationError
from serving.system.cores import usable_cores
from serving.telemetry import logs

if TYPE_CHECKING:
    from serving.model.loaded_model import LoadedModel
    from serving.scoring.dataset import Dataset

_THIS_MACHINE = ""
"""The value of `--ray` without an address."""

EXAMPLES = """\
  digit-serving score digits.parquet --output scored
  digit-serving score scans/ --output s3://bucket/scored --resume
  digit-serving score s3://bucket/digits --output s3://bucket/scored --drop-images --ray
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `score`, but for the model's."""
    add = parser.add_argument
    add("input", metavar="INPUT",
        help="Parquet file, or folder of them; IDX or NPZ file; folder of pictures; a local path "
        "or a URI such as s3://bucket/folder")  # fmt: skip
    add("--output", required=True, metavar="OUT",
        help="folder for Parquet files with the input's columns and digit, probability, "
        "model_version, error; a local path or a URI")  # fmt: skip
    add("--resume", action="store_true", help="go on with a run that was interrupted")
    add("--column", metavar="NAME",
        help="column or array with the images: bytes (pixels, or a picture's file) or lists "
        "(default: image, images, or the only one that can be)")  # fmt: skip
    add("--drop-images", action="store_true", help="leave the images out of the output")
    add("--prefix", metavar="TEXT",
        help="prefix of the new columns' names, if the input has one of their "
        "names")  # fmt: skip
    add("--rows-per-file", type=values.count, metavar="ROWS",
        help="most rows of an output file, which is also lost by an interruption; a Parquet "
        "row group is not divided (default: 262144, of pictures 4096)")  # fmt: skip
    add("--workers", type=values.count, metavar="N",
        help="files that are made at once: by threads, with --ray by actors (default: one for "
        "each usable core; with --ray for each of the cluster's cores, or GPUs)")  # fmt: skip
    add("--ray", nargs="?", const=_THIS_MACHINE, metavar="ADDRESS",
        help="run on a Ray cluster, whose machines all see INPUT and OUT; without an address: "
        "that of RAY_ADDRESS, or the one on this machine, which is started if there is "
        "none")  # fmt: skip


def score(options: argparse.Namespace, config: ModelConfig) -> int:
    """Score a data set.

    Returns:
        The exit code: 0, or 1 if rows have errors.

    Raises:
        ModuleNotFoundError: an extra is not installed.
        DigitsError: see the functions of `serving.scoring`.
    """
    installation.require("onnxruntime", "pyarrow", *(["ray"] if options.ray is not None else []))
    from serving.catalog.remote import without_credentials
    from serving.model.loaded_model import BATCH_LIMIT_FACTOR, load_model
    from serving.scoring import scorer
    from serving.scoring.location import Location
    from serving.scoring.opening import open_dataset
    from serving.scoring.output import SUMMARY, prepare, write_json
    from serving.scoring.scorer import RUN_IMAGES, Task, answered

    source, target = Location.of(options.input), Location.of(options.output)
    if source.contains(target):
        raise ConfigurationError("OUT is in INPUT: the next run would read it")
    device = config.device if options.ray is None else "cpu"  # of the machine that starts it
    model = load_model(
        config.models / config.model, config.version, device, config.precision,
        max(RUN_IMAGES.values()), BATCH_LIMIT_FACTOR, is_described=True,
    )  # fmt: skip
    signature = model.image_signature
    dataset = open_dataset(source, signature, options.column, options.rows_per_file)
    is_dropped = options.drop_images or not dataset.are_images_kept
    dropped = dataset.image_column if is_dropped else None
    schema = answered(dataset.schema, dropped, options.prefix or "", signature)
    task = Task(dataset.image_column, dataset.compression, target, schema)
    num_rows = sum(piece.num_rows for piece in dataset.pieces)
    bar = Bar(num_rows, sys.stderr, "scored {} of {} rows")
    if options.ray is None:
        num_workers = options.workers or usable_cores()
        run = partial(scorer.score, model=model, num_threads=num_workers)
    else:
        from serving.scoring import cluster

        cluster.connect(options.ray)
        run = partial(cluster.score, config=config, version=model.version,
                      num_workers=options.workers)  # fmt: skip
    prepare(target, _manifest(model, dataset, schema), is_resumed=options.resume)
    begin_s = time.monotonic()
    try:
        num_errors = list(run(task, dataset.pieces, advance=bar.advance))
    except KeyboardInterrupt:
        bar.clear()
        line = f"{installation.DISTRIBUTION}: interrupted: --resume goes on"
        logs.print_line(line, sys.stderr)
        return 1
    finally:
        bar.clear()
    summary = {"rows": num_rows, "errors": sum(num_errors), "files": len(num_errors)}
    write_json(target / SUMMARY, summary)
    place = without_credentials(options.output)
    words = " ".join(f"{name}={number}" for name, number in summary.items())
    print(f"scored {words} seconds={time.monotonic() - begin_s:.1f} output={place}")
    return 1 if any(num_errors) else 0


def _manifest(model: "LoadedModel", dataset: "Dataset", schema: object) -> dict[str, object]:
    """Describe the sources of the results: with other sources, no file is reused."""
    from serving.model.manifest import FILES
    from serving.scoring.dataset import digest

    manifest, pieces = model.manifest, dataset.pieces
    return {
        "format": 1,
        "model": {"name": manifest.name, "version": manifest.version,
                  "precision": model.precision,
                  "sha256": manifest.digests[FILES[model.precision]]},
        "input": {"rows": sum(piece.num_rows for piece in pieces), "files": len(pieces),
                  "sha256": digest(*(piece.identity for piece in pieces))},
        "columns": str(schema).split("\n"),
    }  # fmt: skip
