"""Random graphs for the proof of batching: odd attributes, empty lists, sizes 0 and 1, bodies.

A graph grows node by node; a node that ONNX Runtime refuses is left out, so that the whole runs.
"""

import contextlib
import random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.model.onnx_runtime import SessionSettings, new_session

NUM_ROWS = 3
"""Rows of the run that shows what shapes tensors have; constants often have as many."""
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
EQUATIONS = [
    "ij->ij", "ij->ji", "ij,kj->ik", "ij,ij->ij", "ij,ij->i", "ij,ij->j", "ij->i", "ij->j",
    "ijk->ikj", "ijk->jik", "ijk,ijk->ijk", "ijk,ijl->ikl", "ijk,ilk->ijl", "ijk,ljk->il",
]  # fmt: skip


class Drawing:
    """A graph that grows; `model` is what it is so far."""

    def __init__(self, seed):
        self.choose = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.opset = self.choose.choice([11, 13, 17, 18, 18, 21, 22, 23])
        self.inputs = {"x": self.dims()}
        if self.choose.random() < 0.4:
            self.inputs["z"] = self.choose.choice([self.inputs["x"], self.dims()])
        self.open = {name: self.choose.random() < 0.4 for name in self.inputs}
        self.nodes, self.constants, self.functions, self.declared = [], {}, [], []
        self.found = {}
        """Arrays by the names of their tensors, of a run."""
        self.run()

    def dims(self):
        return [
            self.choose.choice([1, 2, 3, 3, 4]) for _ in range(self.choose.choice([1, 1, 2, 2, 3]))
        ]

    def model(self, outputs):
        inputs = [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT,
                ["N", *(f"{name}{i}" if self.open[name] else size for i, size in enumerate(dims))],
            )
            for name, dims in self.inputs.items()
        ]  # fmt: skip
        graph = helper.make_graph(
            self.nodes, "g", inputs, [onnx.ValueInfoProto(name=each) for each in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
            value_info=self.declared,
        )  # fmt: skip
        versions = {"": self.opset, "own": 1, "ai.onnx.ml": 3, "com.microsoft": 1}
        sets = [helper.make_opsetid(*each) for each in versions.items()]
        return helper.make_model(graph, opset_imports=sets, functions=self.functions, ir_version=10)

    def feeds(self, num_rows):
        return {
            name: (self.numbers.standard_normal((num_rows, *dims)) * 2).astype(np.float32)
            for name, dims in self.inputs.items()
        }

    def run(self):
        """Find the shapes of all tensors; whether ONNX Runtime runs it."""
        names = [name for node in self.nodes for name in node.output if name]
        feeds = self.feeds(NUM_ROWS)
        found = dict(feeds)
        if names:
            try:
                found |= dict(
                    zip(names, session_of(self.model(names)).run(names, feeds), strict=True)
                )
            except Exception:  # ONNX Runtime's have no common base
                return False
        if not all(isinstance(each, np.ndarray) for each in found.values()):
            return False
        self.found = {name: each for name, each in found.items() if each.size < 2000}
        return True

    def grow(self):
        """Add a node, if ONNX Runtime takes it."""
        before = list(self.nodes), dict(self.constants), list(self.functions)
        number = len(self.nodes)
        with contextlib.suppress(IndexError, ValueError, ZeroDivisionError):
            self.choose.choice(STEPS)(self)
        if len(self.nodes) == number or not self.run():
            self.nodes, self.constants, self.functions = before

    def add(self, op, inputs, number=1, **attributes):
        empty = [name for name, value in attributes.items() if value == []]
        given = {k: v for k, v in attributes.items() if v is not None and k not in empty}
        outputs = [f"t{len(self.nodes)}_{at}" for at in range(number)]
        node = helper.make_node(op, inputs, outputs, **given)
        node.attribute.extend(
            onnx.AttributeProto(name=each, type=onnx.AttributeProto.INTS) for each in empty
        )
        self.nodes.append(node)
        return outputs

    def declare(self):
        """Declare the shape that a tensor has in a run of some rows, as if it always had it."""
        name = self.choose.choice([each for node in self.nodes for each in node.output])
        array = self.found[name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.declared.append(helper.make_tensor_value_info(name, kind, array.shape))

    def constant(self, array, dtype=None):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array, dtype)
        return name

    def axes(self, op, name, axes, **attributes):
        """Add a node with axes, which newer sets have as an input."""
        is_input = self.opset >= (13 if op in ("Squeeze", "Unsqueeze", "ReduceSum") else 18)
        if axes is None or not is_input:
            return self.add(op, [name], axes=axes, **attributes)
        return self.add(op, [name, self.constant(axes, np.int64)], **attributes)

    def tensor(self, kind="float32", least=0, size=1, most=9):
        """A tensor's name. Empty ones make ONNX Runtime abort in recurrent layers and in Scan."""
        names = [
            name for name, array in self.found.items()
            if array.dtype == kind and least <= array.ndim <= most and array.size >= size
        ]  # fmt: skip
        late = names[-3:] if self.choose.random() < 0.7 else names
        return self.choose.choice(late)

    def axis(self, name):
        rank = self.found[name].ndim
        return self.choose.randrange(-rank, rank)

    def one(self, *values):
        return self.choose.choice(values)

    def some_axes(self, name):
        return self.one(None, [], [self.axis(name)], [0], [-1], [0, -1])

    def like(self, shape):
        """A constant that meets a shape, perhaps with an element for each of the run's rows."""
        kept = [self.one(1, size) for size in shape][self.one(0, 0, 1) :]
        return self.constant(self.numbers.standard_normal(kept), np.float32)

    def like_weights(self, shape):
        return self.constant(self.numbers.standard_normal(shape), np.float32)

    def sizes(self):
        """A vector of sizes of some tensor."""
        (shape,) = self.add("Shape", [self.tensor(self.one("float32", "float32", "int64"))])
        if self.choose.random() < 0.4:
            return shape
        at = self.constant(self.one([0], [1], [0, 1], [1, 0], [-1]), np.int64)
        (taken,) = self.add("Gather", [shape, at])
        if self.choose.random() < 0.4:
            return taken
        more = self.constant(self.one([-1], [1], [2], [0], [4]), np.int64)
        if self.choose.random() < 0.3:
            return self.add(self.one("Mul", "Add", "Div", "Sub", "Max"), [taken, more])[0]
        return self.add("Concat", [taken, more], axis=0)[0]


def session_of(model):
    # ONNX Runtime 1.32 crashes as it moves quantized nodes around others.
    settings = SessionSettings(device="cpu", config={"session.disable_quant_qdq": "1"})
    return new_session(model.SerializeToString(), settings)


def pointwise(g):
    op = g.one("Relu", "Neg", "Sigmoid", "Identity", "Tanh", "Abs", "Floor", "Sign")
    g.add(op, [g.tensor(size=0)])


def cast(g):
    g.add("Cast", [g.tensor(g.one("float32", "int64", "bool"))], to=g.one(1, 7, 9, 6))


def two(g):
    first = g.tensor(size=0)
    second = g.one(g.tensor(size=0), g.like(g.found[first].shape))
    g.add(g.one("Add", "Mul", "Max", "Sub", "PRelu"), g.one([first, second], [second, first]))


def where(g):
    first = g.tensor()
    (condition,) = g.add("Greater", [first, g.one(g.tensor(), g.constant(0.1, np.float32))])
    g.add("Where", [condition, first, g.like(g.found[first].shape)])


def along(g):
    name = g.tensor(least=1)
    op = g.one("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum", "Trilu")
    if op == "CumSum":
        g.add(
            op,
            [name, g.constant(g.axis(name), np.int64)],
            exclusive=g.one(0, 1),
            reverse=g.one(0, 1),
        )
    elif op == "Trilu":
        g.add(op, [name], upper=g.one(0, 1))
    else:
        g.add(op, [name], axis=g.one(None, g.axis(name), 0, -1))


def reduced(g):
    name = g.tensor(least=1)
    kept = g.one(None, 0, 1, 1)
    if g.choose.random() < 0.2:
        g.add(g.one("ArgMax", "ArgMin"), [name], axis=g.axis(name), keepdims=kept,
              select_last_index=g.one(None, 1))  # fmt: skip
        return
    op = g.one("ReduceMax", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceLogSumExp", "ReduceProd")
    noop = g.one(None, 0, 1) if g.opset >= 18 else None
    g.axes(op, name, g.some_axes(name), keepdims=kept, noop_with_empty_axes=noop)


def largest(g):
    name = g.tensor(least=1)
    k = g.one(g.constant([1], np.int64), g.constant([2], np.int64), g.sizes())
    g.add("TopK", [name, k], 2, axis=g.axis(name), sorted=g.one(None, 0, 1))


def normalized(g):
    name = g.tensor(least=2)
    shape = g.found[name].shape
    channels = g.constant(np.ones(shape[1]), np.float32)
    op = g.one("LayerNormalization", "InstanceNormalization", "BatchNormalization", "LRN",
               "MeanVarianceNormalization", "GroupNormalization")  # fmt: skip
    if op == "LayerNormalization":
        axis = g.axis(name)
        g.add(op, [name, g.like(shape[axis:])], axis=axis)
    elif op == "BatchNormalization":
        g.add(op, [name, *[channels] * 4], training_mode=g.one(None, 0, 1))
    elif op == "MeanVarianceNormalization":
        g.add(op, [name], axes=g.one(None, [0], [1], [0, 2], [-1], []))
    elif op == "LRN":
        g.add(op, [name], size=g.one(1, 3))
    else:
        g.add(op, [name, channels, channels], num_groups=1 if op[0] == "G" else None)


def product(g):
    kind = g.one("MatMul", "MatMul", "Gemm", "Einsum", "turned")
    first = g.tensor(least=2, most=2) if kind == "Gemm" else g.tensor(least=1)
    shape = g.found[first].shape
    if kind == "Einsum":
        equation = g.one(*EQUATIONS)
        g.add(kind, [first, g.one(first, g.tensor())][: 1 + equation.count(",")], equation=equation)
    elif kind == "turned":
        g.add("MatMul", [first, g.add("Transpose", [first])[0]])
    elif kind == "Gemm":
        turned = g.one(0, 1)
        other = g.one(first, g.constant(np.ones((shape[-1 - turned], g.one(1, 2))), np.float32))
        more = [g.one(g.tensor(), g.like((NUM_ROWS, 2)))] if g.one(0, 1) else []
        g.add(kind, [first, other, *more], transA=turned, transB=g.one(0, int(other == first)))
    else:
        other = g.one(first, g.tensor(), g.constant(np.ones((shape[-1], 2)), np.float32),
                      g.constant(np.ones((g.one(1, 3), shape[-1], 2)), np.float32))  # fmt: skip
        g.add(kind, g.one([first, other], [other, first]))


def window(g):
    name = g.tensor(least=3)
    shape = g.found[name].shape
    rank = len(shape) - 2
    kernel = [g.one(1, 2, 3) for _ in range(rank)]
    op = g.one("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "MaxPool")
    attributes = {
        "kernel_shape": kernel,
        "strides": g.one(None, [g.one(1, 2, 3) for _ in range(rank)]),
        "dilations": g.one(None, None, [g.one(1, 2) for _ in range(rank)]),
        "auto_pad": g.one(None, None, "SAME_UPPER", "SAME_LOWER", "VALID"),
        "ceil_mode": g.one(None, 0, 1) if "Pool" in op else None,
    }
    if attributes["auto_pad"] is None:
        attributes["pads"] = g.one(None, [g.one(0, 1) for _ in range(2 * rank)])
    if "Pool" in op:
        g.add(op, [name], g.one(1, 1, 2) if op == "MaxPool" else 1, **attributes)
        return
    channels = (shape[1], 2) if op == "ConvTranspose" else (2, shape[1])
    g.add(op, [name, g.constant(np.ones((*channels, *kernel)), np.float32)], **attributes)


def picture(g):
    name = g.tensor(least=3)
    op = g.one("GlobalAveragePool", "GlobalMaxPool", "DepthToSpace", "SpaceToDepth")
    g.add(op, [name], blocksize=g.one(1, 2) if "Depth" in op else None)


def recurrent(g):
    name = g.tensor(least=3)
    op, gates = g.one(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    direction = g.one("forward", "reverse", "bidirectional")
    num = 2 if direction == "bidirectional" else 1
    width = g.found[name].shape[2]
    weights = [g.like_weights((num, gates * 2, size)) for size in (width, 2)]
    layout = g.one(0, 1) if g.opset >= 14 and op != "LSTM" else None
    g.add(op, [name, *weights], 2, hidden_size=2, direction=direction, layout=layout)


def reshaped(g):
    name = g.tensor(g.one("float32", "float32", "int64"), size=0)
    shape = list(g.found[name].shape)
    size = int(np.prod(shape))
    target = g.one(
        [-1], [0, -1], [-1, shape[-1]], [-1, 1], [shape[0], -1], [0, 0, -1], [-1, 2], [2, -1],
        [1, -1], shape[::-1], [-1, *shape[1:]], [*shape, 1], [-1, size // NUM_ROWS], [0, 2, -1],
        [*shape[:-2], -1],
    )  # fmt: skip
    allow = g.one(None, 0, 1) if g.opset >= 14 else None
    g.add("Reshape", [name, g.one(g.constant(target, np.int64), g.sizes())], allowzero=allow)


def axes_moved(g):
    name = g.tensor(g.one("float32", "float32", "int64", "bool"), size=0)
    rank = g.found[name].ndim
    kind = g.one("Flatten", "Transpose", "Squeeze", "Unsqueeze")
    if kind == "Flatten":
        g.add(kind, [name], axis=g.one(None, g.choose.randint(-rank, rank)))
    elif kind == "Transpose":
        g.add(kind, [name], perm=g.one(None, g.choose.sample(range(rank), rank)))
    elif kind == "Squeeze":
        g.axes(kind, name, g.some_axes(name))
    else:
        g.axes(kind, name, g.one([0], [1], [-1], [], [0, -1]))


def repeated(g):
    name = g.tensor()
    shape = list(g.found[name].shape)
    if g.one(0, 1):
        g.add("Tile", [name, g.constant([g.one(1, 1, 2, 0) for _ in shape], np.int64)])
    else:
        target = g.one(shape, [2, *shape], [1], [NUM_ROWS, *shape[1:]], [0, 1])
        g.add("Expand", [name, g.one(g.constant(target, np.int64), g.sizes())])


def joined(g):
    name = g.tensor(least=1, size=0)
    shape = list(g.found[name].shape)
    other = g.one(name, g.tensor(), g.constant(np.ones(shape), np.float32))
    g.add(
        "Concat",
        g.one([name, other], [other, name], [name], [name, other, name]),
        axis=g.axis(name),
    )


def cut(g):
    name = g.tensor(least=1, size=0)
    axis = g.axis(name)
    if g.one(0, 1):
        number = g.one(1, 2)
        g.add("Split", [name], number, axis=axis, num_outputs=number if g.opset >= 18 else None)
        return
    bounds = [
        g.constant([g.one(*values)], np.int64)
        for values in ([0, 0, 1, -1, 2], [2**62, 1, 2, -1, -(2**62)], [axis], [1, 1, 2, -1])
    ]
    if g.choose.random() < 0.3:
        bounds[g.one(0, 1)] = g.sizes()
    g.add("Slice", [name, *bounds])


def border(g):
    name = g.tensor(least=1)
    pads = [g.one(0, 0, 1, -1) for _ in range(2 * g.found[name].ndim)]
    g.add(
        "Pad", [name, g.constant(pads, np.int64)], mode=g.one(None, "edge", "reflect", "constant")
    )


def resized(g):
    name = g.tensor(least=2)
    rank = g.found[name].ndim
    scales = [g.one(1.0, 1.0, 2.0, 0.5, 1.5) for _ in range(rank)]
    scales[0] = g.one(1.0, 1.0, 1.0, 2.0)
    sizes = [g.one(size, 2 * size) for size in g.found[name].shape]
    given = g.one(
        [name, "", g.constant(scales, np.float32)],
        [name, "", "", g.one(g.constant(sizes, np.int64), g.sizes())],
    )
    g.add(
        "Resize", given, mode=g.one(None, "nearest", "linear"),
        nearest_mode=g.one(None, "ceil", "floor"),
        coordinate_transformation_mode=g.one(None, "asymmetric", "align_corners"),
    )  # fmt: skip


def by_number(g):
    name = g.tensor(least=1)
    axis = g.axis(name)
    kind = g.one("Gather", "from", "GatherElements", "ScatterElements", "GatherND", "Compress")
    if kind == "Compress":
        places = g.constant([g.one(True, False) for _ in range(3)], np.bool_)
        g.add(kind, [name, places], axis=g.one(None, axis))
        return
    (small,) = g.add("Cast", [g.add("Clip", [g.tensor(), g.constant(0.0, np.float32),
                                             g.constant(1.0, np.float32)])[0]], to=7)  # fmt: skip
    fixed = g.constant(g.one([0], [-1], 0, [[0, 0]], [0, 0, 0], []), np.int64)
    if kind == "Gather":
        g.add(kind, [name, g.one(fixed, fixed, small)], axis=axis)
    elif kind == "from":
        g.add(
            "Gather", [g.constant(np.arange(8).reshape(4, 2), np.float32), small], axis=g.one(0, 1)
        )
    elif kind == "GatherND":
        g.add(kind, [name, g.one(small, fixed)], batch_dims=g.one(None, 0, 1))
    elif kind == "GatherElements":
        g.add(kind, [name, small], axis=axis)
    else:
        g.add(kind, [name, small, g.tensor()], axis=axis, reduction=g.one(None, "add", "max"))


def one_hot(g):
    values = g.constant([0, 1], np.float32)
    depth = g.one(g.constant([3], np.int64), g.constant(3, np.int64), g.sizes())
    g.add("OneHot", [g.tensor("int64"), depth, values], axis=g.one(None, 0, 1, -1))


def filled(g):
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0])
    g.add("ConstantOfShape", [g.sizes()], value=g.one(None, value))


def counted(g):
    (size,) = g.add("Size", [g.tensor()])
    start, step = (g.constant(each, np.int64) for each in (0, 1))
    (numbers,) = g.add("Range", [start, g.one(size, g.constant(3, np.int64)), step])
    g.add("Cast", [numbers], to=1)


def fourier(g):
    name = g.tensor(least=3)
    if g.opset < 20:
        g.add("DFT", [name], axis=g.axis(name), inverse=g.one(0, 1), onesided=g.one(0, 1))
    else:
        axis = g.constant(g.axis(name), np.int64)
        g.add("DFT", [name, "", axis], inverse=g.one(0, 1), onesided=g.one(0, 1))


def body_of(g, name, op, output):
    """A body of one node that reads a tensor of the graph around it."""
    more = {"Softmax": {"axis": g.one(0, -1)}, "ReduceMax": {"keepdims": 1}}.get(op, {})
    inputs = [name, name] if op == "Add" else [name]
    return helper.make_node(op, inputs, [output], **more)


BODIES = "Neg", "Softmax", "ReduceMax", "Add", "Identity"


def scanned(g):
    name = g.tensor(least=2)
    tag = len(g.nodes)
    other = g.tensor()
    body = helper.make_graph(
        [
            helper.make_node(g.one("Identity", "Neg"), [f"h{tag}"], [f"n{tag}"]),
            body_of(g, g.one(f"v{tag}", f"h{tag}", other), g.one(*BODIES), f"o{tag}"),
        ],
        "body",
        [
            helper.make_tensor_value_info(f"{each}{tag}", TensorProto.FLOAT, None)
            for each in ("h", "v")
        ],
        [onnx.ValueInfoProto(name=f"{each}{tag}") for each in ("n", "o")],
    )
    state = g.one(g.constant([1.0, 2.0], np.float32), g.tensor())
    axes, out_axes = g.one(None, [0], [1]), g.one(None, [0], [1])
    g.add(
        "Scan", [state, name], 2, body=body, num_scan_inputs=1,
        scan_input_axes=axes, scan_output_axes=out_axes,
    )  # fmt: skip


def as_function(g):
    """Call a function of the model of one node."""
    name, tag = g.tensor(), f"f{len(g.nodes)}"
    node = body_of(g, "a", g.one(*BODIES), "b")
    sets = [helper.make_opsetid("", g.opset)]
    g.functions.append(helper.make_function("own", tag, ["a"], ["b"], [node], sets))
    g.add(tag, [name], domain="own")


def quantized(g):
    name = g.tensor(least=1)
    shape = g.found[name].shape
    axis = g.axis(name)
    scale = g.constant(g.one(0.5, np.full(shape[axis], 0.5), [0.5]), np.float32)
    if g.one(0, 1):
        (small,) = g.add("QuantizeLinear", [name, scale], axis=axis if g.opset >= 13 else None)
        g.add("DequantizeLinear", [small, scale], axis=axis if g.opset >= 13 else None)
        return
    (small, scale, zero) = g.add("DynamicQuantizeLinear", [name], 3)
    g.add("DequantizeLinear", [small, scale, zero])


def integers(g):
    name = g.tensor(least=2)
    (left,) = g.add("Cast", [g.add("Abs", [name])[0]], to=2)
    right = g.constant(np.ones((g.found[name].shape[-1], 2)), np.uint8)
    zero = g.constant(g.one(1, [1, 2], [1], np.ones(g.found[name].shape[-2])), np.uint8)
    g.add("Cast", g.add("MatMulInteger", g.one([left, right], [left, right, zero])), to=1)


def sequences(g):
    name = g.tensor(least=2)
    if g.one(0, 1):
        counts = [min(g.found[name].shape[:2])] * g.found[name].shape[g.one(0, 1)]
        g.add("ReverseSequence", [name, g.constant(counts, np.int64)],
              batch_axis=g.one(0, 1), time_axis=g.one(0, 1))  # fmt: skip
        return
    (turned,) = g.add("Transpose", [g.tensor(least=3)], perm=[1, 0, 2])
    width = g.found[g.nodes[-1].input[0]].shape[2]
    weights = [
        g.constant(g.numbers.standard_normal((1, 6, size)), np.float32) for size in (width, 2)
    ]
    (state,) = g.add("Unsqueeze", [g.tensor(least=2), g.constant([0], np.int64)])
    g.add("GRU", [turned, *weights, "", "", g.one("", state)], 2, hidden_size=2)


def attention(g):
    names = [g.tensor(least=3) for _ in range(3)] if g.one(0, 1) else [g.tensor(least=3)] * 3
    shape = g.found[names[0]].shape
    mask = g.one([], [g.like((NUM_ROWS, 1, shape[-2], shape[-2]))], [g.like(shape[-2:] * 2)])
    heads = 1 if len(shape) == 3 else None
    g.add(
        "Attention", [*names, *mask], q_num_heads=heads, kv_num_heads=heads, is_causal=g.one(0, 1)
    )


def classical(g):
    name = g.tensor(least=1, most=g.one(2, 2, 3))
    width = g.found[name].shape[-1]
    kind = g.one("Normalizer", "Scaler", "LinearRegressor", "LinearClassifier", "Imputer",
                 "FeatureVectorizer", "ArrayFeatureExtractor", "OneHotEncoder")  # fmt: skip
    attributes, inputs, number = {}, [name], 1
    if kind == "Normalizer":
        attributes = {"norm": g.one("MAX", "L1", "L2")}
    elif kind == "Scaler":
        attributes = {"scale": g.one([2.0], [2.0] * width), "offset": [1.0] * width}
    elif kind == "LinearRegressor":
        number = g.one(1, 2)
        attributes = {"targets": g.one(None, number), "coefficients": [0.5] * width * number}
        number = 1
    elif kind == "LinearClassifier":
        classes = g.one(2, 3)
        attributes = {"classlabels_ints": list(range(classes)), "intercepts": [0.1] * classes,
                      "coefficients": [float(each) for each in range(width * classes)]}  # fmt: skip
        number = 2
    elif kind == "Imputer":
        attributes = {"imputed_value_floats": [1.0], "replaced_value_float": 0.0}
    elif kind == "FeatureVectorizer":
        inputs, attributes = [name, name], {"inputdimensions": [width, width]}
    elif kind == "ArrayFeatureExtractor":
        small = g.add("Cast", [g.add("HardSigmoid", [g.tensor()])[0]], to=7)[0]
        inputs = [name, g.one(g.constant(g.one([0], [[0, 0]], 0), np.int64), small)]
    else:
        inputs = [g.add("Cast", [name], to=7)[0]]
        attributes = {"cats_int64s": [0, 1, 2], "zeros": 1}
    g.add(kind, inputs, number, domain="ai.onnx.ml", **attributes)


def others(g):
    name = g.tensor(least=2)
    kind = g.one("Det", "Dropout", "STFT", "GridSample", "Shrink", "Softplus", "LpPool", "Mod")
    if kind == "GridSample":
        picture = g.tensor(least=4, most=4)
        (grid,) = g.add("Resize", [name, "", "", g.constant([NUM_ROWS, 2, 2, 2], np.int64)])
        g.add(kind, [picture, g.one(grid, g.tensor(least=4))], align_corners=g.one(0, 1))
    elif kind == "STFT":
        step, window = (g.constant(each, np.int64) for each in (1, 2))
        g.add(kind, [name, step, "", window], onesided=g.one(0, 1))
    elif kind == "Mod":
        g.add(kind, [name, g.like(g.found[name].shape)], fmod=1)
    elif kind == "LpPool":
        g.add("GlobalLpPool", [name], p=g.one(1, 2))
    else:
        g.add(kind, [name])


STEPS = [
    quantized, integers, sequences, attention, classical, classical, others,
    pointwise, cast, two, where, along, reduced, largest, normalized, product, window, picture,
    recurrent, reshaped, axes_moved, repeated, joined, cut, border, resized, by_number, one_hot,
    filled, counted, fourier, scanned, as_function, two, reshaped, axes_moved,
    reshaped, window, cut,
]  # fmt: skip


def draw(seed, num_nodes=10, num_steps=25):
    """Return a random graph, and the names of tensors that can be its output."""
    g = Drawing(seed)
    for _ in range(num_steps):
        if len(g.nodes) < num_nodes:
            g.grow()
    if g.choose.random() < 0.2:
        with contextlib.suppress(IndexError, KeyError):
            g.declare()
    made = [name for node in g.nodes for name in node.output if name in g.found]
    return g, made[-4:]
