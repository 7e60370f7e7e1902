from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from training.data.mnist import SIDE, Images, Mnist
from training.lab.study import overlays
from training.lab.study.corruptions import (
    BRIGHTNESS,
    CORRUPTIONS,
    MNIST_C,
    NOISE,
    corrupt,
    corrupt_by,
)

CENTRE = (SIDE - 1) / 2

Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def clean(mnist_sample: Mnist) -> Images:
    return mnist_sample.test_images


@pytest.fixture(scope="module")
def corrupted(clean: Images) -> dict[str, Images]:
    return corrupt(clean)


def one(*ink: tuple[int, int]) -> Images:
    """An image with full ink at these rows and columns."""
    image = np.zeros((1, SIDE, SIDE), np.uint8)
    for row, column in ink:
        image[0, row, column] = 255
    return image.reshape(1, -1)


def bar() -> Images:
    """An image of an upright bar, 4 pixels wide and 16 high."""
    return one(*((row, column) for row in range(6, 22) for column in range(12, 16)))


def many(image: Images) -> Images:
    return np.repeat(image, 200, axis=0)


def ink(images: Images) -> Floats:
    total: Floats = images.sum(axis=1, dtype=float)
    return total


def places(images: Images) -> Floats:
    """The centre of each image's ink, (N, 2): row and column."""
    weights = images.reshape(-1, SIDE, SIDE).astype(float)
    rows, columns = weights.sum(axis=2) @ np.arange(SIDE), weights.sum(axis=1) @ np.arange(SIDE)
    centres: Floats = np.stack([rows, columns], axis=1) / ink(images)[:, None]
    return centres


def spreads(images: Images) -> Floats:
    """The variance of each image's ink along rows and columns, and their covariance, (N, 3)."""
    weights = images.reshape(-1, SIDE, SIDE) / ink(images)[:, None, None]
    place = places(images)
    row = np.arange(SIDE)[None] - place[:, :1]
    column = np.arange(SIDE)[None] - place[:, 1:]
    return np.stack(
        [
            np.einsum("nij,ni,ni->n", weights, row, row),
            np.einsum("nij,nj,nj->n", weights, column, column),
            np.einsum("nij,ni,nj->n", weights, row, column),
        ],
        axis=1,
    )


def test_there_are_the_15_of_the_paper_and_noise() -> None:
    assert len(MNIST_C) == 15
    assert CORRUPTIONS.keys() - MNIST_C.keys() == {"noise"}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_changes_the_images_the_same_every_time(
    kind: str, clean: Images, corrupted: dict[str, Images]
) -> None:
    images = corrupted[kind]
    assert images.shape == clean.shape
    assert images.dtype == np.uint8
    assert (images == corrupt_by(kind, clean)).all()
    assert (images != clean).any(axis=1).mean() > 0.99
    assert not (images == images[0]).all()


def test_corruptions_differ_from_each_other(corrupted: dict[str, Images]) -> None:
    for (name, images), (other, others) in combinations(corrupted.items(), 2):
        assert (images != others).any(axis=1).mean() > 0.99, (name, other)


def test_corruption_leaves_its_input_as_it_was(clean: Images) -> None:
    before = clean.copy()
    corrupt(clean)
    assert (clean == before).all()


def test_noise_has_the_deviation_that_it_says() -> None:
    noisy = corrupt_by("noise", np.full((1, 784), 128, np.uint8))
    assert noisy.std() == pytest.approx(NOISE, rel=0.15)  # of 784 pixels, some clipped
    assert corrupt_by("noise", np.full((1, 784), 255, np.uint8)).min() > 0  # none wraps around


def test_shot_noise_spares_the_background_and_keeps_the_mean() -> None:
    assert not corrupt_by("shot noise", np.zeros((3, 784), np.uint8)).any()
    dark = corrupt_by("shot noise", np.full((20, 784), 64, np.uint8))
    assert dark.mean() == pytest.approx(64, rel=0.03)  # of 15,680 pixels, few clipped
    assert dark.std() > 32  # one photon in the mean


def test_impulse_noise_replaces_a_fifth_by_black_or_white() -> None:
    grey = corrupt_by("impulse noise", np.full((20, 784), 128, np.uint8))
    shares = [(grey == level).mean() for level in (0, 128, 255)]
    assert shares == pytest.approx([0.1, 0.8, 0.1], abs=0.01)  # of 15,680 pixels


@pytest.mark.parametrize("kind", ["glass blur", "motion blur"])
def test_blurs_take_contrast_and_keep_the_ink(kind: str) -> None:
    blurred = corrupt_by(kind, many(bar()))
    assert np.abs(np.diff(blurred.astype(int))).max() < 255
    assert ink(blurred).mean() == pytest.approx(ink(bar())[0], rel=0.05)  # some is rounded away


def test_motion_blur_spreads_along_a_path() -> None:
    height, width, _ = spreads(corrupt_by("motion blur", many(one((14, 14))))).T
    assert (width > height - 0.1).all()  # at most 45 degrees steep
    assert width.mean() > 3


def test_glass_blur_scatters() -> None:
    dots = many(one((14, 14)))
    glass, other = corrupt_by("glass blur", dots)[:2]
    assert (glass != other).any()
    far = np.delete(np.arange(784).reshape(28, 28), slice(8, 21), axis=0)
    assert not corrupt_by("glass blur", dots)[:, far.ravel()].any()


