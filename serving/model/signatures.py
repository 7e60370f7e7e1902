"""Which versions of a model may follow one another: inputs and outputs, without a session.

A version is served, or loaded by `Model.load`, by itself only if callers of the newest accepted one
below it can go on: the same names, datatypes and ranks; sizes may become open, and outputs may be
added. It is used nevertheless if somebody said so: by the mark that `export --new-signature` leaves
in its folder, by its number (`--version`, `version=`), by a label, by `--versions` or by
`version_policy { specific }`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from google.protobuf.message import DecodeError

from serving.config import Precision
from serving.errors import ServingError
from serving.model import repository
from serving.model.manifest import MANIFEST, MAX_MANIFEST_BYTES
from serving.proof.onnx_fields import Fields
from serving.proof.onnx_file import ValueInfoProto
from serving.system.files import open_regular, read_regular
from serving.tensors import Signature

MARK = "new-signature"
"""A file in a version's folder: it is to be served, though its signature is another one."""
HOW = (
    f"to use it, put a file {MARK} into its folder, or name it by --version, --versions or a label "
    "such as stable (none gets a canary's share of the calls)"
)
"""How to have a version with another signature used."""
_GRAPH, _INITIALIZER, _INPUT, _OUTPUT = 7, 5, 11, 12
"""Fields of ModelProto and GraphProto (protos/onnx/onnx.proto)."""
_MAX_VALUE_BYTES = 1 << 20
"""The most bytes of one input's or output's description, and of a weight's name."""
_MAX_READ_BYTES = 64 << 20
"""The most bytes of all of them."""
_TYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES",
    9: "BOOL", 10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip
"""TensorProto.DataType by the protocol's names."""
_TENSOR_NAME = 8


class ValueFacts(NamedTuple):
    """An input or output of a graph."""

    datatype: str
    """Empty if it is no tensor, such as the list of maps that scikit-learn's converter ends in."""
    sizes: tuple[int, ...] | None
    """-1 for an open one; None if the graph doesn't say its rank."""


Side = dict[str, ValueFacts]


class GraphSignature(NamedTuple):
    """What callers rely on."""

    inputs: Side
    outputs: Side
    images: str = ""
    """The manifest's signature as JSON, of a classifier of images."""

    def __str__(self) -> str:
        """Return text such as "x FP32 [N, 4] -> y FP32 [N, 3]"."""
        return f"{_text(self.inputs)} -> {_text(self.outputs)}"


def _text(side: Side) -> str:
    return ", ".join(
        f"{name[:80]} {value.datatype} [{_axes(value)}]"
        if value.datatype
        else f"{name[:80]} (a list or a map, not a tensor)"
        for name, value in side.items()
    )


def _axes(value: ValueFacts) -> str:
    return ", ".join("N" if size < 0 else str(size) for size in value.sizes or ())


def difference(old: GraphSignature, new: GraphSignature) -> str | None:
    """Return why callers of one can't go on with the other; None if they can."""
    for kind, before, after in (
        ("input", old.inputs, new.inputs),
        ("output", old.outputs, new.outputs),
    ):
        for name, value in before.items():
            if name not in after:
                return f"{kind} {name[:80]} is gone"
            if not fits(value, after[name], is_input=kind == "input"):
                return f"{kind} {_text({name: value})} has become {_text({name: after[name]})}"
    if added := [name for name in new.inputs if name not in old.inputs]:
        return f"input {added[0][:80]} is new"
    if old.images and not new.images:
        return "it has no manifest that describes images and classes"
    if old.images and old.images != new.images:
        return _difference_of_images(json.loads(old.images), json.loads(new.images))
    return None


