"""Proves that a model's rows are independent, by following the batch axis through its graph.

A batch is safe if a model of many rows answers each as it does alone, with any others beside it.
Runs on samples can't show that: they miss the value that matters. So each tensor of the graph is
given one of three kinds, from the inputs to the outputs:

- constant: the same for every number of rows and all their values;
- a size: it depends on the number of rows, and on nothing else of them;
- rows along an axis: cut there into as many equal pieces as there are rows, piece i is a function
  of row i and of constants alone, the same function for every row and every number of rows.

The rule of an operator (table.py) says which kind its outputs have. A node without a rule, one that
no ordinary export has (census.tsv), or where rows meet, ends the proof with its name. The sizes of
all other axes stay unknowns, so that a proof holds for all of them; and a size that depends on the
number of rows never counts as a number, even if it is the same for 1, 2 and 3 rows.

Functions of the model are written into its graph first (inline.py). No body is followed but that of
a Scan as distances are written: Sub, and a sum.
"""

from collections import ChainMap, Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

from serving.proof.census import census
from serving.proof.dtypes import NAMES, dtypes_of
from serving.proof.inline import inlined
from serving.proof.onnx_file import Message, has_texts, operator_of, small_array
from serving.proof.sizes import ONE, ROWS, Size, Unknowns
from serving.proof.table import SETS, outputs_of
from serving.proof.values import (
    MAX_RANK,
    Mixes,
    Node,
    Value,
    constant,
    shown,
    sizes_of,
)

_MAX_STEPS = 400_000
"""Nodes, their inputs, outputs and attributes, constants, and the terms of elements that are
followed: of a file of 1 GB a few thousand, and each takes some 5 us."""
_MAX_ELEMENTS = 1 << 28
"""The most elements of a tensor, as far as sizes are known; of float32 that is 1 GB."""
_MOVED = {"Transpose", "QuantizeLinear", "DequantizeLinear", "Conv", "ConvTranspose"}
"""Operators that ONNX Runtime moves, or gives another layout with the nodes around them."""
_SCAN = {"body", "num_scan_inputs"}
"""The attributes that a Scan may have."""
_TURN = {
    "Abs", "Constant", "Identity", "Mul", "Pow", "ReduceMax", "ReduceSum", "ReduceSumSquare", "Sub"
}  # fmt: skip
"""The operators of one turn of a Scan that computes distances."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a proof found, so that a run can be compared with it."""

    model: Message
    """The graph that the proof is about: the given model itself, or one without its functions."""
    values: dict[str, Value]
    """The tensors of the graph itself, not of its bodies, that its outputs depend on, by name."""
    axes: dict[str, tuple[str, int]]
    """The input and the axis whose size an unknown of the values stands for, by its name."""


class Kinds(Protocol):
    """What nodes may be like."""

    def require_known(self, node: Node) -> None:
        """Raise Mixes if a node is of a kind that no ordinary export has."""


def prove(model: Message, kinds: Kinds | None = None) -> Proof:
    """Prove that the first axis of all inputs and outputs is a batch of independent rows.

    Args:
        model: a ModelProto.
        kinds: the kinds of nodes that may be proved; those of census.tsv if it is None.

    Returns:
        The proof's steps.

    Raises:
        Mixes: it is not proved; the text names the node and the reason.
    """
    model = inlined(model)
    walk = _Walk(model, kinds or census())
    graph = model.graph
    defaults = {each.name for each in graph.initializer}
    sources = []
    axes: dict[str | None, tuple[str, int]] = {}
    for each in graph.input:
        if each.name not in defaults:
            walk.scope[each.name] = value = _input(each, walk.unknowns)
            sources.append(value.sources)
            axes |= {size.name: (each.name, at) for at, size in enumerate(value.shape)}
    outputs = walk.graph(graph, [each.name for each in graph.output])
    for each, value in zip(graph.output, outputs, strict=True):
        name = shown(each.name)
        if value.axis != 0 or value.is_size:
            found = "no axis of rows" if value.axis is None else f"its rows along axis {value.axis}"
            raise Mixes(f"output {name} has {found}")
        if value.shape[0] != ROWS or value.outer != ONE:
            raise Mixes(f"output {name} has several rows for each of the batch")
    # Where rows of two inputs never meet, nothing says that row i of one belongs to row i of both.
    joined = _joined([*sources, *walk.joined])
    if len(joined) > 1:
        first, second, *_ = sorted(shown(min(map(str, each))) for each in joined)
        raise Mixes(f"{first} and {second} are batch axes of their own")
    return Proof(model, dict(walk.scope), {name: place for name, place in axes.items() if name})


