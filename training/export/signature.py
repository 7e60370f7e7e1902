"""Names that hold from one version to the next: a new graph beside the newest one that is served.

A server serves a version only if callers of the one below can go on. Both go by the rule of
`serving.model.signatures`, and by the mark that `--new-signature` leaves in a version's folder.
"""

import json
import re
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import onnx

from serving.model.signatures import GraphSignature, Side, difference, fits, read_graph
from serving.publishing.models import new_mark, newest
from serving.tensors import Signature
from training.errors import UnusableInput

_NAMES = "--input-names and --output-names set names"
_AS_IT_IS = "and --new-signature publishes it as it is"


def of_graph(proto: onnx.ModelProto, images: Mapping[str, Any] | None = None) -> GraphSignature:
    """Return the signature of a graph.

    Args:
        proto: the graph; its weights are not copied.
        images: the field `signature` of its manifest, if it classifies images.
    """
    constants = {each.name for each in proto.graph.initializer}
    sides = onnx.ModelProto()
    sides.graph.input.extend(each for each in proto.graph.input if each.name not in constants)
    sides.graph.output.extend(proto.graph.output)
    data = sides.SerializeToString()
    described = "" if images is None else json.dumps(Signature.of(images).document())
    return GraphSignature(*read_graph(BytesIO(data), len(data)), described)


def require_same(
    folder: Path, signature: GraphSignature, *, is_new_allowed: bool
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
        return new_mark()
    both = f": version {last[0]} has {last[1]}, this one {signature}; {_NAMES}"
    if str(last[1]) == str(signature):
        both = f", compared with version {last[0]}; --labels sets the names of classes"
    raise UnusableInput(f"not published, {reason}{both}, {_AS_IT_IS}")


def names_kept(folder: Path, signature: GraphSignature) -> dict[str, str]:
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

    def may_be(old: str, name: str) -> bool:
        return fits(lost[old], new[name], is_input=is_input)

    def alike(old: str, name: str) -> bool:
        return may_be(old, name) and _base(old) == _base(name)

    for is_pair in (alike, may_be):
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
