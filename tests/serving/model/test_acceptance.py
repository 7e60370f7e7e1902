"""The check of a model: how many runs it makes, by their cost."""

import numpy as np
import pytest

from serving.images import Images
from serving.model.acceptance import Unfit, check
from serving.predictions import Probabilities

GOLDEN = np.random.default_rng(1).integers(0, 256, (32, 784), np.uint8)


class FakeModel:
    """Answers by each image alone, and takes its own time for it."""

    def __init__(self, image_s: float) -> None:
        self.image_s = image_s
        self.now_s = 0.0
        self.sizes: list[int] = []

    def run(self, images: Images) -> Probabilities:
        self.sizes.append(len(images))
        self.now_s += self.image_s * len(images)
        probabilities: Probabilities = np.eye(10, dtype=np.float32)[images.sum(axis=1) % 10]
        return probabilities

    def clock(self) -> float:
        return self.now_s


def expected() -> Probabilities:
    return FakeModel(0.0).run(GOLDEN)


def test_quick_model_is_checked_in_every_batch_size() -> None:
    model = FakeModel(image_s=1e-4)
    check(model.run, GOLDEN, expected(), 512, model.clock)
    assert model.sizes.count(1) == len(GOLDEN) + 16
    sizes = [2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 511, 512]
    assert model.sizes[-len(sizes) :] == sizes


@pytest.mark.parametrize(("image_s", "num_alone", "sizes"), [
    (0.02, 48, [2, 3, 4, 7, 8, 15, 16, 31]),  # a MobileNet of 224 px
    (0.1, 11, [2, 3, 4, 7]),
    (5.0, 4, [2]),
])  # fmt: skip
def test_dear_model_is_checked_in_few(image_s: float, num_alone: int, sizes: list[int]) -> None:
    model = FakeModel(image_s)
    check(model.run, GOLDEN, expected(), 512, model.clock)
    assert model.sizes == [1] * num_alone + sizes


def test_dear_model_whose_rows_depend_on_each_other_is_unfit() -> None:
    model = FakeModel(image_s=5.0)
    with pytest.raises(Unfit, match="answers depending on the batch: of 2 images"):
        check(lambda images: model.run(images).cumsum(axis=0), GOLDEN, expected(), 512, model.clock)
