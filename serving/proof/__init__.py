"""The proof that a model's rows are independent, so that they may share a batch: a library.

It knows neither server nor runtime: it imports numpy, protobuf and `serving.errors`, and its check
is handed a function that builds sessions. README.md has the contract and a first example. The rest
of serving reads ONNX files by `onnx_file` and `onnx_fields`; that is why each name here is imported
when it is first used: a server that reads a file loads no rule.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # "as": for type checkers, which don't read `__all__` below
    from serving.proof.check import Check as Check
    from serving.proof.check import Comparison as Comparison
    from serving.proof.check import Graph as Graph
    from serving.proof.check import NotRun as NotRun
    from serving.proof.check import Session as Session
    from serving.proof.onnx_file import parse_model as parse_model
    from serving.proof.sizes import Size as Size
    from serving.proof.values import Mixes as Mixes
    from serving.proof.values import Value as Value
    from serving.proof.walk import Proof as Proof
    from serving.proof.walk import prove as prove

_NAMES = {
    "check": "Check Comparison Graph NotRun Session",
    "onnx_file": "parse_model",
    "sizes": "Size",
    "values": "Mixes Value",
    "walk": "Proof prove",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = tuple(sorted(_MODULES))


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found
