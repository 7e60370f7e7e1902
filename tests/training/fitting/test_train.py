import dataclasses
import os
import shutil
from typing import Any

import keras
import numpy as np
import pytest

from digit_classifier import Classifier
from training.config import RECIPES, SEED, TEACHER
from training.data.extra import Extra
from training.data.mnist import Examples
from training.errors import Diverged, ResumeError, UnusableInput
from training.fitting import networks
from training.fitting.artifacts import Checkpoint, Progress, load_json, load_model, recipe_of
from training.fitting.epochs import Trainer
from training.fitting.evaluation import probabilities
from training.fitting.train import split, train

RECIPE = dataclasses.replace(RECIPES["default"], epochs=3, batch_size=256, ema_decay=0.9)
"""All of the default recipe's machinery, for a sample of 2,000 images."""


def interrupt_after(last):
    """Press Ctrl-C once an epoch is complete."""

    def log(line):
        if line.startswith(f"epoch {last}/"):
            raise KeyboardInterrupt

    return log


def weights(artifacts):
    weights: list[Any] = load_model(artifacts).get_weights()
    return weights


def share_right(artifacts, images, labels):
    answers = probabilities(load_model(artifacts), images)
    return float((answers.argmax(axis=1) == labels).mean())


def test_training_learns_and_writes_its_metrics(artifacts, mnist_sample):
    metrics = load_json(artifacts, "metrics.json")
    assert metrics["accuracy"]["test"] > 0.85
    assert metrics["accuracy"]["test"] == share_right(
        artifacts, mnist_sample.test_images, mnist_sample.test_labels
    )
    assert metrics["errors"]["test"] == round((1 - metrics["accuracy"]["test"]) * 500)
    assert (metrics["recipe"], metrics["seed"], metrics["epochs"]) == ("seed", 0, 12)
    assert metrics["parameters"] == 241_650
    assert metrics["device"] in ("cpu", "cuda")
    assert metrics["loss"].keys() == {"validation", "test"}
    assert metrics["libraries"].keys() == {"tensorflow", "keras", "numpy", "python"}


def test_history_has_a_value_for_every_epoch(artifacts):
    history = load_json(artifacts, "history.json")
    names = ["loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]
    assert {name: len(values) for name, values in history.items()} == dict.fromkeys(names, 12)
    assert history["loss"][-1] < history["loss"][0]


def test_finished_training_leaves_three_files(artifacts):
    assert set(os.listdir(artifacts)) == {"model.keras", "history.json", "metrics.json"}


@pytest.mark.slow
def test_resumed_training_equals_an_uninterrupted_one(tmp_path, mnist_sample):
    recipe = dataclasses.replace(RECIPE, optimizer="muon")

    def stop_here(line):
        if line.startswith("epoch 2/3"):
            shutil.copytree(tmp_path / "whole", tmp_path / "stopped")

    lines: list[str] = []
    train(recipe, mnist_sample, tmp_path / "whole", log=stop_here)
    train(recipe, mnist_sample, tmp_path / "stopped", resume=True, log=lines.append)
    assert [line.partition("  loss")[0] for line in lines] == ["epoch 3/3"]
    histories = [load_json(tmp_path / name, "history.json") for name in ("whole", "stopped")]
    assert histories[0] == histories[1]
    assert all(map(np.array_equal, weights(tmp_path / "whole"), weights(tmp_path / "stopped")))


@pytest.mark.slow
def test_training_on_other_own_images_is_not_resumed(tmp_path, mnist_sample):
    def own(*labels):
        images = mnist_sample.test_images[: len(labels)]
        examples = Examples(images, np.array(labels, np.uint8))
        return Extra(examples, Examples(images[:0], examples.labels[:0]))

    train(RECIPE, mnist_sample, tmp_path, extra=own(1, 2), log=interrupt_after(1))
    for other in (None, own(1, 3)):
        with pytest.raises(ResumeError, match="extra"):
            train(RECIPE, mnist_sample, tmp_path, resume=True, extra=other)


def test_interrupt_keeps_the_best_epoch(tmp_path, mnist_sample, monkeypatch):
    def forget_after_two(trainer, batches):
        epochs.append(fit(trainer, batches))
        if len(epochs) == 3:
            trainer.ema.set_weights([0 * weight for weight in trainer.ema.get_weights()])
        return epochs[-1]

    epochs: list[tuple[float, float]] = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", forget_after_two)
    recipe = dataclasses.replace(RECIPE, epochs=9)
    metrics = train(recipe, mnist_sample, tmp_path, log=interrupt_after(3))
    history = load_json(tmp_path, "history.json")["val_accuracy"]
    assert metrics["epochs"] == len(history) == 3
    assert metrics["accuracy"]["validation"] == max(history[:2]) > history[2]
    _, validation = split(mnist_sample, RECIPE)
    assert share_right(tmp_path, *validation) == max(history)


def test_interrupt_before_the_first_epoch_writes_nothing(tmp_path, mnist_sample, monkeypatch):
    def interrupt(trainer, batches):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, mnist_sample, tmp_path)
    assert os.listdir(tmp_path) == []


class Killed(BaseException):
    """The end of the process, as far as a training can see it."""


