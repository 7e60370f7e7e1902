"""The command `optimize`: a faster variant of a model, tried, gated, measured and published."""

import argparse
import sys
from pathlib import Path

from serving.commandline import values
from serving.commandline.fields import add_fields
from serving.commandline.parser import Parser
from serving.config import ModelConfig
from serving.errors import ConfigurationError

HELP = "make a model faster: try int8 and others, gate them, and publish the best"
EXAMPLES = """\
  digit-serving optimize model.onnx --samples samples.npz
  digit-serving optimize model.onnx --samples samples.npz --name mine
  digit-serving optimize mine --samples samples.npz --name mine
  digit-serving optimize detector.onnx --samples calls/ --score metric.py:mean_precision
  digit-serving optimize flowers.onnx --samples flowers.npz --classes logits --most-loss 0.1
"""


def add_arguments(parser: Parser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="ONNX file, or the name of a model in the repository")
    add(
        "--samples",
        type=Path,
        required=True,
        metavar="PATH",
        help="calls that the model gets, some hundreds: an NPZ file with an array for each input "
        "by its name, (N, ...), and optionally `labels`, (N,) integers from 0; or a folder of such "
        "files, where sizes differ",
    )
    add("--name", default="", help="publish the best as the next version of this model")
    add("--models", default=str(ModelConfig().models), metavar="DIR", help="model repository")
    add_fields(parser, ModelConfig, "version", "device")
    add(
        "--portable",
        action="store_true",
        help="try only weights of 7 bits: x86 processors without VNNI answer alike with these",
    )
    add(
        "--new-signature",
        action="store_true",
        help="publish under a name whose newest version has other inputs or outputs",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the split of the samples")
    add(
        "--time",
        type=values.seconds,
        default=600.0,
        metavar="S",
        help="seconds after which the search takes what it has",
    )
    add("--output", type=Path, default=Path("optimized"), metavar="DIR", help="page and figures")
    parser.begin_group("gate")
    add(
        "--classes",
        default="",
        metavar="OUTPUT",
        help="the output whose rows are scores of classes (default: one whose rows are "
        "probabilities, or that the labels fit)",
    )
    add(
        "--score",
        default="",
        metavar="FILE.py:FUNCTION",
        help="compare by this function of all outputs and samples, more is better, in place of the "
        "outputs",
    )
    for option, usual, text in (
        ("--most-loss", 0.2, "points of accuracy, or percent of the score, that may be lost"),
        ("--least-equal", 99.0, "percent of equal top answers, or of other equal answers"),
        ("--least-cosine", 0.995, "cosine of an output of floats"),
        ("--most-error", 2.0, "percent of relative error of an output of floats"),
    ):
        add(option, type=_number, default=usual, metavar="X", help=text)
    add(
        "--few-samples",
        action="store_true",
        help="publish although fewer than 100 samples, or too few for the interval of a loss, show "
        "little",
    )


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 100, got {text!r}")
    return number


def run(options: argparse.Namespace) -> int:
    """Search; print the table, and write the page."""
    # Late: a list of the commands needs none of it.
    from serving.model.agreement import AgreementLimits
    from serving.optimising import page, report
    from serving.optimising.gate import GateLimits
    from serving.optimising.optimize import optimize

    agreement = AgreementLimits(
        least_equal=options.least_equal / 100,
        least_cosine=min(1.0, options.least_cosine),
        most_error=options.most_error / 100,
    )
    limits = GateLimits(agreement=agreement, most_loss=options.most_loss / 100)
    found = optimize(
        options.model,
        samples=options.samples,
        name=options.name,
        models=options.models,
        version=options.version,
        classes=options.classes,
        score=options.score,
        limits=limits,
        few_samples=options.few_samples,
        portable=options.portable,
        new_signature=options.new_signature,
        device=options.device,
        seed=options.seed,
        time_limit_s=options.time,
        progress=sys.stderr,
    )
    print("\n".join(report.lines(found)))
    try:
        written = page.write(found, limits, options.output)
    except OSError as err:
        raise ConfigurationError(f"can't write {options.output}: {err.strerror}") from err
    print(f"page: {written}")
    if found.version is not None:
        print(f"published {found.version}")
    elif found.chosen is not None and not options.name:
        print(f"not published: --name {found.name} publishes it as the next version")
    return 0
