"""Teachers, their cached logits, and the student's targets."""

import dataclasses
import shutil

import numpy as np
import pytest

from training.config import RECIPES, TEACHER, Distillation
from training.fitting import distillation
from training.fitting.epochs import Trainer
from training.fitting.train import train

DISTILLATION = Distillation(
    teacher=dataclasses.replace(
        TEACHER, epochs=2, batch_size=64, network="mlp", units=(32,), dropout=(0.1,)
    ),
    teachers=2, views=2, temperature=2.0, share=0.75,
)  # fmt: skip
RECIPE = dataclasses.replace(
    RECIPES["best"], distillation=DISTILLATION, validation_split=1 / 12, epochs=3, batch_size=256,
    ema_decay=0.9, fine_tune_share=0, learning_rate=0.02,
)  # fmt: skip


@pytest.fixture(scope="module")
def few(mnist_sample):
    images, labels = mnist_sample.train_images[:600], mnist_sample.train_labels[:600]
    return dataclasses.replace(mnist_sample, train_images=images, train_labels=labels)


@pytest.fixture(scope="module")
def parts(few):
    return few.split(RECIPE.validation_split)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, parts):
    """Two teachers, the first interrupted on the way, and their answers to two views.

    Shared: copy it before you change it.
    """
    folder = tmp_path_factory.mktemp("teachers")

    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distillation.load_logits(RECIPE, *parts, folder, interrupt)
    lines: list[str] = []
    distillation.load_logits(RECIPE, *parts, folder, lines.append)
    assert [line.partition("  loss")[0] for line in lines] == [
        "teacher 1/2  epoch 2/2",
        "teacher 2/2  epoch 1/2",
        "teacher 2/2  epoch 2/2",
        "teacher logits  view 1/2",
        "teacher logits  view 2/2",
    ]
    return folder


def refuse(*arguments):
    raise AssertionError("trained although it is cached")


def copy(cache, folder):
    for path in cache.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_cached_logits_are_read(cache, parts, monkeypatch):
    monkeypatch.setattr(distillation, "train_teachers", refuse)
    answers = distillation.load_logits(RECIPE, *parts, cache, refuse)
    assert [answer.shape for answer in answers] == [(len(parts[0].labels), 10)] * 2


def test_missing_and_damaged_logits_are_computed_again_by_the_same_teachers(
    cache, parts, tmp_path, monkeypatch
):
    expected = distillation.load_logits(RECIPE, *parts, cache, refuse)
    copied = copy(cache, tmp_path)
    damaged = copied / "view-000.npz"
    damaged.write_bytes(damaged.read_bytes()[:1_000])
    (copied / "view-001.npz").unlink()
    monkeypatch.setattr(Trainer, "fit", refuse)
    lines: list[str] = []
    answers = distillation.load_logits(RECIPE, *parts, copied, lines.append)
    assert lines[0].startswith(f"computing this view again: cannot read {damaged}")
    assert lines[1:] == ["teacher logits  view 1/2", "teacher logits  view 2/2"]
    # The same weights at the same images; float16 keeps three digits.
    np.testing.assert_allclose(answers[1], expected[1], rtol=0.002, atol=0.01)
    distillation.load_logits(RECIPE, *parts, copied, refuse)


def test_other_teachers_compute_all_again(cache, parts, tmp_path):
    teacher = dataclasses.replace(DISTILLATION.teacher, epochs=1)
    other = dataclasses.replace(DISTILLATION, teacher=teacher, teachers=1, views=1)
    recipe = dataclasses.replace(RECIPE, distillation=other)
    lines: list[str] = []
    distillation.load_logits(recipe, *parts, copy(cache, tmp_path), lines.append)
    assert "view-000.npz is of another training: teachers 2, not 1" in lines[0]
    assert "training this teacher again" in lines[1]
    assert "epochs 2, not 1" in lines[1]
    assert len(lines) == 4


