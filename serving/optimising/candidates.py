"""What is tried: the variants of a graph, each made by one of ONNX Runtime's quantizers.

int8      static: QuantizeLinear and DequantizeLinear around the operators, with scales from
          samples; weights by channel
nbits     MatMulNBits: 8-bit weights in blocks of 128, activations rounded row by row as it runs
dynamic   int8 weights, one scale for a whole tensor of activations, found in each run: rows of a
          batch change one another, so only a model that is not batched anyway has it
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from serving.optimising.source import quiet
from serving.system.usage import processor
from serving.tensors import Feeds

Kind = Literal["int8", "nbits", "dynamic"]
Activations = Literal["u8", "s8"]
Calibration = Literal["minmax", "percentile"]
_CALIBRATIONS: tuple[Calibration, ...] = ("minmax", "percentile")
_PERCENTILE = 99.99
_WILD = 1e18
"""Numbers from here on stand for infinity: in 256 steps of these all others are 0."""
_NARROW = 1e-3
"""The range of a tensor, relative to its greatest number, in which 2,048 bins of float32 have no
room."""
_BLOCK, _BITS, _INT8_ACCURACY = 128, 8, 4
_PRODUCTS = "Conv", "ConvTranspose", "MatMul", "Gemm"
_PROBABILITIES = "Softmax", "Sigmoid"
_PASSED = "Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"
"""Operators that change no number."""
_WIDE = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
"""Features of processors that add products of bytes in 32 bits: others add two in 16, and saturate
unless weights have 7 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A variant of the graph, before it is made."""

    kind: Kind
    activations: Activations = "u8"
    """Static only."""
    calibration: Calibration = "minmax"
    """Static only."""
    has_reduced_range: bool = False
    """Whether weights have 7 bits, so that no processor saturates; static only."""
    only_products: bool = False
    """Whether only convolutions and matrix products are quantized; static only."""
    kept: tuple[str, ...] = ()
    """Nodes that stay fp32; static only."""

    def __str__(self) -> str:
        """Return text such as "int8 u8, percentile, 4 layers fp32"."""
        if self.kind == "nbits":
            return "8-bit weights"
        if self.kind == "dynamic":
            return "dynamic int8"
        words = [f"int8 {self.activations}"]
        words += ["7-bit weights"] * self.has_reduced_range
        words += ["percentile"] * (self.calibration == "percentile")
        words += ["products only"] * self.only_products
        if self.kept:
            words.append(f"{len(self.kept)} layer{'s' * (len(self.kept) > 1)} fp32")
        return ", ".join(words)

    def keeping(self, nodes: Sequence[str]) -> "Candidate":
        """Return the same with these nodes left in fp32."""
        return replace(self, kept=tuple(nodes))


def adds_wide() -> bool:
    """Return whether this processor multiplies u8 by s8 without saturation."""
    return bool(_WIDE & set(processor().split()))


def first_candidates(*, is_batched: bool, is_portable: bool) -> list[Candidate]:
    """Return what is tried of any model; the search adds variants of the best.

    Args:
        is_batched: whether rows of callers share runs, which dynamic int8 would end.
        is_portable: whether it has to answer alike on x86 processors without VNNI.
    """
    reduced = [True] if is_portable or not adds_wide() else [False, True]
    found = [
        Candidate(kind="int8", has_reduced_range=each, calibration=calibration)
        for each in reduced
        for calibration in _CALIBRATIONS
    ]
    found += [
        Candidate(
            kind="int8", only_products=True, has_reduced_range=reduced[0], calibration=calibration
        )
        for calibration in _CALIBRATIONS
    ]
    found.append(Candidate(kind="nbits"))
    if not is_batched:
        found.append(Candidate(kind="dynamic"))
    # Last, if there is time left: on x86 it is slower.
    found.append(Candidate(kind="int8", activations="s8", has_reduced_range=reduced[0]))
    return found


class NotMade(Exception):
    """A quantizer does not take the model; the text is one line and says why."""


class Maker:
    """Makes candidates of one prepared graph; ranges of tensors are calibrated once for all."""

    def __init__(self, file: Path, folder: Path, calls: Sequence[Feeds]) -> None:
        """Make nothing yet.

        Args:
            file: the prepared graph.
            folder: where candidates are written.
            calls: those to calibrate with.
        """
        self.file = file
        self._folder, self._calls = folder, calls
        self._ranges: dict[Calibration, Any] = {}
        self._wild: set[str] = set()
        self._narrow: set[str] = set()
        self._num = 0

    def make(self, candidate: Candidate, *, keeps_activations: bool = False) -> Path:
        """Write a candidate's graph.

        Args:
            candidate: what to make.
            keeps_activations: whether a static one has the Relus that its rounding makes needless.

        Raises:
            NotMade: the quantizer failed, or has changed nothing.
        """
        self._num += 1
        target = self._folder / f"candidate-{self._num}.onnx"
        try:
            with quiet():
                if candidate.kind == "int8":
                    self._make_int8(candidate, target, keeps_activations=keeps_activations)
                elif candidate.kind == "nbits":
                    self._make_nbits(target)
                else:
                    self._make_dynamic(target)
        except NotMade:
            raise
        except MemoryError:
            raise NotMade("it takes too much memory") from None
        except Exception as err:  # quantizers raise anything
            reason = " ".join(str(err).split())[:160]
            raise NotMade(f"the quantizer failed: {type(err).__name__}: {reason}") from err
        return target

    def _make_int8(self, candidate: Candidate, target: Path, *, keeps_activations: bool) -> None:
        import onnx  # late, here and below: the extra
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        is_signed = candidate.activations == "s8"
        ranges = self._ranges_by(candidate.calibration)
        options = {
            "ActivationSymmetric": is_signed,
            "WeightSymmetric": True,
            "QDQKeepRemovableActivations": keeps_activations,
        }

        def quantized(options: dict[str, bool]) -> Any:
            model = load_model_with_shape_infer(self.file)
            quantizer = QDQQuantizer(
                model,
                True,  # a scale for each channel of weights
                candidate.has_reduced_range,
                QuantType.QInt8,
                QuantType.QInt8 if is_signed else QuantType.QUInt8,
                ranges,
                [],
                [*candidate.kept, *self._wild_nodes(model), *_probability_nodes(model)],
                list(_PRODUCTS) if candidate.only_products else _operators(),
                options,
            )
            quantizer.quantize_model()
            return quantizer

        try:
            quantizer = quantized(options)
        except ValueError:  # of a bias: one scale is taken for that of each channel
            quantizer = quantized({**options, "QDQDisableWeightAdjustForInt32Bias": True})
        if not any(each.op_type == "QuantizeLinear" for each in quantizer.model.nodes()):
            raise NotMade("the quantizer found nothing to quantize")
        quantizer.model.topological_sort()
        onnx.save(quantizer.model.model, target)

    def _ranges_by(self, calibration: Calibration) -> Any:
        """Return the range of each tensor; found call by call, so that memory stays bounded."""
        if calibration == "percentile":
            self._ranges_by("minmax")  # first: it finds what a histogram has no room for
        if calibration not in self._ranges:
            from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

            methods = CalibrationMethod.MinMax, CalibrationMethod.Percentile
            options = {"percentile": _PERCENTILE} if calibration == "percentile" else {}
            augmented = self._folder / f"ranges-{calibration}.onnx"
            calibrator = create_calibrator(
                self.file,
                _operators(),
                augmented_model_path=str(augmented),
                calibrate_method=methods[calibration == "percentile"],
                extra_options=options,
            )
            if calibration == "percentile":
                calibrator.tensors_to_calibrate -= self._wild | self._narrow
            for call in self._calls:
                calibrator.collect_data(_SampleReader(call))
            self._ranges[calibration] = found = calibrator.compute_data()
            if calibration == "minmax":
                self._wild = {name for name, each in found.items() if _is_wild(each)}
                self._narrow = {name for name, each in found.items() if _is_narrow(each)}
            else:
                found.data |= {name: self._ranges["minmax"][name] for name in self._narrow}
            augmented.unlink(missing_ok=True)
        return self._ranges[calibration]

    def _wild_nodes(self, model: Any) -> list[str]:
        """Return the nodes that have a tensor which no step of 8 bits fits, such as a mask."""
        return [node.name for node in model.graph.node if self._wild & {*node.input, *node.output}]

    def _make_nbits(self, target: Path) -> None:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            _with_products(onnx.load(self.file)),
            bits=_BITS,
            block_size=_BLOCK,
            is_symmetric=True,
            accuracy_level=_INT8_ACCURACY,
        )
        quantizer.process()
        if not any(each.op_type == "MatMulNBits" for each in quantizer.model.nodes()):
            raise NotMade("it has no product with a matrix of weights")
        quantizer.model.topological_sort()
        onnx.save(quantizer.model.model, target)

    def _make_dynamic(self, target: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(self.file), str(target), weight_type=QuantType.QInt8, per_channel=True,
            reduce_range=not adds_wide(),
        )  # fmt: skip


def _probability_nodes(model: Any) -> list[str]:
    """Return the nodes between a last Softmax or Sigmoid and an output, with these.

    They stay fp32: rows of 8-bit steps add up to 0.996 as well as to 1, and clients take such a row
    for logits. Their time is nothing beside the products'.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    found = []
    for output in model.graph.output:
        passed, node = [], made_by.get(output.name)
        while node is not None and node.op_type in _PASSED:
            passed.append(node.name)
            node = made_by.get(node.input[0])
        if node is not None and node.op_type in _PROBABILITIES:
            found += [*passed, node.name]
    return found


