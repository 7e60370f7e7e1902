"""A repository of two models that a test may change."""

import pytest

from serving.tensors import Signature
from tests.serving.model import templates

SMALL = Signature((4, 4), 3)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "repository"
    templates.publish(root, "a", SMALL)
    templates.publish(root, "b", SMALL)
    return root
