import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from training.export import int8 as int8_
from training.export import parity
from training.export.int8 import Refused
from training.export.samples import Samples


@pytest.fixture(scope="module")
def fp32(models):
    return onnx.load(models / "digits" / "1" / "model.onnx")


@pytest.fixture(scope="module")
def quantised(fp32, mnist_sample):
    return int8_.quantize(fp32, mnist_sample.train_images)


@pytest.fixture(scope="module")
def session(quantised):
    return parity.open_session(quantised)


@pytest.fixture(scope="module")
def integers(quantised):
    """(784, 256), the first layer's weights."""
    return weights(quantised)["hidden_1/kernel"].astype(np.int8, casting="no")


def weights(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_pairs_of_products_fit_into_16_bits(integers):
    assert np.abs(integers.astype(int)).max() == int8_.LARGEST  # the range is used, not exceeded
    assert np.iinfo(np.int16).max >= 2 * 255 * int8_.LARGEST


def test_sums_are_exact_for_the_worst_images(quantised, integers, images):
    proto = onnx.ModelProto()
    proto.CopyFrom(quantised)
    product, converted = proto.graph.node[0].output[0], proto.graph.node[1].output[0]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(product, TensorProto.INT32, None))
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info(converted, TensorProto.FLOAT, None)
    )
    extremes = [255 * (integers.T > 0), 255 * (integers.T < 0)]  # each unit's largest, and smallest
    worst = np.concatenate([*extremes, np.full((1, 784), 255), images]).astype(np.uint8)
    sums, as_float = parity.open_session(proto).run([product, converted], {"images": worst})
    expected = worst.astype(np.int64) @ integers.astype(np.int64)
    np.testing.assert_array_equal(sums, expected)
    np.testing.assert_array_equal(as_float, expected)


def test_answer_does_not_depend_on_the_batch(session, images):
    [together] = session.run(None, {"images": images})
    for size in range(1, 301):
        [answers] = session.run(None, {"images": images[:size]})
        np.testing.assert_array_equal(answers, together[:size])


def test_graph_differs_in_the_first_layer_only(fp32, quantised):
    operators = [[node.op_type for node in proto.graph.node] for proto in (fp32, quantised)]
    assert operators[0][:3] == ["Cast", "MatMul", "Add"]
    assert operators[1] == ["MatMulInteger", "Cast", *operators[0][2:]]
    for field in ("input", "output"):
        assert getattr(quantised.graph, field) == getattr(fp32.graph, field)
    for field in ("ir_version", "opset_import", "metadata_props", "producer_name", "doc_string"):
        assert getattr(quantised, field) == getattr(fp32, field)
    before, after = weights(fp32), weights(quantised)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"hidden_1/kernel", "hidden_1/bias", "hidden_2/kernel"}


def test_rows_compensate_for_each_others_rounding():
    rng = np.random.default_rng(0)
    pixels = rng.random((500, 4)) @ rng.random((4, 50))  # neighbours correlate
    kernel = rng.normal(size=(50, 8)).astype(np.float32)
    integers, scale = int8_.round_weights(kernel, pixels.T @ pixels / len(pixels))
    nearest = np.rint(kernel / scale) * scale
    error, error_of_nearest = (pixels @ (kernel - k) for k in (integers * scale, nearest))
    assert np.square(error).mean() < np.square(error_of_nearest).mean() / 4
    assert np.abs(integers.astype(int)).max() <= int8_.LARGEST


def test_column_of_zeros_stays_zero():
    kernel = np.array([[0, 1], [0, -3]], np.float32)
    integers, scale = int8_.round_weights(kernel, np.eye(2))
    assert integers.tolist() == [[0, 21], [0, -63]]
    assert scale.tolist() == [1, pytest.approx(3 / 63)]


def test_gate_counts_validation_answers(fp32, mnist_sample):
    damaged = int8_.quantize(fp32, mnist_sample.train_images)
    [bias] = [t for t in damaged.graph.initializer if t.name == "probabilities/bias"]
    bias.CopyFrom(numpy_helper.from_array(10 * np.eye(10, dtype=np.float32)[3], bias.name))
    int8, reference = parity.open_session(damaged), parity.open_session(fp32)
    validation = Samples(*mnist_sample.split(0.2)[1])
    test = Samples(*mnist_sample.test)
    threes = test.images[parity.run(reference, test.images).argmax(axis=1) == 3]
    same = Samples(np.resize(threes, (int8_.LEAST_TEST_IMAGES, 784)), None)
    with pytest.raises(Refused, match=r"of 400 validation answers are right, with fp32 \d+"):
        int8_.measure(int8, reference, same, validation)
    with pytest.raises(Refused, match=r"of 500 test answers differ from fp32, at most 5 may"):
        int8_.measure(int8, reference, test, validation)
