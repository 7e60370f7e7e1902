"""Which layers lose most when they are quantized: found tensor by tensor, sample by sample.

In a copy of the quantized graph each rounding has a switch, a number that a run gets:

    x ─▶ QuantizeLinear ─▶ DequantizeLinear ─▶ y      becomes      x + switch * (y - x)

so that one session answers with any of them rounded. Each tensor is rounded alone; its loss is how
far the outputs then are from fp32's. Such losses add up, more or less: they say in which order
layers are worth leaving in fp32.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.model.onnx_runtime import SessionSettings, new_session
from serving.optimising.source import quiet
from serving.tensors import Array, Feeds

_MOST_CALLS = 16
"""Calls that are compared, if there is time for as many."""
_MOST_S = 60.0
"""How long that may take: tensors that follow one another are rounded together, if there are too
many to round each alone."""
_AS_IN_FILE = SessionSettings(device="cpu", optimization="none", keeps_memory=True)
_SWITCH = "rounding-switch-{}"


@dataclass(frozen=True, slots=True)
class TensorLoss:
    """What the rounding of one tensor costs, or of some that follow one another."""

    tensors: tuple[str, ...]
    loss: float
    """Squared error of the outputs, relative to their squares."""
    nodes: tuple[str, ...]
    """The nodes that have one as an input or output: all have to stay fp32, if they are to."""


def losses(
    plain: Path, quantized: Path, calls: Sequence[Feeds], is_late: Callable[[], bool]
) -> list[TensorLoss]:
    """Return the loss of each tensor that is rounded, the greatest first.

    Args:
        plain: the prepared graph.
        quantized: what a static quantizer made of it, with all its activations.
        calls: those to compare with.
        is_late: whether to end with the tensors that are known.
    """
    import onnx  # late: the extra

    model = onnx.load(plain)
    switched, tensors = _with_switches(onnx.load(quantized), model)
    outputs = [each.name for each in model.graph.output]
    with quiet():
        session = new_session(switched.SerializeToString(), _AS_IN_FILE)
        exact = new_session(model.SerializeToString(), _AS_IN_FILE)
    off = {_SWITCH.format(at): np.zeros((), np.float32) for at in range(len(tensors))}
    on = np.ones((), np.float32)
    touching = _touching(model)

    def answer(call: Feeds, numbers: Sequence[int]) -> list[Array]:
        switches = {**off, **{_SWITCH.format(at): on for at in numbers}}
        found: list[Array] = session.run(outputs, {**call, **switches})
        return found

    answer(calls[0], ())
    begin_s = time.perf_counter()
    answer(calls[0], range(len(tensors)))
    all_s = (time.perf_counter() - begin_s) * max(1, len(tensors))
    size = max(1, math.ceil(all_s / _MOST_S))
    compared = calls[: max(1, min(_MOST_CALLS, int(_MOST_S / max(all_s, 1e-9))))]
    wanted = [exact.run(outputs, dict(call)) for call in compared]

    def loss_of(numbers: Sequence[int]) -> float:
        pairs = zip(compared, wanted, strict=True)
        return sum(_distance(want, answer(call, numbers)) for call, want in pairs)

    found = []
    for at in range(0, len(tensors), size):
        if is_late():
            break
        numbers = range(at, min(at + size, len(tensors)))
        together = tuple(tensors[number] for number in numbers)
        nodes = dict.fromkeys(node for each in together for node in touching.get(each, ()))
        found.append(TensorLoss(together, loss_of(numbers) / len(compared), tuple(nodes)))
    return sorted(found, key=lambda each: -each.loss)


def _with_switches(quantized: Any, plain: Any) -> tuple[Any, list[str]]:
    """Return the quantized graph with a switch for each rounding, and what they round."""
    from onnx import TensorProto, helper

    graph = quantized.graph
    rounded = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"
    }
    weights = {each.name: each for each in plain.graph.initializer}
    present = {each.name for each in graph.initializer}
    numbers: dict[str, int] = {}
    nodes = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in weights:
            # A bias keeps its name: of 32 bits, it loses nothing, and not every one can be run.
            graph.initializer.append(weights[node.output[0]])
            continue
        nodes.append(node)
        if node.op_type != "DequantizeLinear":
            continue
        source = rounded.get(node.input[0])
        if source is None:  # a weight, which the file has as integers
            source = node.input[0].removesuffix("_quantized")
            if source not in weights:
                continue
            if source not in present:
                graph.initializer.append(weights[source])
                present.add(source)
        number = numbers.setdefault(source, len(numbers))
        target = node.output[0]
        raw, away, some = (f"{target}-{word}" for word in ("raw", "away", "some"))
        node.output[0] = raw
        nodes += [
            helper.make_node("Sub", [raw, source], [away]),
            helper.make_node("Mul", [away, _SWITCH.format(number)], [some]),
            helper.make_node("Add", [source, some], [target]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    for number in numbers.values():
        name = _SWITCH.format(number)
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    return quantized, list(numbers)


def _touching(model: Any) -> dict[str, tuple[str, ...]]:
    """Return the nodes that have a tensor as an input or output, by the tensor's name."""
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in {*node.input, *node.output}:
            found.setdefault(name, []).append(node.name)
    return {name: tuple(nodes) for name, nodes in found.items()}


def _distance(wanted: Sequence[Array], answers: Sequence[Array]) -> float:
    """Return the squared error of all outputs, each relative to its squares."""
    total = 0.0
    for want, each in zip(wanted, answers, strict=True):
        if want.dtype.kind != "f":
            continue
        if want.shape != each.shape:
            total += 1.0
            continue
        size = float((want.astype(np.float64) ** 2).sum())
        error = float(((each.astype(np.float64) - want) ** 2).sum())
        total += error / size if size and math.isfinite(error) else float(error > 0)
    return total


def left_out(found: Sequence[TensorLoss], most_share: float) -> list[tuple[str, ...]]:
    """Return sets of nodes to leave in fp32, each larger than the one before.

    Each set halves the loss that is left, more or less.

    Args:
        found: the losses, the greatest first.
        most_share: the share of the tensors that may stay fp32.
    """
    rest = sum(each.loss for each in found)
    aim = rest / 2
    sets: list[tuple[str, ...]] = []
    nodes: dict[str, None] = {}
    for number, each in enumerate(found, 1):
        if number > max(1, most_share * len(found)) or each.loss <= 0:
            break
        nodes |= dict.fromkeys(each.nodes)
        rest -= each.loss
        if rest <= aim and nodes:
            sets.append(tuple(nodes))
            aim = rest / 2
    return sets
