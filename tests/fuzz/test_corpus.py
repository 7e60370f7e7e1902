"""Every input that fuzzing kept, or that once found a bug, is replayed."""

import pytest

from tests.fuzz.targets import TARGETS, inputs

INPUTS = inputs()


def test_every_target_has_a_corpus():
    assert {path.parent.name for path in INPUTS} == set(TARGETS)


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_corpus_finds_no_bug(path):
    TARGETS[path.parent.name](path.read_bytes())