def _input(info: Message, unknowns: Unknowns) -> Value:
    shape = info.type.tensor_type.shape.dim
    if not shape or shape[0].dim_value > 0:
        raise Mixes(f"input {shown(info.name)} has no batch axis")
    # Axes of one name may differ in a call, so each is an unknown of its own.
    rest = [
        Size.of(each.dim_value) if each.dim_value > 0 else unknowns.new("+") for each in shape[1:]
    ]
    source = shape[0].dim_param or info.name
    dtype = NAMES.get(info.type.tensor_type.elem_type, "")
    return Value((ROWS, *rest), 0, ONE, dtype=dtype, sources=frozenset([source]))


def _joined(sets: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """Join sets that have an element in common."""
    parents: dict[str, str] = {}

    def first_of(name: str) -> str:
        """Return the one that stands for all that a name is joined with."""
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = parents[parent]
            name = parent
        return name

    for each in sets:
        firsts = [first_of(name) for name in each]
        parents.update(dict.fromkeys(firsts, firsts[0]) if firsts else {})
    joined: dict[str, set[str]] = {}
    for name in parents:
        joined.setdefault(first_of(name), set()).add(name)
    return [frozenset(each) for each in joined.values()]


class _Walk:
    """A graph on the way through its nodes: the values of tensors by name."""

    def __init__(self, model: Message, kinds: Kinds) -> None:
        self._kinds = kinds
        self.unknowns = Unknowns()
        self.scope: ChainMap[str, Value] = ChainMap()
        self.joined: set[frozenset[str]] = set()
        """Batch axes that some node joins, so that they are one."""
        self._sources: dict[frozenset[str], frozenset[str]] = {}
        """Each set of batch axes, so that equal ones take memory once."""
        self._steps = [_MAX_STEPS]
        self._require_small(model.graph)
        self._versions = _versions(model)
        self._has_texts = has_texts(model)
        self._declared: dict[str, list[Message]] = {}
        """Types that the graph declares of its tensors; ONNX Runtime may take any of several."""

    def _spend(self, num_steps: int) -> None:
        self._steps[0] -= num_steps
        if self._steps[0] < 0:
            raise Mixes("the model is too large to prove", is_located=True)

    def _require_small(self, graph: Message) -> None:
        """Count what a walk looks at, before it does."""
        infos = graph.initializer, graph.input, graph.output, graph.value_info
        self._spend(sum(map(len, infos)) + len(graph.sparse_initializer))
        self._spend(sum(len(each.dims) for each in graph.initializer))
        for info in (*graph.input, *graph.output, *graph.value_info):
            self._spend(len(info.type.tensor_type.shape.dim))
        for node in graph.node:
            self._spend(1 + len(node.input) + len(node.output) + len(node.attribute))
            self._spend(sum(len(each.t.dims) for each in node.attribute))
            for body in _bodies(node):
                self._require_small(body)

    def graph(self, graph: Message, outputs: Sequence[str]) -> list[Value]:
        """Walk through a graph whose inputs are in the scope; return values of its outputs."""
        is_body = len(self.scope.maps) > 1
        self._declared = _declared(graph, graph.output if is_body else _read_outputs(graph))
        for each in graph.input:
            if each.name in self.scope.maps[0]:
                self._require_declared(each.name, self.scope[each.name])
        for each in graph.initializer:
            value = constant(small_array(each), tuple(each.dims))
            self._define(each.name, replace(value, dtype=NAMES.get(each.data_type, "")))
        if any(each.values.name in self.scope.maps[0] for each in graph.sparse_initializer):
            raise Mixes("a sparse constant has the name of another tensor")
        for node in _needed(graph.node, outputs):
            self._node(node)
        values = [self._named(name) for name in outputs]
        for name, value in zip(outputs, values, strict=True):
            self._require_declared(name, value)
        self._require_followed(graph)
        if not is_body:
            self._require_apart(graph, values)
        return values

    def _require_apart(self, graph: Message, values: Sequence[Value]) -> None:
        """Raise Mixes if a wrong shape of an output that no node reads may become another's.

        Exports have such shapes: converters of trees say 1 where there are N. Where ONNX Runtime
        moves a transposition across the node of an output, the tensor before it gets that shape,
        and is read in place of one that another node computes.
        """
        if _MOVED.isdisjoint(node.op_type for node in graph.node):
            return
        counts = Counter(node.op_type for node in graph.node)
        made = {name: node.op_type for node in graph.node for name in node.output}
        for each, value in zip(graph.output, values, strict=True):
            operator = made.get(each.name, "Transpose")
            if operator == "Transpose" or counts[operator] < 2 or not _has_shape(each):
                continue
            text = _misdeclared(each.type, value)
            if text is not None and each.type.tensor_type.shape.dim:
                raise Mixes(f"{text.format(shown(each.name))}, beside another {shown(operator)}")

    def _require_followed(self, graph: Message) -> None:
        """Raise Mixes if the graph declares a tensor that no answer depends on.

        ONNX Runtime keeps such nodes, and has one node in place of two that compute the same: it
        would believe the shape of the other one, too. Exports have such constants.
        """
        for node in graph.node:
            for name in node.output:
                if name not in self._declared or name in self.scope:
                    continue
                if operator_of(node) != "Constant":
                    raise Mixes(f"{shown(name)} is declared, and no answer depends on it")
                self._node(node)

    def _define(self, name: str, value: Value) -> None:
        # A body's tensor may hide one of the graph around it, and never one of its own.
        if name in self.scope.maps[0]:
            raise Mixes(f"two tensors are named {shown(name)}")
        self._require_declared(name, value)
        self.scope[name] = value

    def _named(self, name: str) -> Value:
        if name not in self.scope:
            raise Mixes(f"there is no tensor {shown(name)}, or it is sparse")
        return self.scope[name]

    def _node(self, message: Message) -> None:
        inputs = [self._named(name) if name else None for name in message.input]
        items = [size for each in inputs if each for size in each.vector or ()]
        self._spend(sum(1 + len(size.terms) for size in items))
        domain = "" if message.domain == "ai.onnx" else message.domain
        node = Node(
            operator_of(message),
            self._versions.get(domain, 0),
            inputs,
            [bool(name) for name in message.output],
            {each.name: each for each in message.attribute},
            self.unknowns,
            self._has_texts,
        )
        try:
            _require_known(domain, node)
            found = self._scan(node) if node.op == "Scan" else self._operator(node)
            self._kinds.require_known(node)
            outputs = [
                replace(self._checked(each), dtype=dtype)
                for each, dtype in zip(found, dtypes_of(node), strict=False)
            ]
            for name, value in zip(message.output, outputs, strict=False):
                self._require_declared(name, value)
        # A graph may be anything that protobuf takes: attributes that are missing, of another type
        # or absurd. A rule that can't read them has proved nothing.
        except (Mixes, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as err:
            if isinstance(err, Mixes) and err.is_located:
                raise
            reason = str(err) if isinstance(err, Mixes) else "it is malformed"
            name = message.name or ", ".join(map(str, message.output))  # bytes are no UTF-8
            op = shown(node.op).removeprefix("ai.onnx.ml.")
            raise Mixes(f"{shown(name)} ({op}): {reason}", is_located=True) from None
        for name, value in zip(message.output, outputs, strict=False):
            if name:
                if name in self.scope:
                    raise Mixes(f"two tensors are named {shown(name)}")
                self.scope[name] = value

    def _require_declared(self, name: str, value: Value) -> None:
        """Raise Mixes if the graph declares a size that a tensor does not have for sure.

        ONNX Runtime believes the graph: it replaces Shape by what is declared, for every batch.
        """
        for declared in self._declared.get(name, ()):
            if (text := _misdeclared(declared, value)) is not None:
                raise Mixes(text.format(shown(name)))

    def _checked(self, value: Value) -> Value:
        """Return a value with bounded sizes; a bug in a rule ends the proof here."""
        if value.rank > MAX_RANK:
            raise Mixes(f"it has more than {MAX_RANK} axes")
        if prod(each.number or 1 for each in value.shape) > _MAX_ELEMENTS:
            raise Mixes("its output is too large to prove")
        if value.data is not None and not value.is_size:
            return value  # a constant of the graph
        if value.items is not None:
            items = sizes_of(map(self.unknowns.bounded, value.items.reshape(-1)))
            value = replace(value, items=items.reshape(value.items.shape))
        shape = tuple(map(self.unknowns.bounded, value.shape))
        varies = any(size.varies for axis, size in enumerate(shape) if axis != value.axis)
        if value.axis is None:
            return replace(value, shape=shape, varies=value.varies or varies)
        if value.is_size:
            raise Mixes("the number of rows meets values")
        if shape[value.axis].per_row is None:
            raise Mixes("its batch axis is lost")
        if varies:  # such as N x N: a row then has one element for each other row
            raise Mixes("the size of a row depends on the number of rows")
        return replace(value, shape=shape)

    def _operator(self, node: Node) -> list[Value]:
        sources = frozenset[str]().union(*(each.sources for each in node.inputs if each))
        self._spend(len(sources))
        sources = self._sources.setdefault(sources, sources)
        outers = {each.outer for each in node.inputs if each and each.is_rows}
        if len(outers) > 1:
            raise Mixes("rows meet others than their own")
        outer = outers.pop() if outers else ONE
        outputs = outputs_of(node)
        if any(each.is_rows for each in outputs):
            self.joined.add(sources)
        found = []
        for each in outputs:
            if each.is_rows:
                own = outer if each.outer is None else each.outer
                each = replace(each, sources=sources, outer=own)
            found.append(each)
        return found

    def _scan(self, node: Node) -> list[Value]:
        """Return what is known of distances, as scikit-learn's converter writes them.

        The state is a table that no turn changes; each turn has one row of the other table, and
        says how far it is from those of the first.
        """
        if unknown := node.attributes.keys() - _SCAN:
            raise Mixes(f"attribute {shown(min(unknown))} has no rule")
        body = node.attributes["body"].g
        if node.version < 9 or node.number("num_scan_inputs", 0) != 1 or len(node.inputs) != 2:
            raise Mixes("only a Scan that computes distances has a rule")
        table, scanned = node.value(0), node.value(1)
        if table.is_size or scanned.is_size or (table.is_rows and scanned.is_rows):
            raise Mixes("rows meet other rows")
        if scanned.axis not in (None, 0) or not scanned.shape[0].is_positive:
            raise Mixes("it may have no turn, or its turns are no rows")
        _require_distances(body)
        # Inside a turn all is about one row, so it counts as constant there.
        one = Value(scanned.shape[1:], dtype=scanned.dtype)
        inner = copy(self)
        names = [each.name for each in body.input]
        state = replace(table, items=None, data=None)
        inner.scope = self.scope.new_child(dict(zip(names, (state, one), strict=True)))
        kept, distances = inner.graph(body, [each.name for each in body.output])
        shape = scanned.shape[0], *distances.shape
        if scanned.is_rows:
            if distances.is_rows:
                raise Mixes("rows meet other rows")
            return [table, replace(scanned, shape=shape)]
        if not distances.is_rows:
            return [table, Value(shape)]
        return [kept, replace(distances, shape=shape, axis=(distances.axis or 0) + 1)]


def _require_distances(body: Message) -> None:
    """Raise Mixes unless a Scan's body computes distances, and keeps its state."""
    known = {each.name for each in (*body.input, *body.initializer)}
    same = {each.name: each.name for each in body.input}
    for node in body.node:
        if operator_of(node) not in _TURN:
            raise Mixes(f"{shown(operator_of(node))} in its body has no rule")
        if not known.issuperset(node.input):
            raise Mixes("its turns see tensors around it")
        if operator_of(node) == "Identity":
            same[node.output[0]] = same.get(node.input[0], "")
        known |= {*node.output}
    if len(body.input) != 2 or len(body.output) != 2:
        raise Mixes("only a Scan that computes distances has a rule")
    if same.get(body.output[0].name) != body.input[0].name:
        raise Mixes("a turn sees the rows before it")


def _needed(nodes: Sequence[Message], outputs: Iterable[str]) -> list[Message]:
    """Return the nodes that outputs depend on, in order."""
    names, needed = set(outputs), []
    for node in reversed(nodes):  # they are sorted: one pass from the outputs finds all
        if not names.isdisjoint(node.output):
            needed.append(node)
            names.update(node.input)
    return needed[::-1]


def _versions(model: Message) -> dict[str, int]:
    """Return the version of each set of operators that a model or function uses."""
    versions: dict[str, int] = {}
    for each in model.opset_import:
        domain = "" if each.domain == "ai.onnx" else each.domain
        if versions.get(domain, each.version) != each.version:
            raise Mixes(f"it has two versions of the operators {shown(domain)}")
        versions[domain] = each.version
    return versions


def _require_known(domain: str, node: Node) -> None:
    """Raise Mixes if the rules were not compared with this version of the operators."""
    if domain not in SETS:
        raise Mixes("this operator has no rule")
    oldest, newest = SETS[domain]
    if not node.version:
        raise Mixes("the model does not say which version of the operators it uses")
    if not oldest <= node.version <= newest:
        age = "older" if node.version < oldest else "newer"
        raise Mixes(f"opset {node.version} is {age} than the rules")


def _declared(graph: Message, outputs: Iterable[Message]) -> dict[str, list[Message]]:
    """Return the types that a graph declares of its tensors, of these outputs and of no others."""
    found: dict[str, list[Message]] = {}
    for each in (*graph.value_info, *graph.input, *outputs):
        if _has_shape(each):
            found.setdefault(each.name, []).append(each.type)
    return found


def _misdeclared(declared: Message, value: Value) -> str | None:
    """Return how a declared type differs from what is proved, with {} for the name; else None."""
    sizes = declared.tensor_type.shape.dim
    if len(sizes) != value.rank:
        return f"{{}} is declared with {len(sizes)} axes, and has {value.rank}"
    for at, (each, size) in enumerate(zip(sizes, value.shape, strict=True)):
        if each.HasField("dim_value") and each.dim_value not in (-1, size.number):
            return f"axis {at} of {{}} is declared with {each.dim_value}, not proved"
    return None


def _read_outputs(graph: Message) -> list[Message]:
    """Return outputs that nodes may read; `_Walk._require_apart` is about the others."""
    read = {name for node in graph.node for name in node.input}
    has_bodies = any(map(_bodies, graph.node))
    return [each for each in graph.output if has_bodies or each.name in read]


def _has_shape(info: Message) -> bool:
    return bool(info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"))


def _bodies(node: Message) -> list[Message]:
    return [each.g for each in node.attribute if each.HasField("g")]
