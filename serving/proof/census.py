"""What ordinary exports have: a node of kinds that none of them has ends the proof by name.

A rule that covers more than anybody needs is wrong in a corner that nobody looks at. So the rules
decide only about nodes such as those of real exports, which census.tsv lists: for each operator its
traits (attributes and parameters that are not as usual), and the types of its inputs. A node is
known if its operator has a row, each two of its traits stand in one row together, and each of its
inputs has a type that some row has. To widen a rule, add a row.

Kinds are recorded, not values: an attribute is there or not, a flag is on, pads are equal or not,
an axis counts from the front or the back, a size is 0, 1 or more, an input is constant or computed.
`tests/proof/census` makes the table.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import resources

from serving.proof import rules
from serving.proof.dtypes import NAMES
from serving.proof.onnx_file import Message
from serving.proof.table import TABLE
from serving.proof.values import Mixes, Node, Value

FILE = "census.tsv"
_TYPES = {"to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision"}
"""Attributes that name a type of elements."""
_FREE = {
    "K", "N", "accuracy_level", "activation_alpha", "activation_beta", "alpha",
    "attention_scale", "beta", "bias", "bits", "block_size", "blocksize", "cats_int64s",
    "cats_strings", "classlabels_int64s", "classlabels_ints", "classlabels_strings",
    "coefficients", "cubic_coeff_a", "end", "epsilon", "equation", "gamma", "group",
    "hidden_size", "imputed_value_floats", "imputed_value_int64s", "intercepts", "keepdims",
    "kernel_params", "kernel_shape", "lambd", "momentum", "n_supports", "n_targets",
    "noop_with_empty_axes", "num_groups", "num_heads", "num_outputs", "offset", "output_shape",
    "perm", "prob_a", "prob_b", "ratio", "replaced_value_float", "replaced_value_int64", "rho",
    "scale", "size", "start", "support_vectors", "targets", "threshold", "value", "value_float",
    "value_floats", "value_int", "value_ints", "value_string", "value_strings",
    "vectors_per_class",
}  # fmt: skip
"""Attributes whose presence and value are free: sizes, factors, and those that say what an element
is and never on which others it depends."""
_FREE_BEGINNINGS = "base_", "class_", "default_", "keys_", "nodes_", "target_", "values_"
_USUAL = {
    "auto_pad": "NOTSET", "direction": "forward", "keep_aspect_ratio_policy": "stretch",
    "post_transform": "NONE",
}  # fmt: skip
"""Values that attributes have where they are left out, for all operators."""
_USUAL_FLAGS = {"largest": 1, "sorted": 1, "upper": 1, "saturate": 1}
_AXES, _SIZES, _PADS, _STEPS, _BOUNDS = "axes", "sizes", "pads", "steps", "bounds"
_PARAMETERS: dict[str, dict[int, tuple[str, str]]] = {
    "ConstantOfShape": {0: ("shape", _SIZES)},
    "CumSum": {1: ("axes", _AXES)},
    "Expand": {1: ("shape", _SIZES)},
    "Pad": {1: ("pads", _PADS), 3: ("axes", _AXES)},
    "Reshape": {1: ("shape", _SIZES)},
    "Slice": {1: ("starts", _BOUNDS), 2: ("ends", _BOUNDS), 3: ("axes", _AXES),
              4: ("steps", _STEPS)},
    "Split": {1: ("split", _SIZES)},
    "Squeeze": {1: ("axes", _AXES)},
    "Tile": {1: ("repeats", _SIZES)},
    "Unsqueeze": {1: ("axes", _AXES)},
}  # fmt: skip
"""Inputs whose elements say what a node does: the name, and how they are read."""
_READ_AS = {"axes": _AXES, "split": _SIZES, "starts": _BOUNDS, "ends": _BOUNDS, "pads": _PADS,
            "strides": _STEPS, "dilations": _STEPS}  # fmt: skip
"""Attributes that are read as such inputs."""
_ALIKE = {"Concat", "Einsum", "ai.onnx.ml.FeatureVectorizer"}
"""Operators whose inputs have no places of their own."""


_MOVES = {
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that move elements of any type; all know the types that one of them moves."""
_MOVED = "elements"


