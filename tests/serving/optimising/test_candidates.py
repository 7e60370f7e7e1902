from importlib import import_module
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from serving.model.loading import load_model
from serving.optimising import candidates
from serving.optimising.candidates import Candidate, Maker, NotMade, first_candidates
from serving.optimising.losses import TensorLoss, left_out, losses
from serving.optimising.source import prepared, read_source
from tests.serving.model.graphs import model as graph_model
from tests.serving.model.graphs import node, rows_model, save, value
from tests.serving.optimising.networks import digits, reader


def calls(num=12):
    images, _ = digits()
    return [{"x": image[None]} for image in images[:num]]


def maker(folder, graph, samples):
    (folder / "made").mkdir()
    source = read_source(save(graph, folder, "net.onnx"), None)
    return Maker(prepared(source, folder / "made"), folder / "made", samples)


def operators(path):
    return [each.op_type for each in onnx.load(path).graph.node]


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate(kind="int8"),
        Candidate(kind="int8", activations="s8"),
        Candidate(kind="int8", calibration="percentile", has_reduced_range=True),
        Candidate(kind="int8", only_products=True),
        Candidate(kind="nbits"),
    ],
    ids=str,
)
def test_candidate_answers_nearly_alike_and_stays_batched(tmp_path, candidate):
    made = maker(tmp_path, reader(softmax=False), calls()).make(candidate)
    first, second = load_model(tmp_path / "net.onnx"), load_model(made)
    images, _ = digits()
    wanted, answers = (each.run({"x": images[-50:]})[0] for each in (first, second))
    assert np.corrcoef(wanted.ravel(), answers.ravel())[0, 1] > 0.99
    assert not np.array_equal(wanted, answers)
    assert second.tensors.is_batchable
    assert [str(each) for each in second.tensors.inputs] == ["x FP32 [N, 1, 28, 28]"]


@pytest.mark.parametrize("calibration", ["minmax", "percentile"])
def test_probabilities_still_add_up_to_1(tmp_path, calibration):
    """Others are taken for logits, and a softmax of them says 0.47 in place of 1."""
    make = maker(tmp_path, reader(softmax=True), calls()).make
    made = make(Candidate(kind="int8", calibration=calibration))
    images, _ = digits()
    answers = load_model(made).run({"x": images[-50:]})[0]
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-6)
    assert operators(made).count("QuantizeLinear") > 1


def test_seven_bits_stay_within_their_range(tmp_path):
    make = maker(tmp_path, reader(softmax=False), calls()).make
    largest = [
        max(
            int(np.abs(onnx.numpy_helper.to_array(each).astype(int)).max())
            for each in onnx.load(path).graph.initializer
            if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
        )
        for path in (make(Candidate(kind="int8", has_reduced_range=each)) for each in (False, True))
    ]
    assert largest == [127, 64]


def test_layers_are_left_in_fp32(tmp_path):
    make = maker(tmp_path, reader(softmax=False), calls()).make
    every = make(Candidate(kind="int8"))
    graph = onnx.load(make(Candidate(kind="int8", kept=("one", "relu1"))))
    first = next(each for each in graph.graph.node if each.op_type == "Conv")
    assert first.input[1] == "k1"  # its weights are floats
    assert len(graph.graph.node) < len(onnx.load(every).graph.node)


