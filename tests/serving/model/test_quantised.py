"""How far a rounding moves an output: the scales of a graph whose activations are quantised."""

import numpy as np
import pytest

from serving.model.loading import load_model
from serving.model.quantised import output_step
from tests.serving.model.graphs import node, rows_model, save, two_layers

ZERO = np.uint8(128)


def rounded(source, target, scale):
    """The nodes that round a tensor to steps of a scale."""
    return [
        node("QuantizeLinear", [source, scale, "zero"], [f"{target}_whole"]),
        node("DequantizeLinear", [f"{target}_whole", scale, "zero"], [target]),
    ]


def graph(*nodes, **scales):
    constants = {name: np.array(each, np.float32) for name, each in scales.items()}
    return rows_model(*nodes, constants={"zero": ZERO, **constants})


BOTH = [*rounded("x", "a", "half"), node("Neg", ["a"], ["b"]), *rounded("b", "y", "fine")]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (two_layers(), 0.0),
        (graph(*BOTH, half=0.5, fine=0.25), 0.25),
        (graph(*BOTH, half=0.5, fine=-0.75), 0.75),
        (graph(*rounded("x", "a", "half"), *rounded("a", "b", "fine"), node("Neg", ["b"], ["y"]),
               half=0.5, fine=0.25), 0.5),
        (graph(*rounded("x", "a", "half"), *rounded("a", "b", "fine"), node("Neg", ["b"], ["y"]),
               half=0.5, fine=[0.25, 2.0, -4.0, 1.0]), 4.0),
        (graph(*rounded("w", "a", "half"), node("Mul", ["x", "a"], ["y"]), half=0.5,
               w=[1, 2, 3, 4]), 0.5),
        (graph(rounded("w", "a", "half")[0], node("Cast", ["a_whole"], ["b"], to=1),
               node("Mul", ["x", "b"], ["y"]), half=0.5, w=[1, 2, 3, 4]), 0.0),
        (graph(node("Abs", ["one"], ["half"]), *rounded("x", "y", "half"), one=0.5), 0.0),
    ],
    ids=["none", "output", "sign", "inside", "channels", "weights", "weights alone", "computed"],
)  # fmt: skip
def test_step_is_that_of_an_output_or_else_the_largest(made, expected):
    assert output_step(made.SerializeToString()) == expected


def test_loaded_model_has_its_step(tmp_path):
    made = graph(*BOTH, half=0.5, fine=0.25)
    assert load_model(save(made, tmp_path), device="cpu").output_step == 0.25
