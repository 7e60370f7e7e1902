"""A user's own digits: which are trained on, held out, or refused."""

import numpy as np
import pytest
from PIL import Image

from training.data import extra
from training.data.mnist import Examples
from training.errors import DataError


@pytest.fixture
def folder(tmp_path, mnist_sample):
    """Pictures of test images: twelve of 3, and four of 7."""
    for digit, number in ((3, 12), (7, 4)):
        (tmp_path / str(digit)).mkdir()
        chosen = mnist_sample.test_images[mnist_sample.test_labels == digit][:number]
        for place, image in enumerate(chosen):
            Image.fromarray(image.reshape(28, 28)).save(tmp_path / str(digit) / f"{place}.png")
    return tmp_path


def rows(examples):
    return {image.tobytes() for image in examples.images}


def test_one_in_five_of_a_digit_is_held_out(folder):
    own = extra.load(folder)
    assert own.held_out.labels.tolist() == [3, 3]
    assert sorted(own.training.labels.tolist()) == [3] * 10 + [7] * 4
    assert not rows(own.training) & rows(own.held_out)


def test_split_depends_on_contents_alone(folder):
    before = extra.load(folder)
    for path in (folder / "3").iterdir():
        path.rename(path.with_name(f"z{99 - int(path.stem)}.png"))
    (folder / "7" / "3.png").unlink()
    assert rows(extra.load(folder).held_out) == rows(before.held_out)


def test_equal_files_count_once(folder):
    before = extra.load(folder)
    for path in list((folder / "3").iterdir()):
        (folder / "3" / f"copy of {path.name}").write_bytes(path.read_bytes())
    assert extra.load(folder).digest == before.digest


def test_picture_under_two_labels_is_refused(folder):
    (folder / "7" / "x.png").write_bytes((folder / "3" / "0.png").read_bytes())
    with pytest.raises(DataError, match=r"two labels: .*0\.png and .*x\.png"):
        extra.load(folder)


def test_unreadable_and_hidden_files_are_left_out(folder):
    (folder / "3" / "notes.txt").write_text("no picture")
    (folder / "3" / ".hidden").write_text("no picture")
    own = extra.load(folder)
    assert len(own.training.labels) == 14
    assert [line.partition(": ")[0] for line in own.unreadable] == [str(folder / "3" / "notes.txt")]


def test_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="no readable pictures in"):
        extra.load(tmp_path)


def test_own_images_are_repeated_until_they_are_seen(folder):
    own = extra.load(folder)
    zeros = Examples(np.zeros((5600, 784), np.uint8), np.zeros(5600, np.uint8))
    joined = extra.join(zeros, own)
    np.testing.assert_array_equal(joined.images[:5600], zeros.images)
    assert np.bincount(joined.labels[5600:]).tolist() == [0, 0, 0, 80, 0, 0, 0, 32]
    few = extra.join(Examples(zeros.images[:20], zeros.labels[:20]), own)
    assert len(few.labels) == 20 + 14
