"""The page's plan of the house is the one that the boundaries are checked with."""

import re
from pathlib import Path

import pytest

from tests.test_boundaries import ORDER

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text("utf-8")


@pytest.mark.parametrize("package", ORDER)
def test_rooms_of_a_package_are_listed_from_the_ground_up(package):
    _, _, section = PAGE.partition(f"\n### {package}\n")
    listed = re.findall(r"(?m)^\| `([\w.]+)` \|", section.partition("\n##")[0])
    assert listed == ORDER[package].split()
