"""Elements of sizes, operator by operator, and what values and sizes are where nothing is said."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from onnx import helper

from serving.proof.elements import follow
from serving.proof.sizes import MOST_ROWS, MOST_SIZE, ONE, ROWS, Size, Unknowns
from serving.proof.values import (
    MAX_ITEMS,
    Mixes,
    Node,
    Numbers,
    Value,
    computed,
    constant,
    sizes_of,
)

FOUR = [1, 2, 3, 4]
SQUARE = [[1, 2], [3, 4]]
BACKWARDS = -(2**63)


def node_of(operator, inputs, num_outputs=1, **attributes):
    written = {name: helper.make_attribute(name, each) for name, each in attributes.items()}
    return Node(operator, 18, inputs, [True] * num_outputs, written, Unknowns(), False)


def whole(numbers, kind=np.int64):
    """A constant of whole numbers."""
    array = np.array(numbers, kind)
    return constant(array, array.shape)


def shown(value):
    """The shape and the elements of an output, as far as they are numbers."""
    return [each.number for each in value.shape], [each.number for each in value.vector]


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "expected"),
    [
        ("Add", [[3, 4], [1, 2]], {}, [4, 6]), ("Sub", [[3, 4], [1, 2]], {}, [2, 2]),
        ("Mul", [[3, 4], [1, 2]], {}, [3, 8]), ("Add", [SQUARE, [1, 2]], {}, [[2, 4], [4, 6]]),
        ("Div", [[7, 9], [2, 4]], {}, [3, 2]), ("Div", [[6], [-2]], {}, [-3]),
        ("Mod", [[7, 9], [4, 5]], {}, [3, 4]),
        ("Min", [[3, 1], [2, 2], [4, 0]], {}, [2, 0]), ("Max", [[3, 1], [2, 2]], {}, [3, 2]),
        ("Equal", [[3, 1], [3, 2]], {}, [1, 0]),
        ("Where", [[1, 0], [5, 6], [7, 8]], {}, [5, 8]),
        ("Cast", [[3]], {"to": 7}, [3]), ("Cast", [[3]], {"to": 6}, [3]),
        ("Identity", [SQUARE], {}, SQUARE), ("Neg", [[3, -1]], {}, [-3, 1]),
        ("Reshape", [FOUR, [2, -1]], {}, SQUARE),
        ("Gather", [[5, 6, 7], [2, 0]], {}, [7, 5]),
        ("Gather", [SQUARE, [1]], {"axis": 1}, [[2], [4]]),
        ("Slice", [FOUR, [1], [3]], {}, [2, 3]), ("Slice", [FOUR, [0], [4], [0], [3]], {}, [1, 4]),
        ("Slice", [SQUARE, [1], [2], [1]], {}, [[2], [4]]),
        ("Slice", [FOUR, [-1], [BACKWARDS], [0], [-1]], {}, [4, 3, 2, 1]),
        ("ReduceProd", [[2, 3, 4]], {}, [24]), ("ReduceProd", [[2, 3]], {"keepdims": 0}, 6),
        ("Concat", [[1], [2, 3]], {"axis": 0}, [1, 2, 3]),
        ("Unsqueeze", [[1, 2], [0]], {}, [[1, 2]]), ("Squeeze", [[[1, 2]], [0]], {}, [1, 2]),
        ("Transpose", [SQUARE], {"perm": [1, 0]}, [[1, 3], [2, 4]]),
        ("Expand", [[1, 2], [2, 2]], {}, [[1, 2], [1, 2]]),
    ],
    ids=str,
)  # fmt: skip
def test_elements_of_numbers_are_numbers(operator, inputs, attributes, expected):
    found: Any = follow(node_of(operator, list(map(whole, inputs)), **attributes))
    (value,) = found
    array = np.array(expected)
    assert shown(value) == ([*array.shape], array.reshape(-1).tolist())


@pytest.mark.parametrize("inputs", [[FOUR], [FOUR, [2, 2]]])
def test_parts_of_elements_are_elements(inputs):
    found: Any = follow(node_of("Split", list(map(whole, inputs)), 2))
    assert list(map(shown, found)) == [([2], [1, 2]), ([2], [3, 4])]


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Relu", [[1]], {}), ("Div", [[7], [0]], {}), ("Div", [[-7], [2]], {}),
        ("Mod", [[7], [-2]], {}), ("Cast", [[3]], {"to": 1}), ("Reshape", [FOUR, [0, 2]], {}),
        ("Expand", [[1], [0]], {}), ("Slice", [FOUR, [2], [BACKWARDS], [0], [-1]], {}),
        ("ReduceProd", [[1 << 30, 1 << 30]], {}), ("ReduceProd", [SQUARE], {}),
        ("Concat", [FOUR * 16, [1]], {"axis": 0}), ("Gather", [FOUR, [4]], {}),
    ],
    ids=str,
)  # fmt: skip
def test_elements_that_are_not_certain_are_not_followed(operator, inputs, attributes):
    assert follow(node_of(operator, list(map(whole, inputs)), **attributes)) is None


def test_tensor_whose_elements_are_not_known_is_not_followed():
    assert follow(node_of("Identity", [Value((ONE,))])) is None
    assert follow(node_of("Add", [whole([1]), Value((ONE,))])) is None
    assert follow(node_of("Concat", [])) is None


def test_elements_of_32_bits_stay_narrow_and_may_overflow():
    narrow = whole([1 << 30], np.int32)
    (doubled,) = follow(node_of("Add", [narrow, narrow])) or []
    assert doubled.is_narrow
    assert shown(doubled) == ([1], [None]), "it is another number there"
    (wide,) = follow(node_of("Cast", [narrow], to=7)) or []
    assert not wide.is_narrow
    assert shown(wide) == ([1], [1 << 30])
    (again,) = follow(node_of("Cast", [whole([1 << 31])], to=6)) or []
    assert (again.is_narrow, shown(again)) == (True, ([1], [None]))


class Unseen:
    """An element that nobody may look at."""

    def fail(self, *_):
        raise AssertionError("elements of too many are looked at")

    __add__ = __sub__ = __mul__ = __eq__ = fail
    __hash__ = None
    number = is_positive = property(fail)


@pytest.mark.parametrize(
    "operator", ["Add", "Sub", "Mul", "Where", "Equal", "Div", "Mod", "Min", "Max"]
)
def test_elements_that_are_too_many_beside_each_other_are_not_looked_at(operator):
    """Of twelve vectors of 64 there would be 2^72."""
    column, row = (np.full(shape, Unseen(), object) for shape in ((9, 1), (1, 8)))
    inputs = [Value(tuple(map(Size.of, each.shape)), items=each) for each in (column, row, row)]
    number = 3 if operator == "Where" else 2
    assert follow(node_of(operator, inputs[:number])) is None


def test_value_is_of_its_shape_where_nothing_else_is_said():
    assert Value(()) == Value(
        shape=(), axis=None, outer=None, is_narrow=False, varies=False, is_mean=False,
        sources=frozenset(),
    )  # fmt: skip
    plain = Value((ONE,))
    assert (plain.items, plain.data, plain.numbers_of, plain.dtype) == (None, None, None, "")
    assert asdict(Numbers(ONE)) == {
        "times": asdict(ONE), "along": None, "is_exact": False, "is_tuple": False,
    }  # fmt: skip
    assert not computed(sizes_of([ONE])).is_narrow
    assert not Mixes("why").is_located


def test_values_are_equal_by_where_their_rows_are_and_not_by_their_elements():
    plain = Value((ONE,))
    for change in ({"items": sizes_of([ONE])}, {"data": np.ones(3)}, {"dtype": "int64"},
                   {"numbers_of": Numbers(ONE)}):  # fmt: skip
        assert replace(plain, **change) == plain
    for change in ({"axis": 0}, {"outer": ONE}, {"is_narrow": True}, {"varies": True},
                   {"is_mean": True}, {"sources": frozenset("N")}):  # fmt: skip
        assert replace(plain, **change) != plain


@pytest.mark.parametrize("kind", [bool, np.int32, np.int64])
def test_small_constant_of_whole_numbers_has_elements(kind):
    array = np.ones(MAX_ITEMS, kind)
    value = constant(array, [MAX_ITEMS])
    assert (shown(value), value.is_narrow) == (([64], [1] * 64), kind == np.int32)
    assert value.data is array
    large = constant(np.ones(65, kind), [65])
    assert (large.items, large.shape) == (None, (Size.of(65),))
    assert large.data is not None


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_constant_of_another_type_has_none(kind):
    value = constant(np.ones(2, kind), [2])
    assert (value.items, value.shape, value.is_narrow) == (None, (Size.of(2),), False)
    assert value.data is not None
    assert constant(None, [3, 4]) == Value((Size.of(3), Size.of(4)))


@pytest.mark.parametrize(
    ("name", "most"),
    [("N", 16_384), ("+1", 2_000_000), ("*1", 1 << 40)],
)
def test_unknown_has_the_bound_of_its_kind(name, most):
    size = Size.unknown(name)
    assert (size.fits(most + 1), size.fits(most)) == (True, False)
    assert size.is_positive
    assert (MOST_ROWS, MOST_SIZE) == (16_384, 2_000_000)


@pytest.mark.parametrize("name", ["?1", "N?1"])
def test_unknown_of_any_size_has_no_bound(name):
    size = Size.unknown(name)
    assert (size.fits(1 << 100), size.is_positive) == (False, False)
    assert size.varies == name.startswith("N")


def test_sum_of_more_than_32_terms_is_given_up():
    total = Size.of(0)
    for number in range(32):
        total += Size.unknown(f"?{number}")
    assert len(total.terms) == 32
    assert total + total == total * Size.of(2)
    with pytest.raises(OverflowError):
        total + Size.unknown("?32")


def test_smaller_of_a_number_and_a_size_is_at_least_1():
    unknowns = Unknowns()
    end = Size.unknown("+1")
    size = unknowns.at_most(5, end)
    assert size.is_positive
    assert unknowns.end_of(size) == end
    assert unknowns.end_of(end) is None
    assert unknowns.at_most(5, end) == size
    assert unknowns.of("it", end) != unknowns.of("it", end, mark="*")
    assert unknowns.of("it", ROWS, mark="*").varies
