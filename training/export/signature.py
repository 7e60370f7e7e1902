"""Names that hold from one version to the next: a new graph beside the newest one that is served.

A server serves a version only if callers of the one below can go on: the same names, datatypes and
ranks; sizes may become open, and outputs may be added. It goes by the same rule, in
serving/model/signatures.py, and by the mark that `--new-signature` leaves in a version's folder.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from training.errors import UnusableInput

MARK = "new-signature"
"""A file in a version's folder: it is meant to be served, though its signature is another one."""
MARKED = b"Published by --new-signature: callers of the version below need a change.\n"

_NAMES = "--input-names and --output-names set names"
_AS_IT_IS = "and --new-signature publishes it as it is"

Side = dict[str, tuple[int, tuple[int | None, ...]]]
"""Datatype and sizes of each tensor by its name; None for an open size."""


@dataclass(frozen=True, slots=True)
class ExportSignature:
    """What callers rely on."""

    inputs: Side
    outputs: Side
    images: Any = None
    """The manifest's signature, of a classifier of images."""

    def __str__(self) -> str:
        """Return text such as "x FLOAT [N, 4] -> y FLOAT [N, 1]"."""
        return f"{_text(self.inputs)} -> {_text(self.outputs)}"


def _text(side: Side) -> str:
    return ", ".join(
        f"{name} {onnx.TensorProto.DataType.Name(kind)} "
        f"[{', '.join('N' if size is None else str(size) for size in sizes)}]"
        for name, (kind, sizes) in side.items()
    )


def of_graph(proto: onnx.ModelProto, images: Any = None) -> ExportSignature:
    """Return the signature of a graph."""
    constants = {each.name for each in proto.graph.initializer}
    inputs = [each for each in proto.graph.input if each.name not in constants]
    return ExportSignature(_side(inputs), _side(proto.graph.output), images)


def _side(values: Any) -> Side:
    return {
        each.name: (
            each.type.tensor_type.elem_type,
            tuple(
                size.dim_value if size.HasField("dim_value") else None
                for size in each.type.tensor_type.shape.dim
            ),
        )
        for each in values
    }


def difference(old: ExportSignature, new: ExportSignature) -> str | None:
    """Return why callers of one can't go on with the other; None if they can."""
    for kind, before, after in (
        ("input", old.inputs, new.inputs),
        ("output", old.outputs, new.outputs),
    ):
        for name, tensor in before.items():
            if name not in after:
                return f"{kind} {name} is gone"
            if not _fits(tensor, after[name], is_input=kind == "input"):
                return f"{kind} {_text({name: tensor})} is {_text({name: after[name]})}"
    if added := [name for name in new.inputs if name not in old.inputs]:
        return f"input {added[0]} is new"
    if old.images is not None and new.images is None:
        return "it has no manifest that describes images and classes"
    if old.images is not None and old.images != new.images:
        return _difference_of_images(old.images, new.images)
    return None