def test_mask_stays_fp32(tmp_path):
    """In 256 steps up to 3e38 all other numbers of a tensor would be 0."""
    generator = np.random.default_rng(0)
    graph = graph_model(
        [
            node("MatMul", ["x", "w"], ["scores"], name="product"),
            node("Where", ["m", "least", "zero"], ["mask"], name="masked"),
            node("Add", ["scores", "mask"], ["sums"], name="sum"),
            node("Softmax", ["sums"], ["weights"], name="soft", axis=-1),
            node("MatMul", ["weights", "v"], ["y"], name="last"),
        ],
        [value("x", "FP32", ["N", 8]), value("m", "BOOL", ["N", 8])],
        [value("y", "FP32", ["N", 4])],
        {
            "w": generator.normal(size=(8, 8)).astype(np.float32),
            "v": generator.normal(size=(8, 4)).astype(np.float32),
            "least": np.float32(-3.4e38),
            "zero": np.float32(0),
        },
    )
    x = generator.normal(size=(40, 8)).astype(np.float32)
    m = generator.random((40, 8)) < 0.3
    some = [{"x": x[at : at + 1], "m": m[at : at + 1]} for at in range(40)]
    make = maker(tmp_path, graph, some)
    for calibration in ("percentile", "minmax"):
        made = load_model(make.make(Candidate(kind="int8", calibration=calibration)))
        wanted = load_model(tmp_path / "net.onnx").run({"x": x, "m": m})[0]
        answers = made.run({"x": x, "m": m})[0]
        assert np.corrcoef(wanted.ravel(), answers.ravel())[0, 1] > 0.99


def test_model_without_matrices_has_no_8_bit_weights(tmp_path):
    graph = graph_model(
        [node("Conv", ["x", "w"], ["y"])],
        [value("x", "FP32", ["N", 1, 8])],
        [value("y", "FP32", None)],
        {"w": np.ones((1, 1, 3), np.float32)},
    )
    with pytest.raises(NotMade, match="no product with a matrix of weights"):
        maker(tmp_path, graph, []).make(Candidate(kind="nbits"))


def test_failure_of_a_quantizer_is_one_line(tmp_path, monkeypatch):
    def fail(self, candidate, target, *, keeps_activations):
        raise RuntimeError("a\nlong story")

    monkeypatch.setattr(Maker, "_make_int8", fail)
    with pytest.raises(NotMade, match=r"^the quantizer failed: RuntimeError: a long story$"):
        maker(tmp_path, reader(), calls()).make(Candidate(kind="int8"))


def test_dynamic_int8_is_for_models_that_are_not_batched():
    for is_batched in (True, False):
        found = first_candidates(is_batched=is_batched, is_portable=False)
        assert any(each.kind == "dynamic" for each in found) is not is_batched


def test_processor_without_vnni_and_portable_have_7_bits_alone(monkeypatch):
    def static(*, is_portable):
        found = first_candidates(is_batched=True, is_portable=is_portable)
        return {each.has_reduced_range for each in found if each.kind == "int8"}

    monkeypatch.setattr(candidates, "processor", lambda: "flags : avx2 avx512_vnni")
    assert static(is_portable=False) == {False, True}
    assert static(is_portable=True) == {True}
    monkeypatch.setattr(candidates, "processor", lambda: "flags : avx2 avx512f")
    assert static(is_portable=False) == {True}


def test_names_of_candidates_say_what_they_are():
    assert str(Candidate(kind="int8", calibration="percentile", kept=("a",))) == (
        "int8 u8, percentile, 1 layer fp32"
    )
    assert str(Candidate(kind="nbits")) == "8-bit weights"


