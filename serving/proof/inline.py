"""Writes the nodes of a model's functions in place of their calls, before proof and check."""

from collections.abc import Iterable, Iterator

from serving.proof.onnx_file import Message, ModelProto
from serving.proof.values import Mixes, shown

_MAX_NODES, _MAX_BYTES, _MAX_DEPTH = 50_000, 16 << 20, 16
"""Nodes that are written in place of calls, their bytes, and functions in one another. A file of
67 MB whose function calls itself would take 5 GB."""
_MAX_NAMES = 400_000
"""Inputs, outputs and attributes of the functions that are called, counted for each call."""
_RESERVED = "ai.onnx", "com.microsoft", "com.ms.", "org.pytorch."
"""The beginnings of domains in which ONNX Runtime has operators of its own."""

Key = tuple[str, str, str]


def inlined(model: Message) -> Message:
    """Return a model that answers the same without functions.

    Args:
        model: a ModelProto, which is not changed.

    Returns:
        The model itself if its graph calls no function of its own; else a new ModelProto, whose
        nodes have all fields of the calls' and names that no other tensor has. Calls in bodies
        stay: no such body is proved.

    Raises:
        Mixes: a function is ambiguous or malformed, or there would be too many nodes.
    """
    functions = _functions(model)
    if not any(_key(node) in functions for node in model.graph.node):
        return model
    nodes = list(_Inliner(model, functions).written(model.graph.node, {}, 0))
    new = ModelProto()
    new.CopyFrom(model)
    del new.graph.node[:], new.functions[:]
    new.graph.node.extend(nodes)
    known = {each.domain for each in model.opset_import}
    for function in functions.values():
        for each in function.opset_import:
            if each.domain not in known:
                known.add(each.domain)
                new.opset_import.add().CopyFrom(each)
    return new


def _key(message: Message) -> Key:
    return message.domain, message.op_type, message.overload


def _functions(model: Message) -> dict[Key, Message]:
    functions: dict[Key, Message] = {}
    versions = {_domain(each): each.version for each in model.opset_import}
    for each in model.functions:
        if functions.setdefault((each.domain, each.name, each.overload), each) is not each:
            raise Mixes(f"two functions are named {shown(each.name)}")
        if not each.domain or each.domain.startswith(_RESERVED):
            raise Mixes(f"function {shown(each.name)} has the name of an operator")
        # ONNX Runtime runs a function's nodes by the model's versions, not by the function's own.
        for imported in each.opset_import:
            if versions.setdefault(_domain(imported), imported.version) != imported.version:
                raise Mixes(f"function {shown(each.name)} is for other versions of the operators")
    return functions


def _domain(imported: Message) -> str:
    return "" if imported.domain == "ai.onnx" else str(imported.domain)


class _Inliner:
    """Calls on the way to their nodes; `written` yields them."""

    def __init__(self, model: Message, functions: dict[Key, Message]) -> None:
        self._functions = functions
        self._prefix = _free_prefix(model)
        self._num_nodes = self._num_bytes = self._num_calls = self._num_names = 0

    def written(
        self, nodes: Iterable[Message], names: dict[str, str], depth: int
    ) -> Iterator[Message]:
        """Yield nodes by the names of the graph, and those of functions in place of calls."""
        for node in nodes:
            function = self._functions.get(_key(node))
            if function is None:
                yield self._named(node, names) if depth else node
            else:
                yield from self._called(self._named(node, names), function, depth + 1)

    def _named(self, node: Message, names: dict[str, str]) -> Message:
        """Return a copy of a node with other names of its tensors."""
        self._num_nodes += 1
        self._num_bytes += node.ByteSize()
        self._require_room(0)
        copy = type(node)()
        copy.CopyFrom(node)
        copy.input[:] = [names.get(each, each) for each in node.input]
        copy.output[:] = [names.get(each, each) for each in node.output]
        return copy

    def _require_room(self, num_bytes: int) -> None:
        """Raise Mixes if this number of bytes more would be too much."""
        is_large = self._num_bytes + num_bytes > _MAX_BYTES
        if is_large or self._num_nodes > _MAX_NODES or self._num_names > _MAX_NAMES:
            raise Mixes("its functions are too large to prove")

    def _called(self, call: Message, function: Message, depth: int) -> Iterator[Message]:
        if depth > _MAX_DEPTH:
            raise Mixes("its functions are nested too deeply")
        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            raise Mixes(f"function {shown(function.name)} has fewer inputs or outputs than a call")
        self._num_calls += 1
        self._num_names += len(function.input) + len(function.output)
        self._num_names += len(function.attribute_proto)
        self._require_room(0)
        prefix = f"{self._prefix}{self._num_calls}/"
        given = [*call.input, *[""] * (len(function.input) - len(call.input))]
        outside = dict(zip(function.input, given, strict=True))
        names = {"": ""} | outside
        inner = {each for node in function.node for each in node.output} | {*function.output}
        names_of_all = [*function.input, *function.output]
        if inner & outside.keys() or len({*names_of_all}) < len(names_of_all):
            raise Mixes(f"function {shown(function.name)} passes an input on, or names one twice")
        names |= {each: prefix + each for each in inner if each}
        names |= {
            name: outer for name, outer in zip(function.output, call.output, strict=False) if outer
        }
        # A name that is no input and no output is one of the graph around, which it can't see.
        unknown = {each for node in function.node for each in node.input} - names.keys()
        if unknown:
            raise Mixes(f"function {shown(function.name)} reads {shown(min(unknown))}, unknown")
        attributes = {each.name: each for each in (*function.attribute_proto, *call.attribute)}
        # One after the other: each may have a copy of a large attribute.
        nodes = (self._bound(node, attributes) for node in function.node)
        yield from self.written(nodes, names, depth)

    def _bound(self, node: Message, attributes: dict[str, Message]) -> Message:
        """Return a function's node with the caller's attributes in place of references to them."""
        if any(each.HasField("g") or each.graphs for each in node.attribute):
            raise Mixes("a function with a body has no rule")
        names = [each.ref_attr_name for each in node.attribute]
        if not any(names):
            return node
        self._require_room(sum(attributes[each].ByteSize() for each in names if each in attributes))
        bound = type(node)()
        bound.CopyFrom(node)
        del bound.attribute[:]
        for each in node.attribute:
            if not each.ref_attr_name:
                bound.attribute.add().CopyFrom(each)
            elif each.ref_attr_name in attributes:
                new = bound.attribute.add()
                new.CopyFrom(attributes[each.ref_attr_name])
                new.name = each.name
        return bound


def _free_prefix(model: Message) -> str:
    """Return the beginning of names that no tensor of the model has, also in bodies."""
    graph = model.graph
    data = {each for node in graph.node for each in (*node.input, *node.output)}
    data |= {each.name for each in (*graph.initializer, *graph.input, *graph.value_info)}
    data |= {each.values.name for each in graph.sparse_initializer}
    prefix = "inlined"
    while any(str(each).startswith(prefix) for each in data):
        prefix += "_"
    return prefix