class Census:
    """The kinds of nodes that real exports have."""

    def __init__(self, rows: Iterable[tuple[str, frozenset[str], frozenset[str]]]) -> None:
        """Collect rows: an operator, the traits of a node, the types of its inputs."""
        self._operators: set[str] = set()
        self._pairs: dict[object, set[frozenset[str]]] = {}
        self._types: dict[object, set[str]] = {}
        for operator, traits, types in rows:
            self._operators.add(operator)
            pairs = self._pairs.setdefault(_family(operator), set())
            pairs |= {frozenset(each) for each in itertools.combinations(traits, 2)}
            pairs |= {frozenset([each]) for each in traits}
            for each in types:
                self._types.setdefault(_family_of_type(operator, each), set()).add(each)

    def require_known(self, node: Node) -> None:
        """Raise Mixes if no export has such a node; the text names the traits."""
        reason = self.unknown(node.op, traits_of(node), types_of(node))
        if reason is not None:
            raise Mixes(reason)

    def unknown(self, operator: str, traits: Iterable[str], types: frozenset[str]) -> str | None:
        """Return what no export has, of a node's traits and the types of its inputs."""
        if operator not in self._operators:
            return "this operator has no rule"
        known, traits = self._pairs[_family(operator)], sorted(traits, key=_reading_order)
        for trait in traits:
            if frozenset([trait]) not in known:
                return f"{trait}: no rule"
        for first, second in itertools.combinations(traits, 2):
            if frozenset([first, second]) not in known:
                return f"{first} with {second}: no rule"
        for each in sorted(types):
            if each not in self._types.get(_family_of_type(operator, each), ()):
                return f"{each}: no rule"
        return None


def _family(operator: str) -> object:
    """Return what operators of one rule have in common: they know each other's kinds."""
    row = TABLE.get(operator)
    if row is None or operator == "Cast":  # which knows types that no other operator has
        return operator
    return rules.pointwise if row.rule is rules.like_first else row.rule


def _family_of_type(operator: str, each: str) -> object:
    return _MOVED if each.startswith(_MOVED) else _family(operator)


def _reading_order(trait: str) -> tuple[bool, str]:
    return not trait.startswith("`"), trait


@cache
def census() -> Census:
    """Return the table that is part of this package."""
    return Census((operator, traits, types) for operator, traits, types, _ in table_rows())


def table_rows() -> Iterator[tuple[str, frozenset[str], frozenset[str], frozenset[str]]]:
    """Yield the rows of the table: operator, traits, types, and the exporters that make them."""
    text = (resources.files("serving.proof") / FILE).read_text("utf-8")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            operator, *parts = line.split("\t")
            traits, types, exporters = (
                frozenset(each for each in part.split(", ") if each) for part in parts
            )
            yield operator, traits, types, exporters


def traits_of(node: Node) -> frozenset[str]:
    """Return what is not as usual about a node's attributes and parameters."""
    found: set[str] = set()
    for name, attribute in node.attributes.items():
        found.update(_attribute(name, attribute))
    for index, (name, kind) in _parameters(node).items():
        if node.has(index):
            found.update(_parameter(name, kind, node.value(index)))
    if node.op != "Split":
        found.update(f"output {at}" for at, is_used in enumerate(node.is_used) if at and is_used)
    rank = max((each.rank for each in node.given if each.is_rows), default=0)
    if node.op.startswith("Reduce") and not any("axes" in each for each in found):
        is_kept = bool(node.number("noop_with_empty_axes", 0))
        has_axes = "axes" in node.attributes or node.has(1)
        if not has_axes:
            found.add("no axes, and nothing is done" if is_kept else "no axes")
    if rank > 1 and _family(node.op) is rules.pointwise:
        found |= {"more axes than rows" for each in node.given if each.rank > rank}
    for index, value in enumerate(node.inputs):
        # An input of Resize that is left out is often written as an empty one.
        is_left_out = node.op == "Resize" and index
        if value is not None and not is_left_out and any(not each.terms for each in value.shape):
            found.add(f"{_place(node, index)} empty")
    return frozenset(found)


