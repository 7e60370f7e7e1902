"""Writes the reference of Python names and of command lines, as plain Markdown.

python docs/reference.py      after a change of a docstring or an option; `make reference`
"""

import argparse
import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from digit_classifier import command as classify
from digit_scoring import command as score
from serving.cli.doors import DOORS
from serving.commandline.help_texts import field_docs

FOLDER = Path(__file__).parent / "reference"

PROGRAMS = {
    "digit-serving": "serving.cli.commands",
    "python -m training": "training.cli",
    "python -m benchmarks": "benchmarks.cli",
}
"""Modules with a function `parser`."""
OWN: dict[str, Any] = {"classify": classify, "score": score}
"""Commands of `digit-serving` that applications of the same distribution add."""

NAMES = {
    "In your own process": {
        "serving.Model": "load infer stream describe models wait_ready version close",
        "serving.AsyncModel": "load infer stream describe models wait_ready version close",
        "digit_scoring.ray.Classify": "__call__",
    },
    "Over the network": {
        "serving.Client": "infer stream describe models wait_ready call call_many close",
        "serving.AsyncClient": "infer stream describe models wait_ready call call_many close",
    },
    "A server beside your code": {
        "serving.Server": "address http_address metrics_address pid errors close",
        "serving.serve": "",
    },
    "Publishing": {"serving.publish": "", "serving.optimize": "", "serving.Optimization": ""},
    "Digits": {
        "digit_classifier.Classifier": "pretrained load connect classify signature describe "
        "wait_ready close",
        "digit_classifier.AsyncClassifier": "pretrained load connect classify describe "
        "wait_ready close",
        "digit_classifier.from_picture": "",
        "digit_classifier.Predictions": "digits probabilities model_version labels to_dicts",
        "digit_classifier.Prediction": "",
    },
    "Answers": {
        "serving.Outputs": "",
        "serving.ModelInfo": "",
        "serving.Tensor": "axes",
    },
    "Settings": {
        "serving.BatchingConfig": "",
        "serving.config.ModelConfig": "",
        "serving.config.ServerConfig": "",
        "serving.config.SecurityConfig": "",
    },
    "Errors": {"serving.errors": ""},
}
"""Names by section, each with its documented members."""

_UNTITLED = ("positional arguments", "options")
_SECTION = re.compile(r"(?m)^(Args|Returns|Yields|Raises|Attributes):\n((?:(?: {4}.*)?(?:\n|$))+)")
_ITEM = re.compile(r"(?m)^ {4}([\w*][\w*, .]*): ((?:.*)(?:\n {8}.*)*)")


