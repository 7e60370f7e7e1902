"""Options of the fields of configurations, and help texts from their docstrings."""

import argparse
import ast
import inspect
from dataclasses import Field, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from serving.commandline.values import duration, port_or_off, seconds, share, size

_SPECIAL: dict[str, dict[str, Any]] = {
    "model_cache": {"type": Path, "metavar": "DIR"},
    "input": {"choices": ("tensors", "image")},
    "handler": {"action": "extend", "nargs": 1, "default": [], "metavar": "[NAME=]FILE.py"},
    "canary": {"type": share, "metavar": "SHARE"},
    "access_log": {"type": share, "metavar": "SHARE"},
    "max_model_bytes": {"type": size, "metavar": "SIZE"},
    "max_json_bytes": {"type": size, "metavar": "SIZE"},
    "max_buffered_bytes": {"type": size, "metavar": "SIZE"},
    "max_handler_bytes": {"type": size, "metavar": "SIZE"},
    "slo_s": {"type": seconds, "metavar": "TIME"},
    "metrics_port": {"type": port_or_off, "metavar": "PORT", "default": "auto"},
    "http_port": {"type": port_or_off, "metavar": "PORT", "default": "auto"},
}
"""Options that are more than their fields' types say."""


def add_fields(parser: argparse.ArgumentParser, kind: Any, *names: str) -> None:
    """Add an option for each of these fields of a configuration, parsed under the field's name."""
    known = {field.name: field for field in fields(kind)}
    for name in names:
        flag = name.removesuffix("_s").replace("_", "-")
        settings = _settings(known[name])
        if settings.get("action") == "extend":  # a flag for each of several
            flag = flag.removesuffix("s")
        action = parser.add_argument(f"--{flag}", dest=name, help=name, **settings)
        action.of_field = kind, name  # type: ignore[attr-defined]


def _settings(field: Field[Any]) -> dict[str, Any]:
    if field.name in _SPECIAL:
        return {"default": field.default, **_SPECIAL[field.name]}
    if field.type is bool:
        return {"action": "store_true"}
    if field.type is float and field.name.endswith("_s"):
        return {"type": duration, "default": field.default, "metavar": "TIME"}
    if get_origin(field.type) is Literal:
        return {"choices": get_args(field.type), "default": field.default}
    last = field.name.rpartition("_")[2].upper()
    if get_origin(field.type) is tuple:
        return {"nargs": "+", "action": "extend", "default": [], "metavar": last.removesuffix("S")}
    (kind,) = {*get_args(field.type)} - {NoneType} or {field.type}
    usual = {Path: "FILE", float: "SECONDS", int: "N"}.get(kind, last)
    metavar = "PORT" if last == "PORT" else usual
    return {"type": kind, "default": field.default, "metavar": metavar}


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
        if action.default in (None, [], float("inf")) or action.default is False:
            return action.help
        return super()._get_help_string(action)


def command_help(text: str, examples: str = "") -> dict[str, Any]:
    """Return the settings of a command's parser: one text in the list and on the command's page."""
    return {
        "help": text,
        "description": text[0].upper() + text[1:] + ".",
        "epilog": examples and f"examples:\n{examples}",
        "formatter_class": Formatter,
    }
