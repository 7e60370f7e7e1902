"""Which outputs of a model are the class of a row, and the probabilities of all classes.

One definition, by the graph: what an operator for classifiers calls the label or the probabilities,
an ArgMax, a Softmax or Normalizer at the end, with nothing behind them that changes their meaning.
Else the only table with a column for each class that the file names, as ZipMap does.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.proof.onnx_fields import Fields
from serving.tensors import Array, Tensor, TensorSignature, is_label

_GRAPH, _NODE, _INPUTS, _OUTPUTS, _OPERATOR = 7, 1, 1, 2, 4
"""Fields of ModelProto, GraphProto and NodeProto (protos/onnx/onnx.proto)."""
_METADATA, _LABELS = 14, b"labels"
"""ModelProto.metadata_props, and the key of a classifier's labels, a list as JSON."""
_MAX_METADATA_BYTES = 1 << 20
_MAX_NAME_BYTES = 4096
_CLASSIFIERS = {"TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier"}
"""Operators whose first output is the label and whose second one has the probabilities."""
_SAME = {"Identity", "Cast", "Reshape", "Squeeze", "Flatten", "LabelEncoder", "ZipMap"}
"""Operators behind which a label is a label, and a probability a probability."""
_CHOOSING = {"ArrayFeatureExtractor", "Gather"}
"""Operators that choose one of the classes by the number in their second input."""
_PROBABILITIES = {"Softmax", "Normalizer"}
_MAX_STEPS = 32
_ROUNDING = 1e-2
"""How far the probabilities of a row may be from 1 together."""

_Nodes = Mapping[str, tuple[str, int, Sequence[str]]]
"""By output: the operator, which of its outputs that is, and its inputs."""


class Answers(NamedTuple):
    """Where a classifier's answers are among its outputs."""

    label: int | None
    """The output with the class of each row."""
    probabilities: int | None
    """The output with a column for each class."""
    names: tuple[str, ...]
    """The names of the columns; none if they are not known."""

    def kept(self, outputs: Sequence[Array]) -> dict[str, Array]:
        """Return what is counted of a run, a label or a row of probabilities for each row.

        Args:
            outputs: of the run, all of them.
        """
        found = {}
        if self.label is not None:
            found["label"] = outputs[self.label].ravel()
        if self.probabilities is not None and outputs[self.probabilities].ndim == 2:
            found["table"] = outputs[self.probabilities]
        return found

    def counted(
        self, runs: Sequence[Mapping[str, Array]]
    ) -> tuple[Counter[str], list[npt.NDArray[np.float32]]]:
        """Count the rows of many runs: at once, which takes a tenth of the time of each alone.

        Args:
            runs: what `kept` has returned, of each.

        Returns:
            How many rows were answered with each class; and the highest probabilities of rows that
            are distributions.
        """
        classes, confidences = Counter[str](), list[npt.NDArray[np.float32]]()
        if labels := [run["label"] for run in runs if "label" in run]:
            classes.update(map(_text, np.concatenate(labels).tolist()))
        widths: dict[int, list[Array]] = {}
        for table in [run["table"] for run in runs if "table" in run]:
            if table.size:
                widths.setdefault(table.shape[1], []).append(table)
        for tables in widths.values():
            table = np.concatenate(tables)
            if self.label is None:
                names, numbers = self.names, table.argmax(axis=1)
                found = zip(*np.unique(numbers, return_counts=True), strict=True)
                for number, times in found:
                    name = names[number] if number < len(names) else str(number)
                    classes[name] += int(times)
            sums = table.sum(axis=1, dtype=np.float64)
            is_distribution = (np.abs(sums - 1) <= _ROUNDING) & (table.min(axis=1) >= 0)
            confidences.append(table.max(axis=1)[is_distribution].astype(np.float32))
        return classes, confidences


def find_answers(
    onnx: bytes, tensors: TensorSignature, names: tuple[str, ...] = ()
) -> Answers | None:
    """Return where a graph's answers are; None if it does not show that it has some.

    Args:
        onnx: the file.
        tensors: the inputs and outputs of its graph.
        names: of the classes, as far as the file has them.
    """
    nodes: _Nodes = {}
    with suppress(ValueError):  # too many nodes to look at
        nodes = _nodes_in(onnx)
    label = probabilities = None
    for number, tensor in enumerate(tensors.outputs):
        kind = _kind_of(tensor.name, nodes)
        if label is None and kind == "label" and _is_column(tensor):
            label = number
        elif probabilities is None and kind == "probabilities" and _is_table(tensor):
            probabilities = number
    if probabilities is None and names:
        named = [at for at, each in enumerate(tensors.outputs) if _is_table(each, len(names))]
        probabilities = named[0] if len(named) == 1 else None
    if label is None and probabilities is None:
        return None
    return Answers(label, probabilities, names)


def _kind_of(name: str, nodes: _Nodes) -> str:
    """Return "label" or "probabilities"; empty for any other output."""
    for _ in range(_MAX_STEPS):
        operator, place, inputs = nodes.get(name, ("", 0, ()))
        if operator in _CLASSIFIERS:
            return ("label", "probabilities")[place] if place < 2 else ""
        if operator == "ArgMax":
            return "label"
        if operator in _PROBABILITIES:
            return "probabilities"
        if operator in _CHOOSING and len(inputs) > 1:
            name = inputs[1]
        elif operator in _SAME and inputs:
            name = inputs[0]
        else:
            return ""
    return ""


def _nodes_in(onnx: bytes) -> _Nodes:
    fields = Fields(io.BytesIO(onnx))
    nodes: dict[str, tuple[str, int, Sequence[str]]] = {}
    for field, begin, end in fields.of(0, len(onnx)):
        for inner, first, last in fields.of(begin, end) if field == _GRAPH else ():
            if inner != _NODE:
                continue
            operator, inputs, outputs = "", list[str](), list[str]()
            for part, at, to in fields.of(first, last):
                if part in (_INPUTS, _OUTPUTS, _OPERATOR) and to - at <= _MAX_NAME_BYTES:
                    text = onnx[at:to].decode("utf-8", "replace")
                    if part == _OPERATOR:
                        operator = text
                    else:
                        (inputs if part == _INPUTS else outputs).append(text)
            nodes |= {name: (operator, place, inputs) for place, name in enumerate(outputs)}
    return nodes


def _is_column(tensor: Tensor) -> bool:
    """Return whether an output may have one class for each row."""
    return len(tensor.shape) == 1 or (len(tensor.shape) == 2 and tensor.shape[1] == 1)


def _is_table(tensor: Tensor, num_columns: int | None = None) -> bool:
    """Return whether an output may have a probability for each row and class."""
    if tensor.datatype not in ("FP16", "FP32", "FP64") or len(tensor.shape) != 2:
        return False
    return num_columns is None or tensor.shape[1] in (-1, num_columns)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def labels_of(onnx: bytes) -> tuple[str, ...]:
    """Return the names of a classifier's classes, which an export has put into the file."""
    if _LABELS not in onnx[-_MAX_METADATA_BYTES:]:
        return ()
    fields = Fields(io.BytesIO(onnx))
    with suppress(ValueError, TypeError):
        for field, begin, end in fields.of(0, len(onnx)):
            if field == _METADATA and end - begin <= _MAX_METADATA_BYTES:
                parts = fields.of(begin, end)
                entry = {number: onnx[first:last] for number, first, last in parts}
                if entry.get(1) == _LABELS:
                    found = json.loads(entry.get(2, b""))
                    return tuple(found) if all(map(is_label, found)) else ()
    return ()
