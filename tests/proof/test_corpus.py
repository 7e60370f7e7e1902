"""Verdicts on ONNX's own test cases stay what they are: tests/proof/verdicts.tsv."""

import pytest

from tests.proof.cases import with_rows
from tests.proof.corpus import cases, read, verdicts

KEPT = read()


@pytest.fixture(scope="module", autouse=True)
def collected():
    """Collect ONNX's cases, which takes some seconds."""
    return cases()


@pytest.mark.parametrize("operator", KEPT)
def test_verdicts_on_the_cases_of_an_operator_are_those_that_are_kept(operator):
    """If a change is right: python -m tests.proof.corpus, and read its difference."""
    now, kept = verdicts(operator), KEPT[operator]
    changed = [
        f"{key}: {kept.get(key)} -> {now.get(key)}"
        for key in now.keys() | kept.keys()
        if now.get(key) != kept.get(key)
    ]
    assert not changed, f"{operator}: {len(changed)} of {len(kept)} verdicts changed"


def test_every_operator_of_the_cases_is_kept():
    able = {name for name, some in cases().items() if any(any(with_rows(each)) for each in some)}
    assert able == KEPT.keys()
