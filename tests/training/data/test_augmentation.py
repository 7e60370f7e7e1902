import dataclasses
import math

import numpy as np
import pytest

from training import config
from training.config import RECIPES, TEACHER, Deformation
from training.data import augmentation
from training.data.augmentation import GROUP, WAYS, degrade, outliers, thicken, warp
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


# Degraded images, and images of no digit


@pytest.fixture
def images(mnist_sample):
    return mnist_sample.train_images[:700]


def test_every_image_is_degraded_and_can_still_be_told(images):
    degraded = degrade(images, rng())
    assert degraded.shape == images.shape
    assert degraded.dtype == np.uint8
    assert (degraded != images).any(axis=1).mean() > 0.95  # a bar may lie on background
    for before, after in zip(images, degraded, strict=True):
        assert np.corrcoef(before, after)[0, 1] > 0.2


@pytest.mark.parametrize("make", [degrade, outliers])
def test_same_generator_makes_the_same_images_and_leaves_those_given(images, make):
    before = images.copy()
    assert np.array_equal(make(images, rng()), make(images, rng()))
    assert np.array_equal(images, before)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_images_differ_in_how_far_they_are_degraded(images, way):
    same = np.repeat(images[:1], 130, axis=0).reshape(-1, 28, 28).astype(np.float32)
    degraded = way(same, rng())
    assert degraded.shape == same.shape
    assert len(np.unique(degraded.reshape(130, -1), axis=0)) > 1


def test_noise_is_added_to_all_pixels_alike():
    grey = np.full((4000, 28, 28), 100, np.float32)
    noise = augmentation.gaussian_noise(grey, rng()) - grey
    assert noise.mean() == pytest.approx(0, abs=0.5)
    assert noise.std(axis=(1, 2)).min() > 3
    assert noise.std(axis=(1, 2)).max() < 80


def test_paler_ink_stays_lighter_than_the_paper(images):
    pixels = images.reshape(-1, 28, 28).astype(np.float32)
    changed = augmentation.contrast(pixels, rng())
    brightest, darkest = changed.max(axis=(1, 2)), changed.min(axis=(1, 2))
    assert (brightest - darkest > 50).all()
    assert (darkest > 20).any()


def test_outliers_are_images_unlike_the_digits_they_are_made_from(images):
    made = outliers(images, rng())
    assert made.shape == images.shape
    assert made.dtype == np.uint8
    known = {image.tobytes() for image in images}
    assert np.mean([image.tobytes() in known for image in made]) < 0.02


# Warped images beside a slow reference


FAR = dataclasses.replace(config.DEFORMATION, shift_px=9)
MAX_ROUNDING = 1  # grey level: float32 against float64, just where a value rounds up or down


def pixel(image, row, column):
    return int(image[row * 28 + column]) if 0 <= row < 28 and 0 <= column < 28 else 0


def slow_warp(image, field):
    """Read the same pixels one at a time, as the paper has it."""
    warped = []
    for row, column in field.reshape(2, -1).T.tolist():
        top, left = math.floor(row), math.floor(column)
        value = sum(
            keys(row - y) * keys(column - x) * pixel(image, y, x)
            for y in range(top - 1, top + 3)
            for x in range(left - 1, left + 3)
        )
        warped.append(min(max(value, 0), 255))
    return warped


def keys(distance):
    """Weigh a pixel by its distance: Keys's equation 4, with his parameter a."""
    a, s = augmentation.SLOPE, abs(distance)
    if s < 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0


def test_warp_equals_the_slow_reference(examples):
    images = examples.images[:3]
    field = augmentation.fields(1, FAR, rng())[0]
    expected = [slow_warp(image, field) for image in images]
    assert np.abs(warp(images, field) - np.array(expected)).max() <= MAX_ROUNDING


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        (1, [[0, 8, 0], [8, 8, 8], [0, 8, 0]]),
        (0.5, [[0, 5, 0], [5, 8, 5], [0, 5, 0]]),  # halfway the kernel at -1 gives 5/8
        (-0.5, [[0, 0, 0], [0, 5, 0], [0, 0, 0]]),
        (-1, [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_strokes_grow_and_shrink_by_a_share_of_a_pixel(growth, expected):
    images = np.zeros((5, 5, 1), np.float32)
    images[2, 2] = 8
    assert np.clip(thicken(images, growth), 0, 8)[1:-1, 1:-1, 0].tolist() == expected
