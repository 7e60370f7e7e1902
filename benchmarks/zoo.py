"""Networks of unlike kinds to measure: a CNN, a text encoder, a tabular one, and the digits.

Their weights are random, so their answers mean nothing; they take the time and the memory of real
ones. Inputs are small enough for JSON, which the peers speak.

cnn      depthwise convolutions as in MobileNetV2, 96 x 96 x 3 bytes, 100 logits
encoder  two layers of a transformer, 32 tokens, an embedding of 128 numbers
tabular  100 trees of depth 6 on 30 numbers
digits   the bundled model, and its own int8 variant
"""

import logging
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from digit_classifier import PRETRAINED
from serving.commandline.installation import require
from serving.model.onnx_runtime import runtime
from serving.model.repository import load_manifest

MODELS = ("digits", "cnn", "encoder", "tabular")
_OPSET, _IR = 17, 8
_TOKENS, _VOCABULARY, _WIDTH, _HEADS = 32, 2_000, 128, 4
_FEATURES, _TREES, _DEPTH = 30, 100, 6
_CALIBRATION_ROWS = 16
INPUTS = {"digits": "images", "cnn": "x", "encoder": "x", "tabular": "x"}
"""The input of each network, whose first axis is rows."""
_NUM_ROWS = 256


def rows(name: str, seed: int) -> npt.NDArray[Any]:
    """Draw inputs of a network, as long as real ones are in JSON.

    Args:
        name: of the network.
        seed: the same seed draws the same rows.

    Returns:
        256 rows: digits of the bundled model's samples, pictures, words, or numbers.
    """
    generator = np.random.default_rng(seed)
    if name == "digits":
        images = load_manifest(PRETRAINED / "digits" / "1").golden_images
        return np.resize(images, (_NUM_ROWS, images.shape[1]))
    if name == "cnn":
        return generator.integers(0, 256, (_NUM_ROWS, 96, 96, 3)).astype(np.uint8)
    if name == "encoder":
        return generator.integers(0, _VOCABULARY, (_NUM_ROWS, _TOKENS))
    return generator.random((_NUM_ROWS, _FEATURES)).astype(np.float32)


def make(folder: Path, names: tuple[str, ...] = MODELS) -> None:
    """Write the networks that a folder lacks: NAME.onnx, and NAME.int8.onnx where there is one.

    Raises:
        ModuleNotFoundError: onnx is not installed.
        OSError: a file can't be written.
    """
    require("onnx", "onnxruntime")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (folder / f"{name}.onnx").exists():
            _MAKERS[name](folder / f"{name}.onnx")


