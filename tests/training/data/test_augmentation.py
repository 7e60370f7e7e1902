import dataclasses
import math

import numpy as np
import pytest

from training.config import RECIPES, TEACHER, Deformation
from training.data import augmentation
from training.data.augmentation import GROUP
from training.data.mnist import Examples

DEFORMATION = Deformation(
    rotation_deg=15, scale=0.15, shear=0.15, shift_px=2.5, elastic_px=0.5, elastic_sigma_px=3
)
NOTHING = Deformation(
    rotation_deg=0, scale=0, shear=0, shift_px=0, elastic_px=0, elastic_sigma_px=3
)
RECIPE = dataclasses.replace(RECIPES["default"], batch_size=100, epochs=3)
CRISPNESS = 0.1
PLAIN = dataclasses.replace(RECIPE, deformation=None, degraded=0, outliers=0)


@pytest.fixture
def examples(mnist_sample):
    return Examples(mnist_sample.train_images, mnist_sample.train_labels)


def rng():
    return np.random.default_rng(7)


def test_each_group_has_a_field_of_its_own(examples):
    same = np.repeat(examples.images[:1], 2 * GROUP, axis=0)
    deformed = augmentation.deform(same, DEFORMATION, rng())
    assert (deformed[:GROUP] == deformed[0]).all()
    assert (deformed[GROUP:] == deformed[-1]).all()
    assert (deformed[0] != deformed[-1]).any()


def test_elastic_displacement_has_the_deviation_asked_for():
    still = np.indices((28, 28), np.float32)
    elastic = dataclasses.replace(NOTHING, elastic_px=2)
    displacement = augmentation.fields(500, elastic, rng()) - still
    assert displacement.std(axis=0) == pytest.approx(2, rel=0.2)  # 500 draws a pixel: sd 3 %


def test_elastic_displacement_is_as_smooth_as_asked_for():
    elastic = dataclasses.replace(NOTHING, elastic_px=2, elastic_sigma_px=4)
    displacement = augmentation.fields(1_000, elastic, rng())[:, 0] - np.indices((28, 28))[0]
    near, far = (
        np.corrcoef(displacement[:, 14, 10], displacement[:, 14, 10 + px])[0, 1] for px in (4, 12)
    )
    # Noise behind a Gaussian of sigma s correlates over d by exp(-d^2 / 4s^2); sd 0.03 here.
    assert (near, far) == (pytest.approx(0.78, abs=0.1), pytest.approx(0.11, abs=0.1))


def test_rotation_keeps_distances():
    turned = augmentation.fields(1, dataclasses.replace(NOTHING, rotation_deg=45), rng())[0]
    corners = turned[:, ::27, ::27].reshape(2, 4)
    diagonals = np.linalg.norm(corners[:, [0, 1]] - corners[:, [3, 2]], axis=0)
    assert diagonals == pytest.approx(27 * math.sqrt(2), abs=1e-4)  # float32
    assert abs(corners[0, 0] - corners[0, 1]) > 1


def test_batches_keep_each_image_with_its_label(examples):
    label_of = {image.tobytes(): label for image, label in zip(*examples, strict=True)}
    images, labels = augmentation.batches(examples, PLAIN, rng(), None)
    assert (images.shape, labels.shape) == ((20, 100, 784), (20, 100))
    assert {image.tobytes() for image in images.reshape(-1, 784)} == label_of.keys()
    for image, label in zip(images.reshape(-1, 784), labels.reshape(-1), strict=True):
        assert label_of[image.tobytes()] == label


def test_an_epoch_degrades_a_share_of_the_images_and_replaces_another(examples):
    recipe = dataclasses.replace(PLAIN, degraded=0.2, outliers=0.05)
    images, targets = augmentation.batches(examples, recipe, rng(), None)
    known = {image.tobytes() for image in examples.images}
    changed = np.array([[image.tobytes() not in known for image in batch] for batch in images])
    assert changed.mean() == pytest.approx(0.25, abs=0.02)  # some shuffled ones are as before
    assert (changed.mean(axis=1) > 0.1).all()  # each batch has its part
    is_outlier = (targets == np.float32(0.1)).all(axis=2)
    assert is_outlier.mean() == pytest.approx(0.05)
    assert ((targets.max(axis=2) == 1) | is_outlier).all()


