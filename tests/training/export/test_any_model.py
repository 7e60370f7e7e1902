"""Keras models of any kind: converted, compared with Keras, published, and served."""

import importlib
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from keras import layers

from serving.__main__ import main as serving_main
from serving.client import Client
from tests.support.servers import serve_command, started, wait_until
from training.__main__ import main
from training.export.any_model import own_names

ROOT = Path(__file__).parents[3]

MODELS = {
    "tokens and numbers": lambda: two_inputs(),
    "a sequence": lambda: keras.Sequential(
        [keras.Input((None,), dtype="int32"), layers.Embedding(50, 8), layers.LSTM(6)]
    ),
    "an autoencoder": lambda: keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3, padding="same", activation="gelu"),
         layers.Conv2DTranspose(1, 3, padding="same")]
    ),
    "a regression with constants": lambda: keras.Sequential(
        [keras.Input((3,)), layers.Normalization(mean=[1, 2, 3], variance=[4, 5, 6]),
         layers.Dense(1)]
    ),
}  # fmt: skip


def two_inputs():
    ids, facts = keras.Input((None,), dtype="int32", name="ids"), keras.Input((4,), name="facts")
    read = layers.GlobalAveragePooling1D()(layers.Embedding(20, 8)(ids))
    both = layers.Concatenate()([read, facts])
    price, risk = layers.Dense(1, name="price")(both), layers.Dense(3, name="risk")(both)
    return keras.Model({"ids": ids, "facts": facts}, {"price": price, "risk": risk})


def export(folder, model, *options):
    model.save(folder / "model.keras")
    return main(["export", str(folder / "model.keras"), "--models",
                 str(folder / "models"), "--name", "own", *map(str, options)])  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_model_is_exported_and_served(kind, tmp_path, capsys):
    model = MODELS[kind]()
    assert export(tmp_path, model) == 0
    out = capsys.readouterr().out
    assert "drawn rows: pass --samples" in out
    model = keras.models.load_model(tmp_path / "model.keras")  # as its names are in the file
    flat = keras.Model(model.inputs, model.outputs)
    inputs, outputs = own_names(model.inputs), own_names(flat.outputs)
    generator, feeds = np.random.default_rng(3), {}
    for name, each in zip(inputs, model.inputs, strict=True):
        shape = (2, *(size or 7 for size in each.shape[1:]))
        draw = generator.integers(0, 20, shape) if "int" in each.dtype else generator.random(shape)
        feeds[name] = draw.astype(each.dtype)
    with started(serve_command(tmp_path / "models")) as server, Client(server.address) as client:
        answer = client.infer("own", feeds)
    found = flat([*feeds.values()] if len(feeds) > 1 else next(iter(feeds.values())))
    for name, wanted in zip(outputs, found if isinstance(found, list) else [found], strict=True):
        np.testing.assert_allclose(answer[name], wanted, rtol=1e-4, atol=1e-5)


def test_samples_of_ones_own_are_compared(tmp_path, capsys):
    good = {"ids": np.ones((5, 9), int), "facts": np.ones((5, 4))}
    np.savez(tmp_path / "s.npz", **good)
    assert export(tmp_path, two_inputs(), "--samples", tmp_path / "s.npz") == 0
    assert "of 5 rows at batch 1 and 5" in capsys.readouterr().out
    for bad, expected in (
        ({"ids": good["ids"]}, "expected arrays facts, ids, got ['ids']; facts is missing"),
        (good | {"facts": np.ones((5, 3))}, "expected facts of shape ('N', 4), got (5, 3)"),
        (good | {"ids": np.full((5, 9), 99)}, "the model fails on these inputs"),
    ):
        np.savez(tmp_path / "s.npz", **bad)
        assert export(tmp_path, two_inputs(), "--samples", tmp_path / "s.npz") == 2
        assert expected in capsys.readouterr().err


def test_what_is_for_images_only_is_refused(tmp_path, capsys):
    assert export(tmp_path, two_inputs(), "--invert") == 2
    assert "--invert is for classifiers of images" in capsys.readouterr().err


