"""Pictures of every format, mode, size and damage: an image or InvalidRequest, each.

PICTURES=20000 reads as many; that takes ten minutes.
"""

import os

import pytest

from tests.support.pictures.random_pictures import read_all

STEP = 1000
NUM_PICTURES = int(os.environ.get("PICTURES", "2000"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, NUM_PICTURES, STEP))
def test_random_pictures_are_read_or_refused(first):
    print(dict(read_all(range(first, first + STEP))))
