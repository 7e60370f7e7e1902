"""Options of the fields of configurations."""

import argparse
from dataclasses import Field, fields
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
    "max_response_bytes": {"type": size, "metavar": "SIZE"},
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