def test_model_that_cannot_be_converted_is_not_published(tmp_path, capsys):
    model = keras.Sequential(
        [keras.Input((), dtype="string"), layers.StringLookup(vocabulary=["a"])]
    )
    assert export(tmp_path, model) == 2
    assert not (tmp_path / "models" / "own" / "1").exists()
    assert "takes texts" in capsys.readouterr().err


def test_training_that_diverged_is_not_published(tmp_path, capsys):
    model = dense("x")
    model.layers[-1].bias.assign([np.nan, 0])
    assert export(tmp_path, model) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the model answers 32 of 32 rows with NaN or infinity: did its training diverge?" in line
    assert "--samples FILE.npz with x" in line
    assert not (tmp_path / "models").exists()


# Names


def dense(*names, units=2):
    """A network of as many inputs as there are names; "" for one without a name of its own."""
    tensors = [keras.Input((3,), **({"name": name} if name else {})) for name in names]
    joined = layers.Concatenate()(tensors) if len(tensors) > 1 else tensors[0]
    return keras.Model(tensors, layers.Dense(units)(joined))


def described(folder, version):
    proto = onnx.load(folder / "models" / "own" / version / "model.onnx")
    return [each.name for each in proto.graph.input], [each.name for each in proto.graph.output]


def test_network_built_twice_in_one_process_has_the_same_names_and_is_served(tmp_path):
    """As in a notebook: Keras numbers the layers of the second one on."""
    first, second = dense(""), dense("")
    assert first.inputs[0].name != second.inputs[0].name
    assert export(tmp_path, first) == 0
    command = serve_command(tmp_path / "models", "--reload-interval", "0.2")
    with started(command) as server, Client(server.address) as client:
        assert export(tmp_path, second) == 0
        assert described(tmp_path, "1") == described(tmp_path, "2") == (
            ["input_layer"], ["dense"],
        )  # fmt: skip
        x = np.ones((1, 3), np.float32)
        wanted = np.asarray(second(x))
        wait_until(lambda: np.allclose(client.infer("own", {"input_layer": x})["dense"], wanted))
    with started(serve_command(tmp_path / "models")) as server:
        assert server.facts["version"] == "2"


def test_inputs_without_names_are_told_apart_by_the_order_of_their_making(tmp_path):
    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([b, a], layers.Dense(1)(layers.Subtract()([a, b])))
    assert own_names(model.inputs) == ["input_layer_b", "input_layer_a"]
    assert own_names(keras.Model([a, b], model.outputs).inputs) == [
        "input_layer_a", "input_layer_b",
    ]  # fmt: skip