def test_view_is_deformed_the_same_every_time(parts):
    images = parts[0].images
    views = [distillation.view(images, RECIPE, number) for number in (0, 0, 1)]
    assert (views[0] == views[1]).all()
    assert (views[0] != views[2]).any(axis=1).mean() > 0.9
    # Each is still the image that it was: its nearest in mean ink, by far, over all images.
    ink = images.sum(axis=1, dtype=float)
    assert np.corrcoef(ink, views[0].sum(axis=1, dtype=float))[0, 1] > 0.8


def test_targets_mix_labels_and_softened_probabilities():
    answers = np.full((1, 10), -100, np.float16)
    answers[0, :2] = np.log([0.9, 0.1])  # odds of 9, at temperature 2 of 3
    targets = distillation.soften(np.array([1], np.uint8), answers, DISTILLATION)
    expected = [0.75 * 0.75, 0.75 * 0.25 + 0.25] + [0] * 8
    assert targets[0] == pytest.approx(expected, abs=1e-3)  # float16 logarithms


def test_batches_keep_each_image_with_its_targets(parts):
    training, _ = parts
    answers = [np.zeros((len(training.labels), 10), np.float16)] * 2
    labels_only = dataclasses.replace(
        RECIPE, distillation=dataclasses.replace(DISTILLATION, share=0), degraded=0, outliers=0
    )
    epoch = next(iter(distillation.epochs(training, labels_only, answers, 0, 1)))
    view = distillation.view(training.images, RECIPE, 1)
    label_of = {
        moved.tobytes(): label
        for image, label in zip(view, training.labels, strict=True)
        for moved in distillation.shift(np.repeat(image[np.newaxis], 9, axis=0))
    }
    images, targets = epoch.images.reshape(-1, 784), epoch.labels.reshape(-1, 10)
    assert len(images) == len(training.labels) // 256 * 256
    assert [label_of[image.tobytes()] for image in images] == targets.argmax(axis=1).tolist()


def test_the_last_epochs_show_mild_views(parts):
    with_both = dataclasses.replace(DISTILLATION, views=3, fine_tune_views=2)
    recipe = dataclasses.replace(RECIPE, epochs=10, fine_tune_share=0.3, distillation=with_both)
    numbers = [distillation.view_in(recipe, epoch) for epoch in range(10)]
    assert numbers == [0, 1, 2, 0, 1, 2, 0, 3, 4, 3]
    images = parts[0].images
    change = [
        np.abs(distillation.view(images, recipe, number).astype(float) - images).mean()
        for number in (2, 3)
    ]
    assert change[1] < 0.8 * change[0]


def test_student_resumes_in_the_middle_of_the_views(parts):
    training, _ = parts
    rng = np.random.default_rng(0)
    answers = [rng.standard_normal((len(training.labels), 10)).astype(np.float16)] * 2
    whole = list(distillation.epochs(training, RECIPE, answers, 5, 0))
    resumed = list(distillation.epochs(training, RECIPE, answers, 5, 2))
    assert len(whole) == RECIPE.epochs == 3
    assert (whole[2].images == resumed[0].images).all()
    assert (whole[2].labels == resumed[0].labels).all()
    assert (whole[0].images != whole[2].images).any()  # the same view in another order


def test_student_learns_from_cached_teachers(cache, few, tmp_path):
    lines: list[str] = []
    recipe = dataclasses.replace(RECIPE, batch_size=32)
    shutil.copytree(cache, tmp_path / "teachers")
    metrics = train(recipe, few, tmp_path, log=lines.append)
    assert [line.partition("  loss")[0] for line in lines] == [
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
    ]
    assert metrics["accuracy"]["test"] > 0.3


def test_every_ninth_image_is_moved_in_the_same_way(parts):
    images = np.repeat(parts[0].images[:1], 18, axis=0)
    shifted = distillation.shift(images).reshape(18, 28, 28)
    image = images[0].reshape(28, 28)
    assert len(np.unique(shifted, axis=0)) == 9
    assert np.array_equal(shifted[4], image)
    assert np.array_equal(shifted[0, 1:, 1:], image[:-1, :-1])
    assert np.array_equal(shifted[17, :-1, :-1], image[1:, 1:])
    assert not shifted[0, 0].any()
