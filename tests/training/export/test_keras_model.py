"""Keras classifiers that were trained elsewhere: converted, checked on samples, published."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from keras import layers
from onnx import numpy_helper

from serving.model.signatures import read_signature, unaccepted
from tests.training.export.letters import letters, rebuild, save_samples, train_letters
from training.__main__ import main
from training.errors import ExportError, UnusableInput
from training.export import graph, keras_model, signature
from training.export.parity import onnxruntime
from training.export.version import ExportCandidate

SAME = 1e-5
"""Float32 rounding in another order of summation."""


@pytest.fixture(scope="module")
def model():
    return train_letters()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    model.save(folder / "model.keras")
    return folder / "model.keras", save_samples(folder / "samples.npz")


@pytest.fixture(scope="module")
def version(files, tmp_path_factory):
    return keras_model.export(*files, tmp_path_factory.mktemp("models"), "letters")


@pytest.fixture(scope="module")
def manifest(version):
    contents: dict[str, Any] = json.loads((version / "manifest.json").read_text())
    return contents


def save(folder, model):
    model.save(folder / "saved.keras")
    return folder / "saved.keras"


def answers(version, images, file="model.onnx"):
    session = onnxruntime.InferenceSession(version / file, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"images": images.reshape(len(images), -1)})[0]


def test_graph_answers_as_keras_with_softmax(version, model):
    images, _ = letters(50, seed=3)
    expected = np.asarray(keras.ops.softmax(model(images.astype(np.float32))))
    np.testing.assert_allclose(answers(version, images), expected, rtol=0, atol=SAME)


def test_manifest_describes_a_model_trained_elsewhere(manifest):
    assert (manifest["name"], manifest["version"]) == ("letters", "1")
    assert manifest["signature"] == {
        "input_shape": [32, 32],
        "dtype": "uint8",
        "classes": 26,
        "labels": [str(number) for number in range(26)],
    }
    assert (manifest["recipe"], manifest["seed"], manifest["parameters"]) == (None, None, 50_474)
    assert manifest["accuracy"] == {"validation": None, "test": pytest.approx(1, abs=0.02)}
    assert (manifest["parity"]["images"], manifest["parity"]["tolerance"]) == (600, 1e-4)


@pytest.mark.parametrize(
    ("file", "key"), [("model.onnx", "probabilities"), ("model.int8.onnx", "int8_probabilities")]
)
def test_golden_samples_cover_the_classes_and_reproduce(file, key, version, manifest):
    golden = manifest["golden"]
    images = np.frombuffer(base64.b64decode(golden["images"]), np.uint8).reshape(-1, 1024)
    found = answers(version, images, file)
    np.testing.assert_allclose(found, golden[key], rtol=0, atol=SAME)
    assert len(images) == 32
    assert set(found.argmax(axis=1)) == set(range(26))


@pytest.fixture
def candidates(monkeypatch):
    """Export without publishing and without the gates."""
    found: list[ExportCandidate] = []

    def publish_version(candidate, models):
        found.append(candidate)
        return models

    monkeypatch.setattr(keras_model, "publish_version", publish_version)
    return found


def test_int8_is_rounded_on_one_half_and_tested_on_the_other(files, tmp_path, candidates):
    keras_model.export(*files, tmp_path, "letters")
    [candidate] = candidates
    images = np.load(files[1])["images"].reshape(600, 1024)
    assert np.array_equal(candidate.rounding, images[::2])
    assert np.array_equal(candidate.int8_test.images, images[1::2])
    assert np.array_equal(candidate.int8_test.labels, np.load(files[1])["labels"][1::2])


@pytest.mark.parametrize(
    ("stack", "sample_shape", "expected"),
    [
        ((keras.Input((32, 32, 1)),), (32, 32), (32, 32)),
        ((keras.Input((32, 32)),), (32, 32, 1), (32, 32)),
        ((keras.Input((1024,)),), (32, 32), (32, 32)),
        ((keras.Input((32, 32)),), (1024,), (32, 32)),
        ((keras.Input((1024,)),), (1024,), (1024,)),
        ((keras.Input((16, 32, 2)),), (16, 32, 2), (16, 32, 2)),
    ],
)
def test_model_and_samples_may_have_different_shapes(
    stack, sample_shape, expected, model, tmp_path, candidates
):
    other = rebuild(model, *stack, *model.layers)
    images, _ = letters(40, seed=2)
    samples = save_samples(tmp_path / "s.npz", num=40, images=images.reshape(40, *sample_shape))
    keras_model.export(save(tmp_path, other), samples, tmp_path, "letters")
    [candidate] = candidates
    assert candidate.signature.input_shape == expected
    expected_logits = model(images.astype(np.float32))
    np.testing.assert_allclose(
        candidate.expected, keras.ops.softmax(expected_logits), rtol=0, atol=SAME
    )


def test_probabilities_get_no_second_softmax(model, tmp_path):
    stack = [keras.Input((1024,)), *model.layers, layers.Softmax()]
    samples = save_samples(tmp_path / "samples.npz", num=40)
    version = keras_model.export(
        save(tmp_path, rebuild(model, *stack)), samples, tmp_path, "letters"
    )
    operators = [node.op_type for node in onnx.load(version / "model.onnx").graph.node]
    assert operators.count("Softmax") == 1
    images, _ = letters(50, seed=3)
    expected = keras.ops.softmax(model(images.astype(np.float32)))
    np.testing.assert_allclose(answers(version, images), expected, rtol=0, atol=SAME)


CONVOLUTIONAL = (
    keras.Input((32, 32, 1)),
    layers.Rescaling(1 / 255),
    layers.Conv2D(4, 3, strides=2, activation="relu"),
    layers.BatchNormalization(),
    layers.Flatten(),
    layers.Dense(26, activation="softmax"),
)
OF_ANY_SIZE = (
    keras.Input((None, None, 1)),
    layers.Normalization(mean=100.0, variance=2500.0),
    layers.Conv2D(4, 3, activation="gelu"),
    layers.GlobalAveragePooling2D(),
    layers.Dense(26),
)
ONE_SIGMOID = (
    keras.Input((32, 32, 1)),
    layers.Rescaling(1 / 255),
    layers.Flatten(),
    layers.Dense(1, "sigmoid"),
)


def two_classes(second):
    return np.concatenate([1 - second, second], axis=1)


@pytest.mark.parametrize(
    ("stack", "labels", "finish", "num_classes", "accuracy"),
    [
        (CONVOLUTIONAL, None, np.asarray, 26, None),
        (OF_ANY_SIZE, None, keras.ops.softmax, 26, None),
        (ONE_SIGMOID, np.arange(40) % 2, two_classes, 2, pytest.approx(0.5, abs=0.5)),
    ],
)
def test_other_networks_are_published_without_int8(
    stack, labels, finish, num_classes, accuracy, tmp_path
):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(stack)
    samples = save_samples(tmp_path / "samples.npz", num=40, labels=labels)
    version = keras_model.export(save(tmp_path, network), samples, tmp_path, "letters")
    images, _ = letters(20, seed=3)
    expected = finish(np.asarray(network(images[..., np.newaxis].astype(np.float32))))
    np.testing.assert_allclose(answers(version, images), expected, rtol=0, atol=SAME)
    manifest = json.loads((version / "manifest.json").read_text())
    assert "begins with Dense, relu and Dense" in manifest["int8"]["refused"]
    assert manifest["accuracy"] == {"validation": None, "test": accuracy}
    assert manifest["signature"]["input_shape"] == [32, 32]
    assert manifest["signature"]["labels"] == [str(number) for number in range(num_classes)]
    assert manifest["parameters"] == network.count_params()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\nb\n", "expected 26 different labels .* got 2 in 2 lines"),
        (b"a\n" * 26, "expected 26 different labels .* got 1 in 26 lines"),
        (b"a\n\nc", "expected 26 different labels .* got 2 in 3 lines"),
        (
            b"\n".join([*b"a b c d e f g h i j k l m n o p q r s t u v w x y".split(), b"z" * 101]),
            "1 to 100 printable characters, one a line, got 25 in 26 lines",
        ),
        (b"\xff", "cannot read .*labels.txt"),
    ],
)
def test_unfit_labels_are_refused(content, reason, files, tmp_path):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UnusableInput, match=reason):
        keras_model.export(*files, tmp_path, "letters", tmp_path / "labels.txt")


IMAGES, LABELS = letters(20, seed=2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": None}, r"expected an array `images`, got \['labels'\]"),
        (
            {"images": IMAGES / 255},
            r"expected images \(N, ...\) uint8, got .* float64; .*Rescaling",
        ),
        ({"images": IMAGES.astype(int) - 9}, "servers take whole numbers of 0 to 255"),
        ({"images": IMAGES[:0]}, r"expected images .*, got \(0, 32, 32\) uint8"),
        ({"images": IMAGES[:, :28, :28]}, r"expected images of shape \(32, 32\).*got \(28, 28\)"),
        ({"images": IMAGES * 0}, "every pixel is 0"),
        ({"labels": LABELS[:-1]}, r"expected labels \(20,\) integers, got \(19,\)"),
        ({"labels": LABELS / 2}, r"expected labels \(20,\) integers, got .* float64"),
        ({"labels": LABELS + 26}, "expected labels from 0 to 25, got 2"),
        ({"labels": LABELS - 26}, "expected labels from 0 to 25, got -2"),
        ({"labels": (LABELS + 1) % 26}, "answers none of 20 samples as labelled"),
        ({"labels": LABELS.astype(object)}, "expected an NPZ file of arrays"),
    ],
)
def test_unfit_samples_are_refused(changes, reason, files, tmp_path):
    samples = save_samples(tmp_path / "samples.npz", num=20, **changes)
    with pytest.raises(UnusableInput, match=reason) as refusal:
        keras_model.export(files[0], samples, tmp_path / "models", "letters")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        (
            (keras.Input((32, 32)), layers.Dense(26)),
            r"output of \(N, classes\), got \(None, 32, 26\): flatten",
        ),
        ((keras.Input((1024,)), layers.Dense(1)), r'put keras.layers.Activation\("sigmoid"\) last'),
        (
            (keras.Input((None, None, 3)), layers.GlobalMaxPooling2D()),
            r"images of shape \(None, None, 3\), as the model takes, got \(32, 32\)",
        ),
        (
            (keras.Input((None, 32)), layers.Conv1D(9, 40), layers.GlobalMaxPooling1D()),
            r"images of shape \(None, 32\), as the model takes, got \(32, 32\)",
        ),
        (
            (keras.Input((1024,)), layers.Embedding(9, 26), layers.GlobalMaxPooling1D()),
            r"fails on the samples: .*is not in \[0, 9\)",
        ),
        ((keras.Input((1024,)), layers.Dense(26, "sigmoid")), "don't add up to 1"),
    ],
)
def test_model_that_is_no_classifier_is_refused(stack, reason, tmp_path):
    samples = save_samples(tmp_path / "samples.npz", num=20, labels=None)
    path = save(tmp_path, keras.Sequential(stack))
    with pytest.raises(UnusableInput, match=reason):
        keras_model.export(path, samples, tmp_path / "models", "letters")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("num_inputs", "num_outputs", "reason"),
    [
        (2, 1, "a model of one input, got 2: join them"),
        (1, 2, r"a model of one output, got 2: save keras.Model\(model.inputs, model.outputs\[0\]"),
    ],
)
def test_model_with_two_ends_is_refused(num_inputs, num_outputs, reason, files, tmp_path):
    inputs = [keras.Input((4,)) for _ in range(num_inputs)]
    last = layers.Concatenate()(inputs) if num_inputs > 1 else inputs[0]
    model = keras.Model(inputs, [layers.Dense(3)(last) for _ in range(num_outputs)])
    with pytest.raises(UnusableInput, match=reason):
        keras_model.export(save(tmp_path, model), files[1], tmp_path, "letters")


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_whole_numbers_are_taken_for_bytes(dtype, files, tmp_path, candidates):
    samples = save_samples(tmp_path / "samples.npz", num=20, images=IMAGES.astype(dtype))
    keras_model.export(files[0], samples, tmp_path, "letters")
    assert candidates[0].samples.images.dtype == np.uint8
    assert np.array_equal(candidates[0].samples.images, IMAGES.reshape(20, -1))


def test_graph_that_onnx_runtime_cannot_run_is_refused_on_one_line(files, tmp_path):
    network = keras.Sequential([keras.Input((32, 32)), layers.Flatten(), layers.Dense(26, "gelu")])
    network = keras.models.clone_model(network, clone_function=in_float64)
    with pytest.raises(ExportError, match=r"can't run the graph of tf2onnx: .*Erf") as refusal:
        keras_model.export(save(tmp_path, network), files[1], tmp_path / "models", "letters")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "models").exists()


def in_float64(layer):
    return type(layer).from_config(layer.get_config() | {"dtype": "float64"})


def test_nan_is_refused(model, files, tmp_path):
    broken = rebuild(model, keras.Input((1024,)), *map(copy_of, model.layers))
    broken.layers[-1].bias.assign([np.nan] + [0] * 25)
    with pytest.raises(UnusableInput, match="answers 600 of 600 samples with NaN"):
        keras_model.export(save(tmp_path, broken), files[1], tmp_path, "letters")


def test_model_that_always_answers_one_class_gets_a_warning(
    model, files, tmp_path, candidates, capsys
):
    lazy = rebuild(model, keras.Input((1024,)), *map(copy_of, model.layers))
    lazy.layers[-1].set_weights([np.zeros((48, 26)), np.eye(26)[5]])
    keras_model.export(save(tmp_path, lazy), files[1], tmp_path, "letters")
    assert "for the same class each time: the model may have learned nothing" in (
        capsys.readouterr().out
    )
    keras_model.export(*files, tmp_path, "letters")
    assert "learned nothing" not in capsys.readouterr().out
    assert len(candidates) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ["0", "one", *map(str, range(2, 26))]}, "class 1 was '1' and is 'one'"),
        ({"classes": 27, "labels": [*map(str, range(27))]}, "classes was 26 and is 27"),
        ({"input_shape": [1024]}, "input_shape was [32, 32] and is [1024]"),
    ],
)
def test_other_images_or_classes_are_refused_with_the_difference(
    changes, words, version, manifest, tmp_path
):
    """Their graphs are the same here: the two signatures would show no difference."""
    shutil.copytree(version, tmp_path / "2")
    changed = manifest | {"signature": manifest["signature"] | changes}
    (tmp_path / "2" / "manifest.json").write_text(json.dumps(changed))
    shutil.copytree(version, tmp_path / "1")
    proto = onnx.load(version / "model.onnx")
    new = signature.of_graph(proto, changed["signature"])
    (tmp_path / "2").rename(tmp_path / "other")
    with pytest.raises(UnusableInput, match=re.escape(f"not published, {words}")) as refusal:
        signature.require_same(tmp_path, new, is_new_allowed=False)
    assert "UINT8" not in str(refusal.value)
    assert "--new-signature" in str(refusal.value)
    (tmp_path / "other").rename(tmp_path / "2")
    (reason,) = unaccepted(tmp_path, ["1", "2"], partial(read_signature, tmp_path)).values()
    assert reason.startswith(f"{words}; to use it")


def copy_of(layer):
    return type(layer).from_config(layer.get_config())


@pytest.mark.parametrize("content", [None, b"", b"no zip"])
@pytest.mark.parametrize("name", ["model.keras", "samples.npz"])
def test_unreadable_file_is_refused(name, content, files, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name if file.name == name else file for file in files]
    with pytest.raises(UnusableInput, match=f"cannot read .*{name}") as refusal:
        keras_model.export(paths[0], paths[1], tmp_path, "letters")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("writer", "who"), [("dense", "ONNX Runtime and Keras"), ("tf2onnx", "dense and tf2onnx")]
)
def test_graph_that_answers_otherwise_is_not_published(writer, who, files, tmp_path, monkeypatch):
    convert: Callable[..., dict[str, onnx.ModelProto]] = graph.convert

    def tamper(*arguments):
        graphs = convert(*arguments)
        proto = graphs[writer]
        weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        last_add = [node for node in proto.graph.node if node.op_type == "Add"][-1]
        bias = weights[last_add.input[1]]
        shifted = numpy_helper.to_array(bias) + np.linspace(0, 1, 26, dtype=np.float32)
        bias.CopyFrom(numpy_helper.from_array(shifted, bias.name))
        return graphs

    monkeypatch.setattr(graph, "convert", tamper)
    with pytest.raises(ExportError, match=rf"{who} disagree.*allowed: 0 and 1e-04"):
        keras_model.export(*files, tmp_path / "models", "letters")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["model.keras"],
        ["model.keras", "--samples", "samples.npz"],
        ["--samples", "samples.npz", "--name", "letters"],
        ["--labels", "labels.txt"],
    ],
)
def test_command_names_what_is_missing(arguments, capsys):
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert error == "python -m training: a Keras model of your own needs MODEL.keras and --name\n"


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a" * 101])
def test_command_refuses_names_that_are_no_folder(name):
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--name", name])
