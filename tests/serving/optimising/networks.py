"""Networks with weights that mean something, and samples of real digits, for `optimize`."""

from functools import cache
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

from serving.model.onnx_runtime import new_session
from tests.serving.model.graphs import model, node, value

_SAMPLE = Path(__file__).parents[2] / "data" / "mnist-sample.npz"
_KERNELS = 16


@cache
def digits():
    """Real digits: (N, 1, 28, 28) float32 from 0 to 1, and their labels."""
    with np.load(_SAMPLE) as file:
        names = {name: file[name] for name in file.files}
    images = next(each for each in names.values() if each.ndim >= 2 and each.dtype == np.uint8)
    labels = next(each for each in names.values() if each.ndim == 1)
    return images.reshape(-1, 1, 28, 28).astype(np.float32) / 255, labels.astype(np.int64)


def reader(**options):
    """A copy of `fitted`, which may be changed."""
    network = fitted(**options)
    copy = type(network)()
    copy.CopyFrom(network)
    return copy


@cache
def fitted(*, opset=17, softmax=True, batch="N"):
    """A network of convolutions that reads digits: x FP32 [N, 1, 28, 28] -> y FP32 [N, 10].

    Its convolutions are random, its last layer is fitted to real digits.
    """
    images, labels = digits()
    half = len(images) // 2
    features = _features(opset, batch)
    session = new_session(features.SerializeToString())
    rows = np.concatenate([session.run(None, {"x": each[None]})[0] for each in images[:half]])
    rows = np.concatenate([rows, np.ones((half, 1), np.float32)], axis=1)
    wanted = np.eye(10, dtype=np.float32)[labels[:half]] * 12 - 6
    solved = np.linalg.solve(rows.T @ rows + 10 * np.eye(rows.shape[1]), rows.T @ wanted)
    last = "logits" if softmax else "y"
    features.graph.node.append(node("Gemm", ["features", "last", "bias"], [last], name="last"))
    if softmax:
        features.graph.node.append(node("Softmax", ["logits"], ["y"], name="softmax", axis=-1))
    for name, array in (("last", solved[:-1]), ("bias", solved[-1])):
        features.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    del features.graph.output[:]
    features.graph.output.append(value("y", "FP32", [batch, 10]))
    return features


def _features(opset, batch):
    generator = np.random.default_rng(0)

    def weights(*shape):
        return generator.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)

    inner = 2 * _KERNELS
    nodes = [
        node("Conv", ["x", "k1", "b1"], ["c1"], name="one", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], name="relu1"),
        node("MaxPool", ["r1"], ["p1"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "k2", "b2"], ["c2"], name="two", pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"], name="relu2"),
        node("AveragePool", ["r2"], ["p2"], name="mean", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p2"], ["features"], name="flat"),
    ]
    constants = {
        "k1": weights(_KERNELS, 1, 3, 3),
        "b1": weights(_KERNELS, 1)[:, 0] / 10,
        "k2": weights(inner, _KERNELS, 3, 3),
        "b2": weights(inner, 1)[:, 0] / 10,
    }
    inputs = [value("x", "FP32", [batch, 1, 28, 28])]
    return model(nodes, inputs, [value("features", "FP32", None)], constants, opset)


def with_constant_part(network, amount):
    """The same with a number added to its logits: a large part that all answers share."""
    changed = type(network)()
    changed.CopyFrom(network)
    changed.graph.node[-1].output[0] = "inner"
    changed.graph.initializer.append(
        numpy_helper.from_array(np.full(10, amount, np.float32), "amount")
    )
    changed.graph.node.append(helper.make_node("Add", ["inner", "amount"], ["y"], name="more"))
    return changed


def samples(folder, num=600, *, labels=True, name="samples.npz", **others):
    """Write samples to a file: the second half of the digits, which shaped no weights."""
    images, classes = digits()
    chosen = {"x": images[-num:]}
    if labels:
        chosen["labels"] = classes[-num:]
    path = folder / name
    np.savez(path, **{**chosen, **others})
    return path
