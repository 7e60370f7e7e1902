"""The diagram of confidences has a point for each group of answers."""

from xml.etree import ElementTree

import pytest

from experiments.handwriting.evaluation import Outcome
from experiments.handwriting.reliability import diagram, groups


def outcomes(probability: float, num_right: int, num_wrong: int) -> list[Outcome]:
    return [
        Outcome("dates", at < num_right, probability, "1/2", "1/2" if at < num_right else "112")
        for at in range(num_right + num_wrong)
    ]


def test_answers_are_grouped_by_their_certainty() -> None:
    nothing_found = Outcome("dates", False, 0.0, "1/2", "")
    measured = [*outcomes(0.6, 1, 1), *outcomes(0.97, 4, 0), *outcomes(1.0, 2, 0), nothing_found]
    assert groups(measured) == [
        pytest.approx((0.6, 0.5, 2)), pytest.approx((0.97, 1, 4)), (1.0, 1.0, 2),
    ]  # fmt: skip


def test_better_than_certain_is_above_the_diagonal() -> None:
    drawing = ElementTree.fromstring(diagram(outcomes(0.5, 3, 1)))
    (point,) = (each for each in drawing if each.tag.endswith("circle"))
    size = float(drawing.attrib["width"])
    assert float(point.attrib["cx"]) == size / 2
    assert float(point.attrib["cy"]) < size / 2
    assert "75.0% right" in "".join(point.itertext())