def test_kill_leaves_the_old_model_and_a_checkpoint_to_resume(tmp_path, mnist_sample):
    def kill(line):
        raise Killed

    (tmp_path / "model.keras").write_bytes(b"the old model")
    with pytest.raises(Killed):
        train(RECIPE, mnist_sample, tmp_path, log=kill)
    assert set(os.listdir(tmp_path)) == {"model.keras", "checkpoint.npz"}
    assert (tmp_path / "model.keras").read_bytes() == b"the old model"
    with pytest.raises(ResumeError, match="another training: seed 0, not 1"):
        train(RECIPE, mnist_sample, tmp_path, seed=1, resume=True)


def test_fewer_images_than_a_batch_are_refused(tmp_path, mnist_sample):
    few = dataclasses.replace(
        mnist_sample,
        train_images=mnist_sample.train_images[:100],
        train_labels=mnist_sample.train_labels[:100],
    )
    with pytest.raises(UnusableInput, match=r"expected at most 100, the .* images, got 256"):
        train(RECIPE, few, tmp_path)


def test_diverged_training_leaves_nothing(tmp_path, mnist_sample):
    recipe = dataclasses.replace(SEED, learning_rate=1e30, epochs=2)
    with pytest.raises(Diverged, match=r"no longer a number .*lower --learning-rate than 1e"):
        train(recipe, mnist_sample, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_other_units_and_optimizer_are_trained(tmp_path, mnist_sample, optimizer):
    settings = {"units": (24,), "dropout": (0.1,), "optimizer": optimizer, "learning_rate": 0.02}
    metrics = train(
        SEED.changed({**settings, "epochs": 3, "batch_size": 64}), mnist_sample, tmp_path
    )
    assert metrics["accuracy"]["test"] > 0.7
    assert metrics["parameters"] == 784 * 24 + 24 + 24 * 10 + 10
    assert recipe_of(metrics).units == (24,)


def test_without_a_split_all_images_are_trained_on(mnist_sample):
    recipe = dataclasses.replace(RECIPES["default"], validation_split=0)
    training, validation = split(mnist_sample, recipe)
    assert np.array_equal(training.images, mnist_sample.train_images)
    assert not set(map(bytes, validation.images)) <= set(map(bytes, training.images))
    assert np.array_equal(validation.labels, training.labels[-len(validation.labels) :])


IDENTITY = {"seed": 3, "dropout": (0.4, 0.3), "deformation": {"scale": 0.1}}
PROGRESS = Progress(
    rows=[{"loss": 0.5, "val_accuracy": 0.9}, {"loss": 0.25, "val_accuracy": 0.95}],
    best=[np.full((2, 2), 7, np.float32), np.zeros(3, np.float32)],
    seconds=12.5,
)


def variables(value):
    return [
        keras.Variable(np.full((3, 2), value, np.float32)),
        keras.Variable(np.full(2, value), dtype="int64"),
    ]


def test_checkpoint_gives_back_what_was_saved(tmp_path):
    restored = variables(0)
    PROGRESS.save(Checkpoint(tmp_path / "checkpoint.npz", IDENTITY), variables(4))
    progress = Progress.restore(Checkpoint(tmp_path / "checkpoint.npz", IDENTITY), restored)
    assert [variable.numpy().tolist() for variable in restored] == [[[4, 4]] * 3, [4, 4]]
    assert (progress.rows, progress.seconds) == (PROGRESS.rows, PROGRESS.seconds)
    assert [weights.tolist() for weights in progress.best] == [[[7, 7]] * 2, [0, 0, 0]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 4}, "seed 3, not 4"),
        ({"dropout": (0.4, 0.2)}, r"dropout \[0.4, 0.3\], not \[0.4, 0.2\]"),
        ({"deformation": None}, "deformation {'scale': 0.1}, not None"),
        ({"new": 1}, "new None, not 1"),
    ],
)
def test_checkpoint_of_another_training_is_refused_untouched(tmp_path, change, reason):
    untouched = variables(0)
    PROGRESS.save(Checkpoint(tmp_path / "checkpoint.npz", IDENTITY), variables(4))
    with pytest.raises(ResumeError, match=f"another training: {reason}"):
        Progress.restore(Checkpoint(tmp_path / "checkpoint.npz", IDENTITY | change), untouched)
    assert untouched[1].numpy().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (None, r"checkpoint\.npz is missing"),
        *((n, "cannot read .*checkpoint") for n in (0, 10, -30)),
    ],
)
def test_missing_or_damaged_checkpoint_is_refused(tmp_path, keep, reason):
    path = tmp_path / "checkpoint.npz"
    PROGRESS.save(Checkpoint(path, IDENTITY), variables(4))
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResumeError, match=reason):
        Progress.restore(Checkpoint(path, IDENTITY), variables(0))


@pytest.mark.parametrize("recipe", [*RECIPES.values(), TEACHER], ids=[*RECIPES, "teacher"])
def test_network_answers_with_probabilities(recipe):
    network = networks.build(recipe)
    answers = np.asarray(network(np.ones((3, 784), np.float32)))
    assert answers.shape == (3, 10)
    assert answers.sum(axis=1) == pytest.approx(1, abs=1e-6)  # float32
    assert recipe is TEACHER or network.count_params() == 241_650


def test_same_seed_gives_the_same_first_weights():
    weights = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        weights.append(networks.build(SEED).get_weights()[0])
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_fine_tuning_begins_with_the_bundled_model(mnist_sample):
    images = mnist_sample.test_images[:100]
    with Classifier.pretrained() as classifier:
        expected = classifier.classify(images).probabilities
    answers = probabilities(networks.build(RECIPES["fine-tune"]), images)
    np.testing.assert_allclose(answers, expected, atol=1e-5)  # other orders of summation