class _Graph:
    """A graph that grows node by node, with random weights."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._generator = np.random.default_rng(seed)

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Add random weights, and return their name."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        scale = scale if scale is not None else (2 / fan_in) ** 0.5
        return self.constant(self._generator.normal(0, scale, shape).astype(np.float32))

    def constant(self, values: npt.NDArray[Any]) -> str:
        """Add a constant, and return its name."""
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        from onnx import helper

        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def save(self, path: Path, kind: int, sizes: list[int], output: str, size: int) -> None:
        """Write the graph: `x`, (N, *sizes), to `y`, (N, size) float32."""
        import onnx
        from onnx import TensorProto, helper

        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info("x", kind, ["N", *sizes])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", size])],
            self.weights,
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", 3)]
        model = helper.make_model(graph, ir_version=_IR, opset_imports=opsets)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def _cnn(path: Path) -> None:
    from onnx import TensorProto

    graph = _Graph(1)
    values = graph.add("Cast", "x", to=TensorProto.FLOAT)
    values = graph.add("Mul", values, graph.constant(np.array([1 / 255], np.float32)))
    values = graph.add("Transpose", values, perm=[0, 3, 1, 2])

    def convolve(values: str, shape: tuple[int, ...], *, stride: int = 1, groups: int = 1) -> str:
        pads = [shape[2] // 2] * 4
        names = values, graph.weight(*shape), graph.weight(shape[0], scale=0.01)
        return graph.add("Conv", *names, strides=[stride] * 2, pads=pads, group=groups)

    values, channels = graph.add("Relu", convolve(values, (32, 3, 3, 3), stride=2)), 32
    for outputs, stride in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1), (64, 2), (64, 1), (96, 1)):
        wide = 6 * channels if channels != 32 or stride != 1 else channels
        block = graph.add("Relu", convolve(values, (wide, channels, 1, 1)))
        block = convolve(block, (wide, 1, 3, 3), stride=stride, groups=wide)
        block = convolve(graph.add("Relu", block), (outputs, wide, 1, 1))
        is_residual = outputs == channels and stride == 1
        values = graph.add("Add", values, block) if is_residual else block
        channels = outputs
    values = graph.add("Flatten", graph.add("GlobalAveragePool", values))
    logits = graph.add("Gemm", values, graph.weight(channels, 100), graph.weight(100, scale=0.01))
    graph.save(path, TensorProto.UINT8, [96, 96, 3], logits, 100)
    images = np.random.default_rng(0).integers(0, 256, (_CALIBRATION_ROWS, 96, 96, 3))
    _quantize(path, images.astype(np.uint8))


def _encoder(path: Path) -> None:
    from onnx import TensorProto

    graph = _Graph(2)
    values = graph.add("Gather", graph.weight(_VOCABULARY, _WIDTH, scale=1.0), "x")
    split = graph.constant(np.array([0, _TOKENS, _HEADS, _WIDTH // _HEADS]))
    joined = graph.constant(np.array([0, _TOKENS, _WIDTH]))
    ones, zeros = np.ones(_WIDTH, np.float32), np.zeros(_WIDTH, np.float32)
    norm = graph.constant(ones), graph.constant(zeros)
    root = graph.constant(np.array([(_WIDTH // _HEADS) ** -0.5], np.float32))

    def dense(values: str, inputs: int, outputs: int) -> str:
        product = graph.add("MatMul", values, graph.weight(inputs, outputs))
        return graph.add("Add", product, graph.weight(outputs, scale=0.01))

    def heads(values: str, perm: list[int]) -> str:
        shaped = graph.add("Reshape", dense(values, _WIDTH, _WIDTH), split)
        return graph.add("Transpose", shaped, perm=perm)

    for _ in range(2):
        query, key = heads(values, [0, 2, 1, 3]), heads(values, [0, 2, 3, 1])
        scores = graph.add("Mul", graph.add("MatMul", query, key), root)
        mixed = graph.add(
            "MatMul", graph.add("Softmax", scores, axis=-1), heads(values, [0, 2, 1, 3])
        )
        mixed = graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        summed = graph.add("Add", values, dense(mixed, _WIDTH, _WIDTH))
        values = graph.add("LayerNormalization", summed, *norm, axis=-1)
        inner = graph.add("Relu", dense(values, _WIDTH, 4 * _WIDTH))
        summed = graph.add("Add", values, dense(inner, 4 * _WIDTH, _WIDTH))
        values = graph.add("LayerNormalization", summed, *norm, axis=-1)
    mean = graph.add("ReduceMean", values, axes=[1], keepdims=0)
    graph.save(path, TensorProto.INT64, [_TOKENS], mean, _WIDTH)
    tokens = np.random.default_rng(0).integers(0, _VOCABULARY, (_CALIBRATION_ROWS, _TOKENS))
    _quantize(path, tokens)


def _tabular(path: Path) -> None:
    from onnx import TensorProto

    generator = np.random.default_rng(3)
    inner, every = 2**_DEPTH - 1, 2 ** (_DEPTH + 1) - 1
    numbers = np.arange(every)
    is_leaf = numbers >= inner
    leaves = numbers[is_leaf]
    tree = np.repeat(np.arange(_TREES), every)
    graph = _Graph(3)
    values = graph.add(
        "TreeEnsembleRegressor",
        "x",
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=tree.tolist(),
        nodes_nodeids=np.tile(numbers, _TREES).tolist(),
        nodes_featureids=generator.integers(0, _FEATURES, tree.size).tolist(),
        nodes_modes=["LEAF" if leaf else "BRANCH_LEQ" for leaf in np.tile(is_leaf, _TREES)],
        nodes_values=generator.random(tree.size).astype(np.float32).tolist(),
        nodes_truenodeids=np.tile(np.where(is_leaf, 0, 2 * numbers + 1), _TREES).tolist(),
        nodes_falsenodeids=np.tile(np.where(is_leaf, 0, 2 * numbers + 2), _TREES).tolist(),
        target_treeids=np.repeat(np.arange(_TREES), leaves.size).tolist(),
        target_nodeids=np.tile(leaves, _TREES).tolist(),
        target_ids=[0] * (_TREES * leaves.size),
        target_weights=generator.normal(0, 1, _TREES * leaves.size).astype(np.float32).tolist(),
    )
    graph.save(path, TensorProto.FLOAT, [_FEATURES], values, 1)


def _digits(path: Path) -> None:
    folder = PRETRAINED / "digits" / "1"
    shutil.copyfile(folder / "model.onnx", path)
    shutil.copyfile(folder / "model.int8.onnx", path.with_name(f"{path.stem}.int8.onnx"))


def _quantize(path: Path, rows: npt.NDArray[Any]) -> None:
    """Write the int8 variant: constant scales, so that no row depends on its batch."""
    runtime()  # first: it turns ONNX Runtime's telemetry off
    quantization = import_module("onnxruntime.quantization")

    class Rows(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._rows: Iterator[npt.NDArray[Any]] = iter(rows[:, np.newaxis])

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            row = next(self._rows, None)
            return None if row is None else {"x": row}

    target = path.with_name(f"{path.stem}.int8.onnx")
    logging.disable(logging.WARNING)  # of advice to run other tools first
    try:
        int8 = quantization.QuantType.QInt8
        quantization.quantize_static(
            str(path), str(target), Rows(), per_channel=True, weight_type=int8
        )
    finally:
        logging.disable(logging.NOTSET)


_MAKERS = {"digits": _digits, "cnn": _cnn, "encoder": _encoder, "tabular": _tabular}