def types_of(node: Node) -> frozenset[str]:
    """Return for each input what it holds, and the type of its elements."""
    found = set()
    for index, value in enumerate(node.inputs):
        if value is not None:
            place = _place(node, index)
            found |= {f"{place} {each}" for each in [_kind(value)] if each}
            is_moved = node.op in _MOVES and (index == 0 or node.op == "Concat")
            found.add(f"{_MOVED if is_moved else place} {value.dtype or 'other'}")
    return frozenset(found)


def _place(node: Node, index: int) -> str:
    is_alike = node.op in _ALIKE or _family(node.op) is rules.pointwise
    return "input" if is_alike else f"input {index}"


def _kind(value: Value) -> str:
    """Return how a value depends on rows and sizes; constants are as usual."""
    if value.is_rows:
        return "rows" if value.axis == 0 else "moved rows"
    if value.is_size:
        return "number of rows"
    return "sizes" if value.items is not None and value.numbers is None else ""


def _parameters(node: Node) -> dict[int, tuple[str, str]]:
    if node.op.startswith("Reduce") and len(node.inputs) > 1:
        return {1: ("axes", _AXES)}
    return _PARAMETERS.get(node.op, {})


def _attribute(name: str, attribute: Message) -> Iterator[str]:
    """Yield the traits of an attribute."""
    if name == "axis":
        if attribute.i < 0:
            yield "axis from the back"
        return
    if name in _FREE or name.startswith(_FREE_BEGINNINGS):
        return
    if name in _TYPES:
        yield f"`{name}={NAMES.get(attribute.i, 'another')}`"
    elif attribute.s:
        text = attribute.s.decode("utf-8", "replace")[:40]
        if text != _USUAL.get(name):
            yield f"`{name}={text}`"
    elif name in _READ_AS:
        yield from _numbers(name, _READ_AS[name], attribute.ints[:64])
    elif attribute.ints or attribute.floats or attribute.strings or attribute.HasField("t"):
        yield f"`{name}`"
    elif attribute.i and attribute.i != _USUAL_FLAGS.get(name):
        yield f"`{name}={'-1' if attribute.i < 0 else '1' if attribute.i == 1 else 'more'}`"
    elif attribute.f:
        yield f"`{name}`"
    elif name in _USUAL_FLAGS and not attribute.i:
        yield f"`{name}=0`"


def _parameter(name: str, kind: str, value: Value) -> Iterator[str]:
    """Yield the traits of an input that says what a node does."""
    if value.items is None:
        yield f"unknown {name}"
        return
    numbers = [each.number for each in value.vector or ()]
    yield from _numbers(name, kind, [each for each in numbers if each is not None])
    if not numbers:
        yield f"empty {name}"


def _numbers(name: str, kind: str, numbers: Sequence[int]) -> Iterator[str]:
    if kind == _PADS:
        half = len(numbers) // 2
        if list(numbers[:half]) != list(numbers[half:]):
            yield f"unequal {name}"
        if min(numbers, default=0) < 0:
            yield f"{name} below 0"
        return
    if kind == _STEPS:
        if any(each != 1 for each in numbers):
            yield f"{name} of more than 1" if min(numbers) > 0 else f"{name} below 1"
        return
    if kind == _AXES:
        if min(numbers, default=0) < 0:
            yield f"{name} from the back"
            if max(numbers) >= 0:
                yield f"{name} from both ends"
        return
    if kind == _SIZES:
        if 0 in numbers:
            yield f"0 in {name}"
        if -1 in numbers:
            yield f"-1 in {name}"
        if min(numbers, default=0) < -1:
            yield f"{name} below -1"
        return
    if min(numbers, default=0) < 0:
        yield f"{name} from the back"