def test_other_names_of_one_kind_are_matched_and_those_that_could_be_swapped_are_refused(
    tmp_path, capsys
):
    assert export(tmp_path, dense("left", "right")) == 0
    assert export(tmp_path, dense("right", "left")) == 0, "callers name them"
    capsys.readouterr()
    assert export(tmp_path, dense("one", "two")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "left FP32 [N, 3], right FP32 [N, 3] -> dense FP32 [N, 2]" in line or (
        "right FP32 [N, 3], left FP32 [N, 3] -> dense FP32 [N, 2]" in line
    )
    assert "this one one FP32 [N, 3], two FP32 [N, 3]" in line
    assert "--new-signature" in line
    assert export(tmp_path, dense("one", "two"), "--input-names", "left", "right") == 0
    assert described(tmp_path, "3")[0] == ["left", "right"]
    assert not (tmp_path / "models" / "own" / "3" / "new-signature").exists()
    assert export(tmp_path, dense("one", "two"), "--new-signature") == 0
    assert (tmp_path / "models" / "own" / "4" / "new-signature").exists()
    with started(serve_command(tmp_path / "models")) as server:
        assert server.facts["version"] == "4"


def test_one_input_keeps_the_name_of_the_version_before(tmp_path, capsys):
    assert export(tmp_path, dense("pixels"), "--output-names", "score") == 0
    assert export(tmp_path, dense("x")) == 0
    assert described(tmp_path, "2") == (["pixels"], ["score"])
    assert "as in version 1: x is pixels, dense is score" in capsys.readouterr().out
    assert export(tmp_path, dense("x", units=5)) == 2
    assert "not published" in capsys.readouterr().err
    for names in (["a", "a"], ["1"], ["a", "b"]):
        assert export(tmp_path, dense("x"), "--input-names", *names) == 2
        assert "--input-names: expected 1 different names" in capsys.readouterr().err


# What people bring


def test_labels_of_a_tabular_classifier_are_in_the_answer_of_infer(tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("cheap\ndear\n")
    assert export(tmp_path, dense("x"), "--labels", tmp_path / "labels.txt") == 0
    capsys.readouterr()
    file = tmp_path / "models" / "own" / "1" / "model.onnx"
    assert serving_main(["infer", str(file), "x=[1, 2, 3]"]) == 0
    out = capsys.readouterr().out
    assert "cheap" in out
    assert "dear" in out
    with started(serve_command(tmp_path / "models")) as server, Client(server.address) as client:
        assert tuple(client.describe("own").labels) == ("cheap", "dear")
    (tmp_path / "labels.txt").write_text("cheap\n")
    assert export(tmp_path, dense("x"), "--labels", tmp_path / "labels.txt") == 2
    assert "expected 2 different labels" in capsys.readouterr().err


LAYER = """
import keras

@keras.saving.register_keras_serializable("mine")
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x
"""


def forget(folder):
    """Unload the modules of a folder, and the layers that they have registered."""
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == folder:
            del sys.modules[name]
    for name in [name for name in keras.saving.get_custom_objects() if name.startswith("mine>")]:
        del keras.saving.get_custom_objects()[name]


def test_layer_of_ones_own_is_imported_and_the_error_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(LAYER)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        layer = importlib.import_module("mine").Twice()
    x = keras.Input((3,), name="x")
    keras.Model(x, layers.Dense(1)(layer(x))).save(tmp_path / "model.keras")
    forget(tmp_path)
    command = ["export", str(tmp_path / "model.keras"), "--name", "m",
               "--models", str(tmp_path / "models")]  # fmt: skip
    assert main(command) == 2
    assert "--import layers.py names the file that defines" in capsys.readouterr().err
    try:
        assert main([*command, "--import", str(tmp_path / "mine.py")]) == 0
    finally:
        forget(tmp_path)
    assert (tmp_path / "models" / "m" / "1" / "model.onnx").exists()


def test_answers_that_hardly_differ_prove_little(tmp_path, capsys):
    model = dense("x")
    model.layers[-1].set_weights([np.zeros((3, 2)), np.ones(2)])
    assert export(tmp_path, model) == 0
    assert "this proves little: answers to these rows differ by 0.0e+00" in capsys.readouterr().out


NETWORKS = ("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ConvNeXtTiny")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("network", NETWORKS)
def test_network_of_keras_applications_is_exported_and_served(network, tmp_path):
    size = (96, 96, 3)  # the nodes are those of 224 x 224
    model = getattr(keras.applications, network)(weights=None, input_shape=size)
    assert export(tmp_path, model) == 0
    images = np.random.default_rng(0).integers(0, 256, (2, *size)).astype(np.float32)
    (tmp_path / "model.keras").unlink()
    with started(serve_command(tmp_path / "models")) as server, Client(server.address) as client:
        (answer,) = client.infer("own", images).values()
    np.testing.assert_allclose(answer, np.asarray(model(images)), atol=1e-4)


def test_optimize_starts_with_the_version_that_was_exported(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "s.npz", ids=np.arange(45).reshape(5, 9) % 20, facts=np.ones((5, 4)))
    started_commands = []

    def run(command):
        started_commands.append(command)
        return subprocess.CompletedProcess(command, len(started_commands) - 1)

    monkeypatch.setattr("training.__main__.subprocess.run", run)
    options = ("--samples", tmp_path / "s.npz", "--optimize")
    assert export(tmp_path, two_inputs(), *options) == 0
    assert (tmp_path / "models" / "own" / "1" / "model.onnx").is_file()
    (command,) = started_commands
    assert command[1:] == [
        "-m", "serving", "optimize", "own", "--samples", str(tmp_path / "s.npz"),
        "--models", str(tmp_path / "models"), "--name", "own",
    ]  # fmt: skip
    assert export(tmp_path, two_inputs(), *options) == 1
    assert "the version above is published, and not optimized" in capsys.readouterr().err


def test_optimize_needs_samples(tmp_path, capsys):
    assert export(tmp_path, two_inputs(), "--optimize") == 2
    assert "--optimize needs --samples" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
