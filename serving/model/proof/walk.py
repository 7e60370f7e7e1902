"""Proves that a model's rows are independent, by following the batch axis through its graph.

A batch is safe if a model of many rows answers each as it does alone, with any others beside it.
Runs on samples can't show that: they miss the value that matters. So each tensor of the graph is
given one of three kinds, from the inputs to the outputs:

- constant: the same for every number of rows and all their values;
- a size: it depends on the number of rows, and on nothing else of them;
- rows along an axis: cut there into as many equal pieces as there are rows, piece i is a function
  of row i and of constants alone, the same function for every row and every number of rows.

The rule of an operator (table.py) says which kind its outputs have. A node without a rule,
or where rows meet, ends the proof with its name. The sizes of all other axes stay unknowns, so that
a proof holds for all of them; and a size that depends on the number of rows never counts as a
number, even if it is the same for 1, 2 and 3 rows.
"""

from collections import ChainMap
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from serving.model.onnx_file import Message, has_texts, small_array
from serving.model.proof.sizes import ONE, ROWS, Size, Unknowns
from serving.model.proof.table import SETS, outputs_of
from serving.model.proof.values import Mixes, Node, Value, constant, sizes_of

_MAX_STEPS = 100_000
"""Nodes and elements that are looked at, those of bodies and functions each time."""
_MAX_DEPTH = 40
"""The most bodies and functions in one another."""
_MAX_TEXT = 100
"""Characters of a graph's own names in a reason."""
_CONTROL = {
    "If": {"then_branch", "else_branch"},
    "Loop": {"body"},
    "Scan": {"body", "num_scan_inputs", "scan_input_axes", "scan_input_directions",
             "scan_output_axes", "scan_output_directions"},
}  # fmt: skip
"""The operators with bodies, and all their attributes."""
_ONNX, _ALSO_ONNX, _CLASSICAL = "", "ai.onnx", "ai.onnx.ml"
"""The domains of ONNX's own operators; the first two are one."""
_RESERVED = "ai.onnx", "com.microsoft", "com.ms.", "org.pytorch."
"""The beginnings of domains in which ONNX Runtime has operators of its own."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a proof found, so that a run can be compared with it."""

    values: dict[str, Value]
    """The tensors of the graph itself, not of its bodies, that its outputs depend on, by name."""
    axes: dict[str, tuple[str, int]]
    """The input and the axis whose size an unknown of the values stands for, by its name."""


def prove(model: Message) -> Proof:
    """Prove that the first axis of all inputs and outputs is a batch of independent rows.

    Args:
        model: a ModelProto.

    Returns:
        The proof's steps.

    Raises:
        Mixes: it is not proved; the text names the node and the reason.
    """
    walk = _Walk(model)
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
        name = _shown(each.name)
        if value.axis != 0:
            found = "no axis of rows" if value.axis is None else f"its rows along axis {value.axis}"
            raise Mixes(f"output {name} has {found}")
        if value.shape[0] != ROWS or value.outer != ONE:
            raise Mixes(f"output {name} has several rows for each of the batch")
    # Where rows of two inputs never meet, nothing says that row i of one belongs to row i of both.
    joined = _joined([*sources, *walk.joined])
    if len(joined) > 1:
        first, second, *_ = sorted(_shown(min(map(str, each))) for each in joined)
        raise Mixes(f"{first} and {second} are batch axes of their own")
    return Proof(dict(walk.scope), {name: place for name, place in axes.items() if name})


def _input(info: Message, unknowns: Unknowns) -> Value:
    shape = info.type.tensor_type.shape.dim
    if not shape or shape[0].dim_value > 0:
        raise Mixes(f"input {_shown(info.name)} has no batch axis")
    # Axes of one name may differ in a call, so each is an unknown of its own.
    rest = [
        Size.of(each.dim_value) if each.dim_value > 0 else unknowns.new("+") for each in shape[1:]
    ]
    source = shape[0].dim_param or info.name
    return Value((ROWS, *rest), 0, ONE, sources=frozenset([source]))


