import dataclasses
import os
import shutil
from typing import Any

import numpy as np
import pytest

from training.config import RECIPES
from training.data.extra import Extra
from training.data.mnist import Examples
from training.errors import ResumeError
from training.fitting.artifacts import load_json, load_model
from training.fitting.evaluation import probabilities
from training.fitting.train import split, train
from training.fitting.trainer import Trainer

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


def test_resuming_nothing_is_refused(tmp_path, mnist_sample):
    with pytest.raises(ResumeError, match="nothing to resume"):
        train(RECIPE, mnist_sample, tmp_path, resume=True)


def test_fewer_images_than_a_batch_are_refused(tmp_path, mnist_sample):
    few = dataclasses.replace(
        mnist_sample,
        train_images=mnist_sample.train_images[:100],
        train_labels=mnist_sample.train_labels[:100],
    )
    with pytest.raises(ValueError, match="expected at least 256 images, got 100"):
        train(RECIPE, few, tmp_path)


def test_without_a_split_all_images_are_trained_on(mnist_sample):
    recipe = dataclasses.replace(RECIPES["default"], validation_split=0)
    training, validation = split(mnist_sample, recipe)
    assert np.array_equal(training.images, mnist_sample.train_images)
    assert not set(map(bytes, validation.images)) <= set(map(bytes, training.images))
    assert np.array_equal(validation.labels, training.labels[-len(validation.labels) :])
