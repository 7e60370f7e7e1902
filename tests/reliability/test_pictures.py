"""20,000 pictures of every format, mode, size and damage: an image or InvalidRequest, each."""

import pytest

from tests.random_pictures import read_all

STEP = 1000


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, 20_000, STEP))
def test_random_pictures_are_read_or_refused(first: int) -> None:
    print(dict(read_all(range(first, first + STEP))))
