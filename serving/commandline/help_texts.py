"""The help texts of commands: fields' docstrings, defaults and examples."""

import argparse
import ast
import inspect
from functools import cache
from itertools import pairwise
from typing import Any


@cache
def field_docs(kind: Any) -> dict[str, str]:
    """Read the docstrings of a configuration's fields, which Python keeps in the source alone."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    found = {}
    for field, text in pairwise(ast.iter_child_nodes(tree)):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                value=ast.Constant(value=str(doc))
            ):
                found[name] = doc
    return found


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows fields' docstrings, defaults, and examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Leave out a default that says nothing, such as None, or a flag that is off."""
        if (of_field := getattr(action, "of_field", None)) is not None:
            kind, name = of_field
            text = " ".join(field_docs(kind)[name].split()).removesuffix(".").replace("%", "%%")
            is_name = text.partition(" ")[0][1:] != text.partition(" ")[0][1:].lower()
            action.help = text if is_name else text[0].lower() + text[1:]
        if action.default in (None, "", [], float("inf")) or action.default is False:
            return action.help
        shown = super()._get_help_string(action)
        return shown and shown.replace("%(default)s", _shown(action).replace("%", "%%"))


def _shown(action: argparse.Action) -> str:
    """Write a default as the command line takes it: 2G, not its bytes; 10, not 10.0."""
    default = action.default
    if isinstance(default, float):
        return f"{default:g}"
    if action.metavar == "SIZE" and isinstance(default, int):
        for unit, size in (("G", 1 << 30), ("M", 1 << 20)):
            if default and default % size == 0:
                return f"{default // size}{unit}"
    return str(default)


def command_help(text: str, examples: str = "") -> dict[str, Any]:
    """Return the settings of a command's parser: one text in the list and on the command's page."""
    return {
        "help": text,
        "description": text[0].upper() + text[1:] + ".",
        "epilog": examples and f"examples:\n{examples}",
        "formatter_class": Formatter,
    }
