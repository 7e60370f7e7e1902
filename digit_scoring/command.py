"""The command `score`: opens input, output and model, shows the progress, prints the sum."""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from serving.cli.model_options import add_model
from serving.cli.models import model_config
from serving.commandline import installation, values
from serving.commandline.progress import Bar
from serving.config import ModelConfig
from serving.errors import ConfigurationError
from serving.system.cores import usable_cores
from serving.telemetry import logs

if TYPE_CHECKING:
    from digit_scoring.source import Source
    from serving.model.loaded import LoadedModel

_THIS_MACHINE = ""
"""The value of `--ray` without an address."""

HELP = "classify a data set into Parquet files"
EXAMPLES = """\
  digit-serving score digits.parquet --output scored
  digit-serving score scans/ --output s3://bucket/scored --resume
  digit-serving score s3://bucket/digits --output s3://bucket/scored --drop-images --ray
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add(
        "input",
        metavar="INPUT",
        help="Parquet file, or folder of them, or of pictures; a local path or a URI such as "
        "s3://bucket/folder",
    )
    add(
        "--output",
        required=True,
        metavar="OUT",
        help="folder for Parquet files with the input's columns and digit, probability, "
        "model_version, error; a local path or a URI",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with a run that was interrupted; not with --ray",
    )
    add(
        "--column",
        metavar="NAME",
        help="column with the images: bytes (pixels, or a picture's file) or lists "
        "(default: image, images, or the only one that can be)",
    )
    add("--drop-images", action="store_true", help="leave the images out of the output")
    add(
        "--prefix",
        metavar="TEXT",
        help="prefix of the new columns' names, if the input has one of their names",
    )
    add(
        "--rows-per-file",
        type=values.count,
        metavar="ROWS",
        help="most rows of an output file, which is also lost by an interruption; a Parquet "
        "row group is not divided (default: 262144, of pictures 4096; with --ray the "
        "least)",
    )
    add(
        "--workers",
        type=values.count,
        metavar="N",
        help="files that are made at once by threads, or processes of --ray (default: one for "
        "each usable core; with --ray for each of the cluster's cores, or GPUs)",
    )
    add(
        "--ray",
        nargs="?",
        const=_THIS_MACHINE,
        metavar="ADDRESS",
        help="run on a Ray cluster, whose machines all see INPUT, OUT and the model; without an "
        "address: that of RAY_ADDRESS, or the one on this machine, which is started if there "
        "is none",
    )
    add_model(parser)


def run(options: argparse.Namespace) -> int:
    """Score a data set; return the exit code: 0, or 1 if rows have errors."""
    return _score(options, model_config(options))


def _score(options: argparse.Namespace, config: ModelConfig) -> int:
    if options.ray is not None and options.resume:
        raise ConfigurationError(
            "--resume is not for --ray: Ray itself repeats what a machine loses"
        )
    installation.require("onnxruntime", "pyarrow", *(["ray"] if options.ray is not None else []))
    # Late, here and below: a list of the commands needs no data sets, which are an extra.
    from digit_scoring.answers import RUN_IMAGES, answered
    from digit_scoring.files import open_place
    from digit_scoring.local import score
    from digit_scoring.output import SUMMARY, Output, prepare, write_json
    from digit_scoring.source import open_source
    from serving.model.loading import BATCH_LIMIT_FACTOR, load_model
    from serving.model.remote import without_credentials

    place, (filesystem, path) = (
        open_place(options.input),
        open_place(options.output),
    )
    if place[0].equals(filesystem) and f"{path}/".startswith(f"{place[1]}/"):
        raise ConfigurationError("OUT is in INPUT: the next run would read it")
    device = config.device if options.ray is None else "cpu"  # of the machine that starts it
    model = load_model(
        config.models / config.model,
        config.version,
        device,
        config.precision,
        max(RUN_IMAGES.values()),
        BATCH_LIMIT_FACTOR,
        is_described=True,
    )
    source = open_source(place, options.column, options.rows_per_file)
    dropped = source.image_column if options.drop_images or source.are_pictures else None
    prefix = options.prefix or ""
    schema = answered(source.schema, dropped, prefix, model.image_signature)
    output = Output(filesystem, path, schema)
    num_rows = sum(part.num_rows for part in source.parts)
    bar = Bar(num_rows, sys.stderr, "scored {} of {} rows")
    if options.ray is not None:
        from digit_scoring import ray  # late: Ray is an extra of its own

        ray.connect(options.ray)
    manifest = _manifest(model, source, schema, options.rows_per_file)
    prepare(output, manifest, is_resumed=options.resume)
    begin_s = time.monotonic()
    try:
        if options.ray is None:
            num_threads = options.workers or usable_cores()
            errors = [*score(source, output, model, num_threads, bar.advance)]
        else:
            classify = _classify(config, model.version, source.image_column, prefix)
            classify["drop_images"] = dropped is not None
            errors = ray.score(source, output, classify, options.workers, options.rows_per_file)
    except KeyboardInterrupt:
        bar.clear()
        _say("interrupted: --resume goes on")
        return 1
    finally:
        bar.clear()
    num_errors = sum(number for number, _ in errors)
    summary = {"rows": num_rows, "errors": num_errors, "files": len(errors)}
    write_json(output, SUMMARY, summary)
    words = " ".join(f"{name}={number}" for name, number in summary.items())
    shown = without_credentials(options.output)
    print(f"scored {words} seconds={time.monotonic() - begin_s:.1f} output={shown}")
    if num_errors == num_rows:
        _say(f"no row has an answer, such as: {errors[0][1]}")
    return 1 if num_errors else 0


def _say(text: str) -> None:
    logs.print_line(f"{installation.DISTRIBUTION}: {text}", sys.stderr)


def _classify(config: ModelConfig, version: str, column: str, prefix: str) -> dict[str, Any]:
    """Return the arguments of `ray.Classify`; each machine has its own bundled model."""
    from digit_classifier import PRETRAINED

    device = "cuda" if config.device == "cuda" else "cpu"
    arguments = {
        "column": column,
        "version": version,
        "device": device,
        "precision": config.precision,
        "prefix": prefix,
    }
    is_bundled = config.models == PRETRAINED and config.model == "digits"
    return arguments if is_bundled else arguments | {"model": config.models / config.model}


def _manifest(
    model: "LoadedModel", source: "Source", schema: object, rows_per_file: int | None
) -> dict[str, object]:
    """Describe the sources of the results: with other sources, no file is reused."""
    from serving.model.manifest import FILES

    manifest = model.manifest
    return {
        "format": 2,
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "precision": model.precision,
            "sha256": manifest.digests[FILES[model.precision]],
        },
        "input": {"rows": sum(part.num_rows for part in source.parts), "sha256": source.identity},
        "rows_per_file": rows_per_file,
        "columns": str(schema).split("\n"),
    }
