"""A repository of two models that a test may change."""

import pytest

from serving.tensors import Signature
from serving.versions.catalog import Catalog
from tests.serving.model import templates
from tests.support.guards import Guarded, fixtures

SMALL = Signature((4, 4), 3)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "repository"
    templates.publish(root, "a", SMALL)
    templates.publish(root, "b", SMALL)
    return root


uses_without_locks, locks_are_held = fixtures(
    Guarded(
        Catalog, "_lock",
        ("_note", "_remove", "_note_leaving", "_folder", "_take"),
        writes=("_folders", "_trouble", "_handlers"),
    ),
)  # fmt: skip