def test_layer_that_loses_most_is_found(tmp_path):
    """A tensor in which one number is a thousand times the others: its steps are as coarse."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(4, 8)).astype(np.float32)
    uneven = weights.copy()
    uneven[:, 0] *= 1000
    graph = rows_model(
        node("MatMul", ["x", "even"], ["a"], name="even"),
        node("MatMul", ["x", "uneven"], ["b"], name="uneven"),
        node("MatMul", ["b", "small"], ["c"], name="weighed"),
        node("Add", ["a", "c"], ["y"], name="sum"),
        constants={
            "even": weights,
            "uneven": uneven,
            "small": np.diag([1e-3, *[1.0] * 7]).astype(np.float32),
        },
    )
    x = generator.normal(size=(40, 4)).astype(np.float32)
    some = [{"x": each[None]} for each in x]
    make = maker(tmp_path, graph, some)
    quantized = make.make(Candidate(kind="int8"), keeps_activations=True)
    found = losses(make.file, quantized, some, lambda: False)
    assert found[0].tensors == ("b",)
    assert [each.partition("/")[0] for each in sorted(found[0].nodes)] == ["uneven", "weighed"]
    assert not losses(make.file, quantized, some, lambda: True)


def test_layers_are_left_out_until_little_is_lost():
    found = [
        TensorLoss((name,), loss, (name,)) for name, loss in zip("abcd", (8, 4, 2, 1), strict=True)
    ]
    assert left_out(found, 0.75) == [("a",), ("a", "b"), ("a", "b", "c")]
    assert left_out(found, 0.25) == [("a",)]
    assert left_out([], 0.5) == []


def test_relus_that_rounding_makes_needless_are_kept_only_if_asked(tmp_path):
    make = maker(tmp_path, reader(softmax=False), calls()).make
    kept = operators(make(Candidate(kind="int8"), keeps_activations=True))
    assert kept.count("Relu") > operators(make(Candidate(kind="int8"))).count("Relu") == 0


def switch(name, *more):
    return [node(name, ["x"], ["inner"], name="last"),
            *[node(each, ["inner"], ["y"], name="behind") for each in more]]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "kept"),
    [
        *((switch(last, each), {"last", "behind"})
          for last in ("Softmax", "Sigmoid")
          for each in ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose",
                       "Unsqueeze")),
        (switch("Softmax", "Neg"), set()), (switch("Relu", "Cast"), set()),
    ],
    ids=lambda each: "-".join(one.op_type for one in each) if isinstance(each, list) else None,
)  # fmt: skip
def test_probabilities_and_what_passes_them_on_stay_fp32(nodes, kept):
    made = graph_model(nodes, [value("x", "FP32", ["N", 4])], [value("y", "FP32", None)])
    assert {*candidates._probability_nodes(made)} == kept


@pytest.mark.parametrize(
    ("low", "high", "is_wild", "is_narrow"),
    [
        (-1.0, 1.0, False, False), (0.0, 1e17, False, False), (-1e18, 0.0, True, False),
        (-np.inf, 0.0, True, False), (1000.0, 1001.0, False, True), (1000.0, 1001.1, False, False),
        (-1001.0, -1000.0, False, True),
    ],
)  # fmt: skip
def test_range_of_masks_is_wild_and_that_of_numbers_alike_narrow(low, high, is_wild, is_narrow):
    found = SimpleNamespace(range_value=(np.float32(low), np.float32(high)))
    assert candidates._is_wild(found) == is_wild
    if np.isfinite([low, high]).all():
        assert candidates._is_narrow(found) == is_narrow


@pytest.fixture
def quantizers(monkeypatch):
    """What ONNX Runtime's quantizers are asked for."""
    calibrate, qdq_quantizer = (
        import_module(f"onnxruntime.quantization.{name}") for name in ("calibrate", "qdq_quantizer")
    )
    asked = SimpleNamespace(calibrators=[], static=[], dynamic=[], errors=[])
    calibrator, static = calibrate.create_calibrator, qdq_quantizer.QDQQuantizer

    def create_calibrator(file, operators, **options):
        asked.calibrators.append(options)
        return calibrator(file, operators, **options)

    def quantizer(*given):
        asked.static.append(given)
        if asked.errors:
            raise asked.errors.pop()
        return static(*given)

    monkeypatch.setattr(calibrate, "create_calibrator", create_calibrator)
    monkeypatch.setattr(qdq_quantizer, "QDQQuantizer", quantizer)
    monkeypatch.setattr(
        "onnxruntime.quantization.quantize_dynamic",
        lambda *given, **options: asked.dynamic.append((given, options)),
    )
    return asked


