"""Keras models of any kind: converted, compared with Keras, published, and served."""

import keras
import numpy as np
import pytest
from keras import layers

from serving.client import Client
from tests.support.servers import serve_command, started
from training.__main__ import main

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
    return main(["export", "--keras", str(folder / "model.keras"), "--models",
                 str(folder / "models"), "--name", "own", *map(str, options)])  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_model_is_exported_and_served(kind, tmp_path, capsys):
    model = MODELS[kind]()
    assert export(tmp_path, model) == 0
    out = capsys.readouterr().out
    assert "drawn rows: pass --samples" in out
    model = keras.models.load_model(tmp_path / "model.keras")  # as its names are in the file
    generator, feeds = np.random.default_rng(3), {}
    for each in model.inputs:
        shape = (2, *(size or 7 for size in each.shape[1:]))
        draw = generator.integers(0, 20, shape) if "int" in each.dtype else generator.random(shape)
        feeds[each.name] = draw.astype(each.dtype)
    with started(serve_command(tmp_path / "models")) as server, Client(server.address) as client:
        answer = client.infer("own", feeds)
    flat = keras.Model(model.inputs, model.outputs)
    found = flat([*feeds.values()] if len(feeds) > 1 else next(iter(feeds.values())))
    for name, wanted in zip(
        flat.output_names, found if isinstance(found, list) else [found], strict=True
    ):
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