def test_shear_slants_either_way_and_keeps_the_height() -> None:
    before, after = spreads(bar())[0], spreads(corrupt_by("shear", many(bar())))
    slants = after[:, 2] / after[:, 0]
    assert ((abs(slants) > 0.3) & (abs(slants) < 0.5)).all()
    assert 0.3 < (slants > 0).mean() < 0.7
    assert after[:, 0] == pytest.approx(before[0], rel=0.02)  # bilinear


def test_scale_makes_digits_smaller_about_the_centre() -> None:
    scaled = corrupt_by("scale", many(bar()))
    shares = np.sqrt(spreads(scaled)[:, 0] / spreads(bar())[0, 0])
    assert ((shares > 0.58) & (shares < 0.78)).all()  # 0.6 to 0.75; bilinear
    assert places(scaled) == pytest.approx(CENTRE, abs=0.1)


def test_rotate_turns_either_way_about_the_centre() -> None:
    rotated = corrupt_by("rotate", many(bar()))
    height, width, both = spreads(rotated).T
    angles = np.rad2deg(np.arctan2(2 * both, height - width) / 2)
    assert ((abs(angles) > 14) & (abs(angles) < 31)).all()  # 15 to 30 degrees; bilinear
    assert 0.3 < (angles > 0).mean() < 0.7
    assert places(rotated) == pytest.approx(CENTRE, abs=0.1)


def test_brightness_raises_every_pixel() -> None:
    images = np.arange(256, dtype=np.uint8).repeat(4)[:784].reshape(1, 784)
    bright = corrupt_by("brightness", images)
    assert (bright == np.minimum(images + BRIGHTNESS, 255)).all()


def test_translate_moves_the_ink_and_keeps_it() -> None:
    moved = corrupt_by("translate", many(bar()))
    shifts = places(moved) - places(bar())
    assert ((abs(shifts) > 0.9) & (abs(shifts) < 2.6)).all()  # 1 to 2.5 pixels
    assert ink(moved) == pytest.approx(ink(bar())[0], rel=0.01)  # rounded to whole grey levels
    assert spreads(moved) == pytest.approx(spreads(many(bar())), abs=0.3)  # bilinear


def test_stripe_inverts_the_middle_columns() -> None:
    image = bar().reshape(SIDE, SIDE)
    striped = corrupt_by("stripe", bar()).reshape(SIDE, SIDE)
    middle = np.zeros(SIDE, bool)
    middle[overlays.STRIPE] = True
    assert (striped[:, middle] == 255 - image[:, middle]).all()
    assert (striped[:, ~middle] == image[:, ~middle]).all()
    assert middle.sum() == middle[::-1].sum() == (middle & middle[::-1]).sum() > 0


def test_fog_is_brighter_uneven_and_lowers_the_contrast(clean: Images) -> None:
    foggy = corrupt_by("fog", np.zeros((20, 784), np.uint8))
    assert (foggy.max(axis=1) == foggy.max()).all()
    assert (foggy.min(axis=1) == 0).all()
    steps = np.abs(np.diff(foggy.reshape(-1, SIDE, SIDE).astype(int)))
    assert steps.mean() < foggy.std() / 3  # smooth
    full = corrupt_by("fog", np.full((20, 784), 255, np.uint8)).astype(int)
    assert (full - foggy).max() <= 255 / (1 + overlays.FOG) + 1


@pytest.mark.parametrize("kind", ["spatter", "dotted line", "zigzag"])
def test_ink_falls_on_the_picture_and_none_is_lost(
    kind: str, clean: Images, corrupted: dict[str, Images]
) -> None:
    assert (corrupted[kind] >= clean).all()
    share = (corrupt_by(kind, np.zeros((50, 784), np.uint8)) > 127).mean()
    assert 0.01 < share < 0.2


@pytest.mark.parametrize("kind", ["dotted line", "zigzag"])
def test_lines_go_from_edge_to_edge(kind: str) -> None:
    lines = corrupt_by(kind, np.zeros((50, 784), np.uint8)).reshape(-1, SIDE, SIDE)
    by_column = lines.max(axis=1) > 127
    assert by_column[:, [0, -1]].all()
    assert by_column.all() == (kind == "zigzag")


def test_zigzag_turns_and_the_dotted_line_does_not() -> None:
    for kind, most in (("dotted line", 1.0), ("zigzag", 30.0)):
        lines = corrupt_by(kind, np.zeros((50, 784), np.uint8)).reshape(-1, SIDE, SIDE)
        row, column = np.indices((SIDE, SIDE))
        off = []
        for line in lines.astype(float):
            slope, start = np.polyfit(column.ravel(), row.ravel(), 1, w=np.sqrt(line.ravel()))
            error = row - (slope * column + start)
            off.append((line * error**2).sum() / line.sum())
        assert most / 10 < np.mean(off) < most, kind


def test_canny_edges_outline_the_stroke() -> None:
    edges = corrupt_by("Canny edges", bar()).reshape(SIDE, SIDE)
    assert set(np.unique(edges)) == {0, 255}
    inside = edges[9:19]  # rows far from the bar's ends
    assert (inside == inside[0]).all()
    left, right = np.flatnonzero(inside[0])
    assert {left - 12, right - 15} <= {-1, 0, 1}  # at the two sides of columns 12 to 15


def test_canny_edges_of_a_picture_do_not_depend_on_its_neighbours(clean: Images) -> None:
    alone = np.concatenate([corrupt_by("Canny edges", image[None]) for image in clean[:5]])
    assert (alone == corrupt_by("Canny edges", clean[:5])).all()
