"""The command `info`: describe a model in files, or the models of a server."""

import argparse
from pathlib import Path

from serving.cli import model_options, models, target
from serving.config import ModelConfig

HELP = "print a model, its tensors, device and limits"
EXAMPLES = """\
  digit-serving info model.onnx
  digit-serving info --models models --model letters --json
  digit-serving info --target 127.0.0.1:50051 --model letters
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="MODEL.onnx",
        help="file or model's folder to describe, not one of a repository; or a handler (FILE.py)",
    )
    model_options.add_handler(parser)
    model_options.add_source(parser)
    parser.set_defaults(model=None)


def run(options: argparse.Namespace) -> int:
    """Print the description, as text or JSON."""
    from serving.cli import description  # late: a list of the commands needs no arrays

    target.require_here(options)
    if options.target:
        with target.client_of(options) as client:
            described = description.of_server(client, options.model, options.version)
    elif options.file is not None:
        config = models.config_of(ModelConfig, options, model="")
        config = description.with_handler(config, options.file, options.around)
        described = [description.of_files(options.file, config)]
    else:
        options.model = options.model or ""
        config = models.model_config(options)
        config = description.with_handler(config, None, options.around)
        described = [description.of_files(config.models / config.model, config)]
    for number, facts in enumerate(described):
        print(description.as_json(facts) if options.json else description.as_text(facts, number))
    return 0