def _is_wild(range_of: Any) -> bool:
    """Return whether a tensor has infinities, or huge numbers in their place, as masks have."""
    return not all(np.abs(each).max() < _WILD for each in range_of.range_value)


def _is_narrow(range_of: Any) -> bool:
    """Return whether a tensor's numbers are too much alike for the bins of a histogram."""
    low, high = (np.asarray(each, np.float64) for each in range_of.range_value)
    widest = max(np.abs(low).max(), np.abs(high).max())
    return bool((high - low).max() <= _NARROW * widest)


class _SampleReader:
    """Hands one call to a calibrator, which asks until there is none."""

    def __init__(self, call: Feeds) -> None:
        self._calls: Iterator[Feeds] = iter([call])

    def get_next(self) -> Feeds | None:
        return next(self._calls, None)


def _operators() -> list[str]:
    """Return the operators that have a rule in ONNX Runtime's quantizer."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QDQRegistry, *QLinearOpsRegistry})


def _with_products(model: Any) -> Any:
    """Return a model whose Gemms are a MatMul and an Add, which the quantizer of weights takes."""
    from onnx import helper, numpy_helper

    weights = {each.name: each for each in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        facts = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        is_plain = facts.get("alpha", 1.0) == facts.get("beta", 1.0) == 1.0
        is_product = node.op_type == "Gemm" and is_plain and not facts.get("transA", 0)
        if not is_product or node.input[1] not in weights:
            nodes.append(node)
            continue
        matrix = numpy_helper.to_array(weights[node.input[1]])
        name = f"{node.name}_weights"
        turned = matrix.T.copy() if facts.get("transB", 0) else matrix
        model.graph.initializer.append(numpy_helper.from_array(turned, name))
        has_bias = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}_product" if has_bias else node.output[0]
        nodes.append(
            helper.make_node("MatMul", [node.input[0], name], [product], f"{node.name}_MatMul")
        )
        if has_bias:
            inputs = [product, node.input[2]]
            nodes.append(helper.make_node("Add", inputs, [node.output[0]], f"{node.name}_Add"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [each for each in model.graph.initializer if each.name in used]
    outputs = {each.name for each in model.graph.output}
    kept += [w for w in model.graph.initializer if w.name not in used and w.name in outputs]
    if not any(
        node.attribute and any(a.g.node or a.graphs for a in node.attribute) for node in nodes
    ):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    return model
