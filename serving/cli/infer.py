"""The command `infer`: run any model once."""

import argparse

from serving.cli import model_options, target
from serving.commandline.parser import Parser

HELP = "run any model on values, arrays or pictures"
EXAMPLES = """\
  digit-serving infer iris.onnx 'X=[5.1, 3.5, 1.4, 0.2]'
  digit-serving infer iris --target 127.0.0.1:50051 'X=[[5.1, 3.5, 1.4, 0.2], [6, 3, 5, 2]]'
  digit-serving infer sentiment --target 127.0.0.1:50051 text='a good film' --json
  digit-serving infer towers.onnx left=@left.npy right=@right.npy
  digit-serving infer flowers.onnx --input image --labels labels.txt @rose.jpg
  python numbers.py | digit-serving infer iris.onnx X=-
  digit-serving infer detector.onnx --random
"""


def add_arguments(parser: Parser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="name of a model, of the server or the repository; or an "
        "ONNX file, a model's folder, or a handler that is a model by itself (FILE.py)",
    )
    add(
        "values",
        nargs="*",
        metavar="NAME=VALUE",
        help="an input: JSON or a text; @FILE with a NumPy array (.npy), JSON, a text or a "
        "picture; - for stdin; zeros or random, or with sizes of its axes zeros[1,64]. The batch "
        "axis may be left out, and so may the name of the only input",
    )
    add("--random", action="store_true", help="fill the inputs that no value is given for")
    parser.intermixed = "values"
    model_options.add_pictures(parser)
    model_options.add_handler(parser)
    target.add_server(parser)
    model_options.add_repository(parser)


def run(options: argparse.Namespace) -> int:
    """Run the model once, and print its outputs."""
    from serving.cli import inference  # late: a list of the commands needs no arrays

    return inference.run(options)