def test_ranges_are_calibrated_once_in_the_folder(quantizers, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = maker(tmp_path, reader(softmax=False), calls(3))
    for calibration in ("percentile", "minmax"):
        made.make(Candidate(kind="int8", calibration=calibration))
    path = str(tmp_path / "made" / "ranges-{}.onnx")
    methods = [each.pop("calibrate_method").name for each in quantizers.calibrators]
    assert methods == ["MinMax", "Percentile"]
    assert quantizers.calibrators == [
        {"augmented_model_path": path.format("minmax"), "extra_options": {}},
        {"augmented_model_path": path.format("percentile"), "extra_options": {"percentile": 99.99}},
    ]  # fmt: skip
    assert not [*(tmp_path / "here").iterdir()]
    assert not [*(tmp_path / "made").glob("ranges-*")]


PLAIN = {"ActivationSymmetric": False, "WeightSymmetric": True,
         "QDQKeepRemovableActivations": False}  # fmt: skip


@pytest.mark.parametrize(
    ("candidate", "is_reduced", "kinds", "kept", "options"),
    [
        (Candidate(kind="int8"), False, ["QInt8", "QUInt8"], [], PLAIN),
        (Candidate(kind="int8", has_reduced_range=True, kept=("one",)), True, ["QInt8", "QUInt8"],
         ["one"], PLAIN),
        (Candidate(kind="int8", activations="s8"), False, ["QInt8", "QInt8"], [],
         {**PLAIN, "ActivationSymmetric": True}),
    ],
)  # fmt: skip
def test_static_quantizer_is_asked_as_the_candidate_says(
    candidate, is_reduced, kinds, kept, options, quantizers, tmp_path
):
    made = maker(tmp_path, reader(softmax=False), calls(3))
    made.make(candidate)
    ((_, by_channel, reduced, *types, _, _, left, operators, found),) = quantizers.static
    assert (by_channel, reduced, [each.name for each in types], left, found) == (
        True, is_reduced, kinds, kept, options,
    )  # fmt: skip
    assert {"Conv", "MatMul", "Gemm", "MaxPool"} <= {*operators}
    made.make(Candidate(kind="int8", only_products=True), keeps_activations=True)
    *_, operators, found = quantizers.static[-1]
    assert sorted(operators) == ["Conv", "ConvTranspose", "Gemm", "MatMul"]
    assert found == {**PLAIN, "QDQKeepRemovableActivations": True}


def test_bias_that_has_one_scale_is_not_adjusted(quantizers, tmp_path):
    quantizers.errors.append(ValueError("of a bias"))
    maker(tmp_path, reader(softmax=False), calls(3)).make(Candidate(kind="int8"))
    first, second = (given[-1] for given in quantizers.static)
    assert (first, second) == (PLAIN, {**PLAIN, "QDQDisableWeightAdjustForInt32Bias": True})


def test_weights_of_8_bits_are_in_blocks_of_128_and_computed_with_bytes(tmp_path):
    made = onnx.load(maker(tmp_path, reader(softmax=False), []).make(Candidate(kind="nbits")))
    (found,) = [each for each in made.graph.node if each.op_type == "MatMulNBits"]
    facts = {each.name: each.i for each in found.attribute}
    assert (facts["bits"], facts["block_size"], facts["accuracy_level"]) == (8, 128, 4)
    assert len([name for name in found.input if name]) == 3, "no zero points: it is symmetric"


@pytest.mark.parametrize(("features", "is_reduced"), [("avx_vnni", False), ("avx2", True)])
def test_dynamic_quantizer_has_weights_that_the_processor_adds(
    features, is_reduced, quantizers, tmp_path, monkeypatch
):
    monkeypatch.setattr(candidates, "processor", lambda: f"flags : {features}")
    made = maker(tmp_path, reader(softmax=False), [])
    target = made.make(Candidate(kind="dynamic"))
    (((given, written), options),) = quantizers.dynamic
    assert (given, written) == (str(made.file), str(target))
    assert options.pop("weight_type").name == "QInt8"
    assert options == {"per_channel": True, "reduce_range": is_reduced}