def test_some_groups_stay_as_they_are(examples):
    half = dataclasses.replace(DEFORMATION, identity_share=0.5)
    deformed = augmentation.deform(examples.images, half, rng())
    kept = (deformed == examples.images).all(axis=1)
    groups = [kept[start : start + GROUP].mean() for start in range(0, len(kept), GROUP)]
    assert set(groups) == {0, 1}
    assert 0.2 < np.mean(groups) < 0.8


@pytest.mark.parametrize("recipe", ["default", "best", "teacher"])
def test_views_are_as_crisp_as_the_images(examples, recipe):
    """Within a tenth: else the network learns from images of another kind than it classifies."""
    deformation = (TEACHER if recipe == "teacher" else RECIPES[recipe]).deformation
    assert deformation
    same = np.tile(examples.images, (8, 1))  # the more groups, the less chance
    energy = gradient_energy(augmentation.deform(same, deformation, rng()))
    assert energy == pytest.approx(gradient_energy(examples.images), rel=CRISPNESS)


def gradient_energy(images):
    pixels = images.reshape(-1, 28, 28).astype(np.float32)
    return float(sum((np.diff(pixels, axis=axis) ** 2).mean() for axis in (1, 2)))


def test_batch_mixes_the_groups():
    same = Examples(np.full((1000, 784), 255, np.uint8), np.zeros(1000, np.uint8))
    images, _ = augmentation.batches(same, PLAIN, rng(), DEFORMATION)
    groups = math.ceil(1000 / GROUP)
    assert all(len(np.unique(batch, axis=0)) == groups for batch in images)


def test_the_last_epochs_deform_half_as_far(examples, monkeypatch):
    seen: list[Deformation] = []

    def deform(images, deformation, _):
        seen.append(deformation)
        return images

    monkeypatch.setattr(augmentation, "deform", deform)
    recipe = dataclasses.replace(PLAIN, deformation=DEFORMATION, epochs=5, fine_tune_share=0.4)
    assert len(list(augmentation.epochs(examples, recipe, seed=1, start=0))) == 5
    assert [each.rotation_deg / DEFORMATION.rotation_deg for each in seen] == [1, 1, 1, 0.5, 0.5]
    assert (seen[4].identity_share, seen[4].elastic_sigma_px) == (
        DEFORMATION.identity_share, DEFORMATION.elastic_sigma_px
    )  # fmt: skip


def test_epoch_is_the_same_wherever_training_starts(examples):
    whole = list(augmentation.epochs(examples, RECIPE, seed=1, start=0))
    rest = list(augmentation.epochs(examples, RECIPE, seed=1, start=2))
    assert (len(whole), len(rest)) == (3, 1)
    assert np.array_equal(whole[2].images, rest[0].images)
    assert np.array_equal(whole[2].labels, rest[0].labels)


def test_epochs_and_seeds_differ(examples):
    first, second, _ = augmentation.epochs(examples, RECIPE, seed=1, start=0)
    other = next(augmentation.epochs(examples, RECIPE, seed=2, start=0))
    assert not np.array_equal(first.images, second.images)
    assert not np.array_equal(first.images, other.images)


def test_thickness_changes_the_ink_of_whole_groups(examples):
    thick = dataclasses.replace(NOTHING, thickness=0.5)
    deformed = augmentation.deform(examples.images[: 2 * GROUP], thick, rng())
    shares = deformed.sum(axis=1) / examples.images[: 2 * GROUP].sum(axis=1)
    first, second = shares.reshape(2, GROUP)
    assert (first > 1).all() or (first < 1).all()
    assert abs(first.mean() - second.mean()) > 0.01