def main() -> None:
    """Write both pages."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text, "utf-8")


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    written = {"commands.md": _commands(), "python.md": _python()}
    return {
        name: re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"
        for name, lines in written.items()
    }


def _commands() -> Iterator[str]:
    yield (
        "# Command lines\n\n"
        "Written by `make reference` from the programs; `COMMAND --help` prints the same. Times\n"
        "are seconds, or `5ms`; SIZE is bytes, or `500M`. Options can also be set by the\n"
        "environment: `SERVING_` and the name in capitals, such as `SERVING_HTTP_PORT`; the\n"
        "command line wins.\n"
        "Exit codes: 0 served or answered, 2 bad usage or configuration (one line on stderr), 1\n"
        "anything else."
    )
    for program, module in PROGRAMS.items():
        made = importlib.import_module(module).parser
        whole = made(OWN) if program == "digit-serving" else made()
        (choices,) = [a for a in whole._actions if isinstance(a, argparse._SubParsersAction)]
        for name, command in choices.choices.items():
            yield from _command(f"{program} {name}", command)


def _command(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    prefix = name.replace("python -m ", "").replace("digit-serving ", "").replace(" ", "-")
    anchor = f'<a id="{prefix}"></a>' * name.startswith("python -m ")
    yield f"\n## {name}\n\n{anchor}{command.description}\n"
    if prefix in DOORS:
        yield f"{_door(prefix)}\n"
    formatter = command._get_formatter()
    for group in command._action_groups:
        shown = [a for a in group._group_actions if a.help not in (None, argparse.SUPPRESS)]
        shown = [a for a in shown if not isinstance(a, argparse._HelpAction)]
        if shown and group.title not in _UNTITLED:
            yield f"\n### {group.title}\n"
        if shown and (group.title != "options" or not command._positionals._group_actions):
            yield "| argument or option | meaning |\n|---|---|"
        for action in shown:
            word = formatter._format_action_invocation(action).replace("|", " or ")
            text = " ".join(formatter._expand_help(action).split()).replace("|", "\\|")
            anchor = f"{prefix}-{(action.option_strings or [action.dest])[-1].lstrip('-')}"
            yield f'| <a id="{anchor}"></a>`{word}` | {_escape(text)} |'
    yield ""
    if command.epilog:
        yield "```text\n" + command.epilog.strip() + "\n```"


def _door(name: str) -> str:
    """Name the commands of another program whose options a command of `digit-serving` takes."""
    door = DOORS[name]
    package = door.module.partition(".")[0]
    verbs = door.words or ("run", "model", "tune", "peers", "plot")
    links = [f"[`python -m {package} {verb}`](#{package}-{verb})" for verb in verbs]
    start = "It takes the options of" if door.words else "Its commands take the options of"
    return f"{start} {', '.join(links)}."


def _escape(text: str) -> str:
    """Keep what looks like HTML or emphasis as it is."""
    return re.sub(r"(?<!`)([<*])", r"\\\1", text)


def _python() -> Iterator[str]:
    yield (
        "# Python\n\n"
        "Written by `make reference` from the docstrings. Names of `serving` are loaded when they\n"
        "are first used: `Client` needs numpy, grpcio and protobuf, `Model` also ONNX Runtime. Of\n"
        "`digit_classifier`, `Classifier.connect` needs what `Client` does; `Classifier.load` and\n"
        "`Classifier.pretrained` need ONNX Runtime."
    )
    for section, names in NAMES.items():
        yield f"\n## {section}\n"
        for path, members in names.items():
            if path == "serving.errors":
                yield f"```text\n{inspect.getdoc(importlib.import_module(path))}\n```\n"
                yield from _errors(importlib.import_module(path))
                continue
            module, _, name = path.rpartition(".")
            found = getattr(importlib.import_module(module), name)
            yield f"### {name}\n\n`from {module} import {name}`\n"
            yield from _described(name, found)
            for member in members.split():
                yield from _member(found, name, member)


def _errors(module: Any) -> Iterator[str]:
    for name, found in vars(module).items():
        if inspect.isclass(found) and issubclass(found, Exception):
            yield f"- `{name}` ({found.__bases__[0].__name__}): {inspect.getdoc(found)}"


def _member(owner: Any, owner_name: str, member: str) -> Iterator[str]:
    found = inspect.getattr_static(owner, member)
    if isinstance(found, property):
        yield f"**`{owner_name}.{member}`**: {_markdown(inspect.getdoc(found) or '')}\n"
    elif not callable(found) and not isinstance(found, (classmethod, staticmethod)):
        return  # a field, which the class has described
    else:
        yield f"#### {owner_name}.{member}\n" if member != "__call__" else f"#### {owner_name}()\n"
        yield from _described(member, getattr(owner, member))


def _described(name: str, found: Any) -> Iterator[str]:
    """Write a signature, a docstring, and the fields of a dataclass."""
    if is_dataclass(found) or hasattr(found, "_fields"):
        yield _markdown(inspect.cleandoc(found.__doc__ or "")) + "\n"
        docs = field_docs(found)
        shown = [f.name for f in fields(found)] if is_dataclass(found) else found._fields
        for field in shown:
            if field in docs and not field.startswith("_"):
                yield f"- `{field}`: {_one_line(docs[field])}"
        yield ""
        return
    yield f"```python\n{_signature(name, found)}\n```\n"
    yield _markdown(inspect.getdoc(found) or "") + "\n"
    if inspect.isclass(found):
        yield _markdown(inspect.getdoc(found.__init__) or "") + "\n"


def _signature(name: str, found: Any) -> str:
    """Write a function's head as its source has it, an argument a line where it is long."""
    function = found.__init__ if inspect.isclass(found) else found
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    node.args.args = [a for a in node.args.args if a.arg not in ("self", "cls")]
    node.args.posonlyargs = [a for a in node.args.posonlyargs if a.arg not in ("self", "cls")]
    node.name, node.body, node.decorator_list = name, [ast.Expr(ast.Constant(...))], []
    if inspect.isclass(found):
        node.returns = None
    keyword = "class" if inspect.isclass(found) else "def"
    head = ast.unparse(node).partition("\n")[0].removesuffix(":").replace("def", keyword, 1)
    start, _, rest = head.partition("(")
    arguments, end, returned = rest.rpartition(")")
    parts = [re.sub(r"(: [^=]+)=", r"\1 = ", part) for part in _split(arguments)]
    returned = returned.replace("'", "")
    if len(head) <= 92:
        return f"{start}({', '.join(parts)}){returned}"
    return f"{start}(\n    " + ",\n    ".join(parts) + f",\n{end}{returned}"


def _split(arguments: str) -> list[str]:
    """Cut at the commas that are in no brackets."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _markdown(doc: str) -> str:
    """Turn the sections of a docstring into lists."""
    return _SECTION.sub(_section, doc).strip()


def _section(match: re.Match[str]) -> str:
    title, body = match.groups()
    items = _ITEM.findall(body)
    if title in ("Returns", "Yields") or not items:
        return f"\n{title}: {_one_line(body)}\n"
    lines = [f"- `{name}`: {_one_line(text)}" for name, text in items]
    return f"\n{title}:\n\n" + "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