def _joined(sets: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """Join sets that have an element in common."""
    joined: list[frozenset[str]] = []
    for each in sets:
        if each:
            touching = [other for other in joined if other & each]
            joined = [other for other in joined if not other & each]
            joined.append(each.union(*touching))
    return joined


class _Walk:
    """A graph on the way through its nodes: the values of tensors by name."""

    def __init__(self, model: Message) -> None:
        self.unknowns = Unknowns()
        self.scope: ChainMap[str, Value] = ChainMap()
        self.joined: set[frozenset[str]] = set()
        """Batch axes that some node joins, so that they are one."""
        self._versions = _versions(model)
        self._has_texts = has_texts(model)
        self._functions: dict[tuple[str, str, str], Message] = {}
        for each in model.functions:
            key = each.domain, each.name, each.overload
            if self._functions.setdefault(key, each) is not each:
                raise Mixes(f"two functions are named {_shown(each.name)}")
        self._declared: dict[str, Message] = {}
        """Types that the graph declares of its tensors."""
        self._steps = iter(range(_MAX_STEPS))
        self._widened: set[Size] = set()
        """Unknown sizes of what is one of several tensors."""
        self._depth = 0

    def graph(self, graph: Message, outputs: Sequence[str]) -> list[Value]:
        """Walk through a graph whose inputs are in the scope; return values of its outputs."""
        self._declared = _declared(graph, graph.output if self._depth else _read_outputs(graph))
        for each in graph.input:
            if each.name in self.scope.maps[0]:
                self._require_declared(each.name, self.scope[each.name])
        for each in graph.initializer:
            self._define(each.name, constant(small_array(each), tuple(each.dims)))
        if any(each.values.name in self.scope.maps[0] for each in graph.sparse_initializer):
            raise Mixes("a sparse constant has the name of another tensor")
        self._nodes(graph.node, outputs)
        values = [self._named(name) for name in outputs]
        for name, value in zip(outputs, values, strict=True):
            self._require_declared(name, value)
        return values

    def _define(self, name: str, value: Value) -> None:
        # A body's tensor may hide one of the graph around it, and never one of its own.
        if name in self.scope.maps[0]:
            raise Mixes(f"two tensors are named {_shown(name)}")
        self._require_declared(name, value)
        self.scope[name] = value

    def _named(self, name: str) -> Value:
        if name not in self.scope:
            raise Mixes(f"there is no tensor {_shown(name)}, or it is sparse")
        return self.scope[name]

    def _nodes(self, nodes: Sequence[Message], outputs: Iterable[str]) -> None:
        for node in self._needed(nodes, outputs):
            self._node(node)

    def _needed(self, nodes: Sequence[Message], outputs: Iterable[str]) -> list[Message]:
        """Return the nodes that outputs depend on, in order."""
        self._spend(len(nodes))
        names, needed = set(outputs), []
        for node in reversed(nodes):  # they are sorted: one pass from the outputs finds all
            if names & set(node.output):
                needed.append(node)
                names |= set(node.input).union(*map(self._captured, _bodies(node)))
        return needed[::-1]

    def _captured(self, graph: Message) -> set[str]:
        """Return the names of tensors around a body that it may read."""
        self._spend(len(graph.node))
        # A body sees the names of all graphs around it, and its own hide theirs.
        own = {each.name for each in (*graph.input, *graph.initializer)}
        names = {each.name for each in graph.output}
        for node in graph.node:
            names |= set(node.input).union(*map(self._captured, _bodies(node)))
            own |= set(node.output)
        return names - own

    def _spend(self, num_steps: int) -> None:
        if sum(1 for _ in islice(self._steps, num_steps)) < num_steps:
            raise Mixes("the graph is too large")

    def _node(self, message: Message) -> None:
        inputs = [self._named(name) if name else None for name in message.input]
        self._spend(sum(each.items.size for each in inputs if each and each.items is not None))
        domain = _ONNX if message.domain == _ALSO_ONNX else message.domain
        node = Node(
            message.op_type if domain in (_ONNX, _CLASSICAL) else f"{domain}.{message.op_type}",
            self._versions.get(domain, 0),
            inputs,
            [bool(name) for name in message.output],
            {each.name: each for each in message.attribute},
            self.unknowns,
            self._has_texts,
        )
        try:
            outputs = [self._checked(each) for each in self._outputs(message, domain, node)]
            for name, value in zip(message.output, outputs, strict=False):
                self._require_declared(name, value)
        # A graph may be anything that protobuf takes: attributes that are missing, of another type
        # or absurd. A rule that can't read them has proved nothing.
        except (Mixes, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as err:
            if isinstance(err, Mixes) and err.is_located:
                raise
            reason = str(err) if isinstance(err, Mixes) else "it is malformed"
            name = message.name or ", ".join(map(str, message.output))  # bytes are no UTF-8
            raise Mixes(f"{_shown(name)} ({_shown(node.op)}): {reason}", is_located=True) from None
        for name, value in zip(message.output, outputs, strict=False):
            if name:
                if name in self.scope:
                    raise Mixes(f"two tensors are named {_shown(name)}")
                self.scope[name] = value

    def _require_declared(self, name: str, value: Value) -> None:
        """Raise Mixes if the graph declares a size that a tensor does not have for sure.

        ONNX Runtime believes the graph: it replaces Shape by what is declared, for every batch.
        """
        if name not in self._declared:
            return
        sizes = self._declared[name].tensor_type.shape.dim
        if len(sizes) != value.rank:
            raise Mixes(f"{_shown(name)} is declared with {len(sizes)} axes, and has {value.rank}")
        for at, (declared, size) in enumerate(zip(sizes, value.shape, strict=True)):
            if declared.HasField("dim_value") and declared.dim_value not in (-1, size.number):
                number = declared.dim_value
                raise Mixes(f"axis {at} of {_shown(name)} is declared with {number}, not proved")

    def _outputs(self, message: Message, domain: str, node: Node) -> list[Value]:
        """Return what is known of the outputs of an operator, or of a function of the model."""
        if any(each.ref_attr_name for each in message.attribute):
            raise Mixes("a body refers to attributes of a function around it")
        function = self._functions.get((message.domain, message.op_type, message.overload))
        if function is not None:
            if domain == _ONNX or domain.startswith(_RESERVED):
                raise Mixes("a function has the name of an operator")
            return self._function(function, node)
        _require_known(domain, node)
        if node.op not in _CONTROL:
            return self._operator(node)
        if unknown := node.attributes.keys() - _CONTROL[node.op]:
            raise Mixes(f"attribute {_shown(min(unknown))} has no rule")
        outputs: list[Value] = getattr(self, f"_{node.op.lower()}")(node)
        return outputs

    def _checked(self, value: Value) -> Value:
        """Return a value with bounded sizes; a bug in a rule ends the proof here."""
        if value.data is not None and not value.is_size:
            return value  # a constant of the graph
        if value.items is not None:
            items = sizes_of(map(self.unknowns.bounded, value.items.reshape(-1)))
            value = replace(value, items=items.reshape(value.items.shape))
        shape = tuple(map(self.unknowns.bounded, value.shape))
        varies = any(size.varies for axis, size in enumerate(shape) if axis != value.axis)
        if value.axis is None:
            return replace(value, shape=shape, varies=value.varies or varies)
        if shape[value.axis].per_row is None:
            raise Mixes("its batch axis is lost")
        if varies:  # such as N x N: a row then has one element for each other row
            raise Mixes("the size of a row depends on the number of rows")
        return replace(value, shape=shape)

    def _operator(self, node: Node) -> list[Value]:
        sources = frozenset[str]().union(*(each.sources for each in node.inputs if each))
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

    def _inside(self, names: Iterable[str], values: Iterable[Value]) -> "_Walk":
        """Return a walk through a body, which sees the names around it."""
        if self._depth >= _MAX_DEPTH:
            raise Mixes("the graph is nested too deeply")
        inner = copy(self)
        inner._depth += 1
        inner.scope = self.scope.new_child(dict(zip(names, values, strict=False)))
        return inner

    def _body(self, graph: Message, values: Sequence[Value]) -> list[Value]:
        inner = self._inside([each.name for each in graph.input], values)
        return inner.graph(graph, [each.name for each in graph.output])

    def _function(self, function: Message, node: Node) -> list[Value]:
        attributes = {each.name: each for each in function.attribute_proto} | node.attributes
        # Unlike a body, a function sees its own inputs alone.
        inner = self._inside([], [])
        given = {
            name: node.value(index) for index, name in enumerate(function.input) if node.has(index)
        }
        inner.scope = ChainMap(given)
        # ONNX Runtime runs a function's nodes by the model's versions, not by the function's own.
        versions = _versions(function)
        if any(self._versions.get(name, number) != number for name, number in versions.items()):
            raise Mixes("a function is for another version of the operators than the model")
        inner._versions = versions | self._versions
        inner._declared = {each.name: each.type for each in function.value_info if _has_shape(each)}
        absent = {*function.input} - given.keys()
        self._spend(len(function.node))
        nodes = [_bound(each, attributes, absent) for each in function.node]
        inner._nodes(nodes, function.output)
        return [inner._named(name) for name in function.output]

    def _if(self, node: Node) -> list[Value]:
        condition = node.value(0)
        if condition.is_rows:
            raise Mixes("its condition depends on values of rows")
        if condition.is_size:
            raise Mixes("its condition depends on the number of rows")
        branches = ["else_branch", "then_branch"]
        if condition.numbers is not None:  # a constant of the graph: the other branch never runs
            branches = [branches[bool(condition.numbers[0])]]
        results = [self._body(node.attributes[each].g, []) for each in branches]
        return [self._same(values) for values in zip(*results, strict=True)]

    def _same(self, values: Sequence[Value]) -> Value:
        """Return what is known of a tensor that is one of several."""
        first = values[0]
        for other in values[1:]:
            if first.axis != other.axis or first.is_size or other.is_size:
                raise Mixes("its branches or turns have rows along different axes")
            mine, others = first.shape, other.shape
            if len(mine) != len(others):
                raise Mixes("its branches or turns have different numbers of axes")
            if first.is_rows and (first.rows != other.rows or first.outer != other.outer):
                raise Mixes("its branches or turns have rows of different sizes")
            sizes = [
                a if a == b else self.unknowns.new() for a, b in zip(mine, others, strict=True)
            ]
            self._widened.update(a for a, b in zip(sizes, others, strict=True) if a != b)
            sources = first.sources | other.sources
            first = Value(tuple(sizes), first.axis, first.outer, sources=sources)
            if first.is_rows:
                self.joined.add(sources)
        return first

    def _loop(self, node: Node) -> list[Value]:
        body = node.attributes["body"].g
        for each in node.inputs[:2]:
            if each is not None and each.is_rows:
                raise Mixes("the number of its turns depends on values of rows")
            if each is not None and each.is_size:
                raise Mixes("the number of its turns depends on the number of rows")
        # A turn may change a state's elements, never its kind: the walk goes on until that stays.
        first = [_without_items(node.value(index)) for index in range(2, len(node.inputs))]
        turn = Value((), data=None)
        states, (condition, *scans) = self._turns(body, [turn, Value(())], first, before=1)
        if condition.is_rows or condition.is_size:
            raise Mixes("the number of its turns depends on values of rows")
        if any(node.is_used[len(states) :]) and not _has_turn(node):
            raise Mixes("it may have no turn, and stacks nothing then")
        return [*states, *(self._stacked(each, 0) for each in scans)]

    def _turns(
        self,
        body: Message,
        fixed: Sequence[Value],
        states: list[Value],
        *,
        before: int,
        after: Sequence[Value] = (),
    ) -> tuple[list[Value], list[Value]]:
        """Walk through a body until its states stay; return them, and its other outputs."""
        for _ in range(3):  # the first turns may widen sizes, which then must stay
            outputs = self._body(body, [*fixed, *states, *after])
            new = [_without_items(each) for each in outputs[before : before + len(states)]]
            joined = [self._same(pair) for pair in zip(states, new, strict=True)]
            if [*map(self._known, joined)] == [*map(self._known, states)]:
                return joined, [*outputs[:before], *outputs[before + len(states) :]]
            states = joined
        raise Mixes("a state of its turns changes its shape")

    def _known(self, value: Value) -> Value:
        """Return what a state's next turn must not change; widened sizes stand for all."""
        return replace(
            value, shape=tuple(ONE if size in self._widened else size for size in value.shape)
        )

    def _stacked(self, value: Value, axis: int) -> Value:
        at = axis if axis >= 0 else axis + value.rank + 1
        shape = (*value.shape[:at], self.unknowns.new(), *value.shape[at:])
        moved = None if value.axis is None else value.axis + (at <= value.axis)
        return replace(value, shape=shape, axis=moved, items=None, data=None, varies=value.is_size)

    def _scan(self, node: Node) -> list[Value]:
        if node.version < 9:
            raise Mixes("an old Scan has no rule")
        body, num_scans = node.attributes["body"].g, node.number("num_scan_inputs", 0)
        values = [node.value(index) for index in range(len(node.inputs))]
        states, scanned = values[: len(values) - num_scans], values[len(values) - num_scans :]
        if any(each.is_size for each in values):
            raise Mixes("the number of rows meets values")
        axes = node.numbers("scan_input_axes") or (0,) * num_scans
        out_axes = node.numbers("scan_output_axes") or (0,) * (len(body.output) - len(states))
        rows = [
            value.is_rows and _axis(axis, value) == value.axis
            for axis, value in zip(axes, scanned, strict=True)
        ]
        if any(rows):
            return self._scan_rows(node, body, states, scanned, rows, out_axes)
        if not all(
            value.shape[_axis(axis, value)].is_positive
            for axis, value in zip(axes, scanned, strict=True)
        ):
            raise Mixes("it may have no turn, and stacks nothing then")
        slices = [_slice(value, axis) for axis, value in zip(axes, scanned, strict=True)]
        final, scans = self._turns(
            body, [], [_without_items(each) for each in states], before=0, after=slices
        )
        return [
            *final,
            *(self._stacked(each, axis) for each, axis in zip(scans, out_axes, strict=True)),
        ]

    def _scan_rows(
        self,
        node: Node,
        body: Message,
        states: list[Value],
        scanned: list[Value],
        rows: list[bool],
        out_axes: Sequence[int],
    ) -> list[Value]:
        """Walk through a Scan whose turns are rows, each of which sees constants and one row."""
        # ONNX Runtime runs the turns one after the other: a state would carry row 1 into row 2.
        if not all(rows) or any(each.is_rows for each in states):
            raise Mixes("its turns are rows, and it has others besides")
        if any(node.numbers("scan_input_directions") or ()) or any(
            node.numbers("scan_output_directions") or ()
        ):
            raise Mixes("it turns the order of rows")
        if len({(each.shape[each.axis or 0], each.outer) for each in scanned}) > 1:
            raise Mixes("its turns are pieces of rows")
        _require_kept(body, len(states))
        around = [self.scope[name] for name in self._captured(body) if name in self.scope]
        if any(each.is_rows or each.is_size for each in around):
            raise Mixes("its turns see all rows")
        size = scanned[0].shape[scanned[0].axis or 0]
        sources = frozenset[str]().union(*(each.sources for each in scanned))
        self.joined.add(sources)
        # Inside a turn all is about one row, so it counts as constant there.
        one = [replace(_slice(each, each.axis or 0), axis=None) for each in scanned]
        outputs = []
        results = self._body(body, [*map(_without_items, states), *one])[len(states) :]
        for result, axis in zip(results, out_axes, strict=True):
            shape = list(result.shape)
            at = axis if axis >= 0 else axis + len(shape) + 1
            shape.insert(at, size)
            outputs.append(Value(tuple(shape), at, scanned[0].outer, sources=sources))
        return [*states, *outputs]


def _has_turn(node: Node) -> bool:
    """Return whether a Loop has at least one turn. Without one, its outputs have sizes of 0."""
    if node.has(1) and node.value(1).numbers != (1,):
        return False
    limit = (node.value(0).vector or ()) if node.has(0) else (ONE,)
    return len(limit) == 1 and limit[0].is_positive


def _without_items(value: Value) -> Value:
    """Return a state before its first turn: later ones have other elements."""
    if value.is_size:
        raise Mixes("the number of rows meets values")
    return replace(value, items=None, data=None)


def _axis(axis: int, value: Value) -> int:
    return axis + value.rank if axis < 0 else axis


def _slice(value: Value, axis: int) -> Value:
    """Return one turn's slice of a tensor."""
    at = _axis(axis, value)
    shape = tuple(size for each, size in enumerate(value.shape) if each != at)
    moved = None if value.axis is None else value.axis - (at < value.axis)
    return Value(shape, moved, value.outer, sources=value.sources)


def _require_kept(body: Message, num_states: int) -> None:
    """Raise Mixes if a turn changes a state that the next one sees."""
    same = {node.output[0]: node.input[0] for node in body.node if node.op_type == "Identity"}
    for before, after in zip(body.input[:num_states], body.output[:num_states], strict=True):
        name, seen = after.name, set()
        while name in same and name not in seen:
            seen.add(name)
            name = same[name]
        if name != before.name:
            raise Mixes("a turn sees the rows before it")


def _versions(model: Message) -> dict[str, int]:
    """Return the version of each set of operators that a model or function uses."""
    versions: dict[str, int] = {}
    for each in model.opset_import:
        domain = _ONNX if each.domain == _ALSO_ONNX else each.domain
        if versions.get(domain, each.version) != each.version:
            raise Mixes(f"it has two versions of the operators {_shown(domain)}")
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


def _declared(graph: Message, outputs: Iterable[Message]) -> dict[str, Message]:
    """Return the types that a graph declares of its tensors, of these outputs and of no others."""
    infos = (*graph.value_info, *graph.input, *outputs)
    return {each.name: each.type for each in infos if _has_shape(each)}


def _read_outputs(graph: Message) -> list[Message]:
    """Return outputs that nodes may read: nothing follows from the shape of the others."""
    read = {name for node in graph.node for name in node.input}
    has_bodies = any(map(_bodies, graph.node))
    return [each for each in graph.output if has_bodies or each.name in read]


def _has_shape(info: Message) -> bool:
    return bool(info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"))


def _bodies(node: Message) -> list[Message]:
    return [each.g for each in node.attribute if each.HasField("g")]


def _bound(node: Message, attributes: dict[str, Message], absent: set[str]) -> Message:
    """Return a function's node with the caller's attributes in place of references to them."""
    bound = type(node)()
    bound.CopyFrom(node)
    for index, name in enumerate(bound.input):
        if name in absent:
            bound.input[index] = ""
    del bound.attribute[:]
    for each in node.attribute:
        if not each.ref_attr_name:
            bound.attribute.add().CopyFrom(each)
        elif each.ref_attr_name in attributes:
            new = bound.attribute.add()
            new.CopyFrom(attributes[each.ref_attr_name])
            new.name = each.name
    return bound


def _shown(text: Any) -> str:
    """Return a graph's own text, safe in a line of a log."""
    return "".join(each if each.isprintable() else "?" for each in str(text)[:_MAX_TEXT])