def _difference_of_images(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the first difference between two descriptions of images and classes.

    serving/model/signatures.py has the same words.
    """
    if old.get("classes") == new.get("classes"):
        numbers = [*map(str, range(old.get("classes", 0)))]  # the names of classes without any
        names = zip(old.get("labels") or numbers, new.get("labels") or numbers, strict=False)
        for number, (before, after) in enumerate(names):
            if before != after:
                return f"class {number} was {before!r} and is {after!r}"
    key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
    return f"{key} was {old.get(key)} and is {new.get(key)}"


def _fits(before: Any, after: Any, *, is_input: bool) -> bool:
    (kind, sizes), (new_kind, new_sizes) = before, after
    allowed = (lambda old, new: new in (None, old)) if is_input else _may_become
    return (
        kind == new_kind
        and len(sizes) == len(new_sizes)
        and all(allowed(old, new) for old, new in zip(sizes, new_sizes, strict=True))
    )


def _may_become(old: int | None, new: int | None) -> bool:
    return old is None or new in (None, old)


def newest(folder: Path) -> tuple[str, ExportSignature] | None:
    """Return the newest version of a model that is served, with its signature; None without one."""
    found = None
    versions = [path for path in folder.glob("*") if path.name.isdecimal()]
    for path in sorted(versions, key=lambda each: int(each.name)):
        try:
            proto = onnx.load(path / "model.onnx", load_external_data=False)
            signature = of_graph(proto, _images(path))
        except Exception:  # a damaged version is nobody's measure
            continue
        is_marked = (path / MARK).exists()
        if found is None or is_marked or difference(found[1], signature) is None:
            found = path.name, signature
    return found


def _images(version: Path) -> Any:
    if not (version / "manifest.json").exists():
        return None
    return json.loads((version / "manifest.json").read_bytes()).get("signature")


def require_same(
    folder: Path, signature: ExportSignature, *, is_new_allowed: bool
) -> Mapping[str, bytes]:
    """Check a graph against the newest version.

    Returns:
        Files to publish beside the graph: the mark, if its signature is another and may be.

    Raises:
        UnusableInput: it is another one, and nobody said so.
    """
    last = newest(folder)
    reason = None if last is None else difference(last[1], signature)
    if last is None or reason is None:
        return {}
    if is_new_allowed:
        print(f"  signature another than that of version {last[0]}: {reason}", flush=True)
        return {MARK: MARKED}
    both = f": version {last[0]} has {last[1]}, this one {signature}; {_NAMES}"
    if str(last[1]) == str(signature):
        both = f", compared with version {last[0]}; --labels sets the names of classes"
    raise UnusableInput(f"not published, {reason}{both}, {_AS_IT_IS}")


def names_kept(folder: Path, signature: ExportSignature) -> dict[str, str]:
    """Find the names of the newest version for tensors that have others now.

    Tensors are matched by the names of their layers without Keras's running numbers, else by
    datatype and sizes, where there is one way to do it.

    Returns:
        The old name of each tensor that is to be renamed.

    Raises:
        UnusableInput: there are several ways: a wrong one would answer callers wrongly.
    """
    last = newest(folder)
    if last is None:
        return {}
    version, old = last
    renamed: dict[str, str] = {}
    for before, after in ((old.inputs, signature.inputs), (old.outputs, signature.outputs)):
        lost = {name: before[name] for name in before if name not in after}
        new = {name: after[name] for name in after if name not in before}
        renamed |= _matched(lost, new, is_input=before is old.inputs)
        if left := lost.keys() - set(renamed.values()):
            raise UnusableInput(
                f"not published, the names of version {version} can't be matched ({min(left)}): it "
                f"has {old}, this one {signature}; {_NAMES}, {_AS_IT_IS}"
            )
    if renamed:
        pairs = ", ".join(f"{name} is {kept}" for name, kept in renamed.items())
        print(f"  names     as in version {version}: {pairs}", flush=True)
    return renamed


def _matched(lost: Side, new: Side, *, is_input: bool) -> dict[str, str]:
    """Match tensors where each has one counterpart alone."""
    renamed: dict[str, str] = {}

    def fits(old: str, name: str) -> bool:
        return _fits(lost[old], new[name], is_input=is_input)

    def alike(old: str, name: str) -> bool:
        return fits(old, name) and _base(old) == _base(name)

    for is_pair in (alike, fits):
        for name in [each for each in new if each not in renamed]:
            renamed |= _only_pair(name, lost, new, renamed, is_pair)
    return renamed


def _only_pair(
    name: str,
    lost: Side,
    new: Side,
    renamed: Mapping[str, str],
    is_pair: Callable[[str, str], bool],
) -> dict[str, str]:
    left = [old for old in lost if old not in renamed.values()]
    olds = [old for old in left if is_pair(old, name)]
    if len(olds) != 1:
        return {}
    rivals = [each for each in new if each not in renamed and is_pair(olds[0], each)]
    return {name: olds[0]} if rivals == [name] else {}


def _base(name: str) -> str:
    return re.sub(r"_(\d+|[a-z])$", "", name)