def _difference_of_images(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the first difference between two descriptions of images and classes."""
    if old.get("classes") == new.get("classes"):
        numbers = [*map(str, range(old.get("classes", 0)))]  # the names of classes without any
        names = zip(old.get("labels") or numbers, new.get("labels") or numbers, strict=False)
        for number, (before, after) in enumerate(names):
            if before != after:
                return f"class {number} was {before!r} and is {after!r}"
    key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
    return f"{key} was {old.get(key)} and is {new.get(key)}"


def fits(old: ValueFacts, new: ValueFacts, *, is_input: bool) -> bool:
    """Return whether callers of one input or output can go on with the other."""
    if old.datatype != new.datatype:
        return False
    if None in (old.sizes, new.sizes):  # an input of any rank takes more, an output says less
        return new.sizes is None if is_input else True
    assert old.sizes is not None
    assert new.sizes is not None
    return len(old.sizes) == len(new.sizes) and all(
        after in (-1, before) or (before < 0 and not is_input)
        for before, after in zip(old.sizes, new.sizes, strict=True)
    )


def unaccepted(
    model_dir: Path, versions: Sequence[str], read: Callable[[str], GraphSignature | None]
) -> dict[str, str]:
    """Return the versions that are not served by themselves, each with the reason.

    Args:
        model_dir: the model's folder.
        versions: all that are there.
        read: returns the signature of a version; None if it can't be read: loading says why.
    """
    reasons: dict[str, str] = {}
    accepted: tuple[str, GraphSignature] | None = None
    for version in sorted(versions, key=int) if len(versions) > 1 else ():
        signature = read(version)
        if signature is None:
            continue
        reason = accepted and difference(accepted[1], signature)
        if accepted is None or reason is None or (model_dir / version / MARK).exists():
            accepted = version, signature
            continue
        both = f": version {accepted[0]} has {accepted[1]}, version {version} has {signature}"
        is_shown = str(accepted[1]) != str(signature)  # equal ones show no difference
        reasons[version] = f"{reason}{both if is_shown else ''}; {HOW}"
    return reasons


def newest_accepted(
    model_dir: Path, versions: Sequence[str], read: Callable[[str], GraphSignature | None]
) -> tuple[str, GraphSignature] | None:
    """Return the newest version that is served by itself, and its signature; None without one.

    Args:
        model_dir: the model's folder.
        versions: all that are there.
        read: as for `unaccepted`.
    """
    reasons = unaccepted(model_dir, versions, read)
    for version in sorted(versions, key=int, reverse=True):
        if version not in reasons and (signature := read(version)) is not None:
            return version, signature
    return None


def find_signature(
    model_dir: Path, version: str, precision: Precision = "fp32", file_name: str | None = None
) -> GraphSignature | None:
    """Return the inputs and outputs of a version; None if they can't be read: loading says why."""
    with suppress(ServingError, OSError, ValueError, DecodeError):
        return read_signature(model_dir, version, precision, file_name)
    return None


def read_signature(
    model_dir: Path, version: str, precision: Precision = "fp32", file_name: str | None = None
) -> GraphSignature:
    """Read the inputs and outputs of a version's graph; its weights are skipped unread.

    Raises:
        OSError, ValueError, ServingError: it can't be read.
    """
    path = repository.file_of(model_dir / version, precision, file_name)
    with open_regular(path, repository.MAX_BYTES) as file:
        size = os.fstat(file.fileno()).st_size
        inputs, outputs = read_graph(file, size)
    images = ""
    # A malformed manifest is refused when the version is loaded.
    with suppress(FileNotFoundError, AttributeError, KeyError, TypeError, ValueError):
        data = read_regular(model_dir / version / MANIFEST, MAX_MANIFEST_BYTES)
        document = json.loads(data).get("signature")
        images = json.dumps(Signature.of(document).document()) if document else ""
    return GraphSignature(inputs, outputs, images)


def read_graph(file: BinaryIO, size: int) -> tuple[Side, Side]:
    """Read the inputs and outputs of an ONNX file, which has `size` bytes.

    Raises:
        ValueError: it is none, or they are too long.
    """
    constants, sides = set[str](), {_INPUT: Side(), _OUTPUT: Side()}
    fields, left = Fields(file), _MAX_READ_BYTES
    for field, begin, end in fields.of(0, size):
        for inner, first, last in fields.of(begin, end) if field == _GRAPH else ():
            if inner == _INITIALIZER:
                name = _name_of_tensor(fields, first, last)
                constants.add(name)
                left -= len(name)
            elif inner in sides:
                if last - first > _MAX_VALUE_BYTES:
                    raise ValueError("an input or output is described at length")
                file.seek(first)
                name, value = _value(file.read(last - first))
                sides[inner][name] = value
                left -= last - first
            if left < 0:
                raise ValueError("inputs, outputs and names of weights are too long")
    inputs = {name: value for name, value in sides[_INPUT].items() if name not in constants}
    return inputs, sides[_OUTPUT]


def _name_of_tensor(fields: Fields, begin: int, end: int) -> str:
    for field, first, last in fields.of(begin, end):
        if field == _TENSOR_NAME and last - first <= _MAX_VALUE_BYTES:
            fields.file.seek(first)
            return fields.file.read(last - first).decode("utf-8", "replace")
    return ""


def _value(data: bytes) -> tuple[str, ValueFacts]:
    info = ValueInfoProto.FromString(data)
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        return info.name, ValueFacts("", None)
    sizes = None
    if tensor.HasField("shape"):
        sizes = tuple(
            each.dim_value if each.HasField("dim_value") and each.dim_value > 0 else -1
            for each in tensor.shape.dim
        )
    return info.name, ValueFacts(_TYPES.get(tensor.elem_type, str(tensor.elem_type)), sizes)
