from string import ascii_letters

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from training.data.mnist import SIDE, Images
from training.lab.study import outliers
from training.lab.study.outliers import BOX_PX, FAINT, FONTS, LETTERS, LIKE_DIGITS, SLANTS_DEG

NOISE = ["nearly blank pages", "uniform noise", "Gaussian noise", "blobs"]


@pytest.fixture(scope="module")
def made() -> dict[str, Images]:
    return outliers.outliers()


def test_outliers_are_images_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliers, "NUM", 20)
    monkeypatch.setattr(outliers, "FONTS", FONTS[:1])
    make = outliers.outliers.__wrapped__  # without its cache
    first, second = make(), make()
    for kind, images in first.items():
        assert images.dtype == np.uint8
        assert images.shape[1:] == (SIDE * SIDE,)
        assert (images == second[kind]).all()


@pytest.mark.parametrize("kind", ["letters", *NOISE])
def test_there_are_a_thousand_different_ones(kind: str, made: dict[str, Images]) -> None:
    assert len(made[kind]) >= 1_000
    assert len(np.unique(made[kind], axis=0)) > 0.98 * len(made[kind])


def test_letters_are_those_that_look_like_no_digit(made: dict[str, Images]) -> None:
    assert sorted(LETTERS + LIKE_DIGITS) == sorted(ascii_letters)
    assert set("OoIilZzSsBbgq") <= set(LIKE_DIGITS)
    assert len(made["letters"]) == len(LETTERS) * len(FONTS) * len(SLANTS_DEG)


def test_letters_fill_the_box_of_a_digit_about_its_centre_of_mass(
    made: dict[str, Images],
) -> None:
    for letter in made["letters"].reshape(-1, SIDE, SIDE):
        rows, columns = np.flatnonzero(letter.any(axis=1)), np.flatnonzero(letter.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert BOX_PX - 1 <= max(height, width) <= BOX_PX  # the outermost pixel may be too faint
        centre = ndimage.center_of_mass(letter)
        assert np.abs(np.subtract(centre, (SIDE - 1) / 2)).max() <= 0.5
        assert letter.max() > 200


def test_pages_are_blank_or_nearly(made: dict[str, Images]) -> None:
    assert not made["empty page"].any()
    pages = made["nearly blank pages"]
    assert pages.max() <= FAINT
    assert (pages.max(axis=1) > pages.min(axis=1)).all()  # uneven
    steps = np.abs(np.diff(pages.reshape(-1, SIDE, SIDE).astype(int)))
    assert steps.max() < FAINT / 3  # without an edge


def test_noises_are_what_they_are_called(made: dict[str, Images]) -> None:
    uniform, gaussian = made["uniform noise"], made["Gaussian noise"]
    shares = np.histogram(uniform, bins=4, range=(0, 256))[0] / uniform.size
    assert shares == pytest.approx([0.25] * 4, abs=0.005)
    assert gaussian.mean() == pytest.approx(128, abs=1)
    assert (np.abs(gaussian.astype(float) - 128) < 64).mean() == pytest.approx(0.683, abs=0.01)


def test_blobs_are_smooth_and_leave_background(made: dict[str, Images]) -> None:
    blobs = made["blobs"].reshape(-1, SIDE, SIDE).astype(int)
    assert (blobs.max(axis=(1, 2)) == 255).all()
    assert 0.3 < (blobs == 0).mean() < 0.7
    assert np.abs(np.diff(blobs)).mean() < blobs.std() / 3


def test_answers_of_90_percent_count(made: dict[str, Images]) -> None:
    def classify(images: Images) -> npt.NDArray[np.float32]:
        """Be sure of every other image, and nearly sure of the rest."""
        answers = np.zeros((len(images), 10), np.float32)
        answers[::2, 3], answers[1::2, 4] = 0.91, 0.89
        return answers

    shares = outliers.confident_shares(classify)
    assert shares.keys() == made.keys()
    assert shares.pop("empty page") == 1  # a single image
    assert list(shares.values()) == [0.5] * len(shares)
