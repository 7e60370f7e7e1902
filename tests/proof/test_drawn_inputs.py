"""Drawn inputs: the sizes and values of each row, and how far two answers differ."""

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.proof import drawn_inputs
from serving.proof.drawn_inputs import (
    draws,
    draws_of_size,
    further_draws,
    is_near,
    relative_error,
    take,
)
from serving.tensors import DTYPES, Tensor


def drawn(datatype, shape=(-1, 200), num_rows=8):
    (unlike, like) = draws_of_size([Tensor("x", datatype, shape)], num_rows, {}, 5)
    return unlike["x"], like["x"]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_floats_are_of_every_magnitude_the_loud_rows_last(datatype):
    unlike, like = drawn(datatype)
    assert unlike.dtype == like.dtype == DTYPES[datatype]
    signed, unit, levels, magnitudes, zeros, huge, infinite, nan = unlike.astype(np.float64)
    assert signed.min() < -0.9 < 0.9 < signed.max()
    assert (np.abs(signed) <= 1).all()
    for each in (unit, *like):
        assert (each > 0).all()
        assert (each <= 1).all()
        assert each.min() < 0.1 < 0.9 < each.max()
    assert (levels == levels.round()).all()
    assert levels.min() < 10 < 245 < levels.max() <= 255
    sizes = np.abs(magnitudes)
    assert 0.99 < sizes.min() < 2 < 5_000 < sizes.max() < 10_000
    assert (magnitudes < 0).any() & (magnitudes > 0).any()
    assert not zeros.any()
    assert 40 < (huge < 0).sum() < 160
    assert (np.abs(huge) > 1e29).all()
    for row, odd in ((infinite, np.isposinf), (nan, np.isnan)):
        rest = row[~odd(row)]
        assert 40 < len(rest) < 160
        assert (rest >= 0).all() & (rest < 1).all()


@pytest.mark.parametrize(
    ("datatype", "least", "most"),
    [
        ("UINT8", 0, 255), ("INT8", -128, 127), ("INT16", 0, 127), ("UINT16", 0, 127),
        ("INT32", 0, 127), ("INT64", 0, 127), ("UINT64", 0, 127), ("BOOL", 0, 1),
    ],
)  # fmt: skip
def test_integers_are_those_of_every_vocabulary_and_then_masks(datatype, least, most):
    unlike, like = drawn(datatype)
    assert unlike.dtype == like.dtype == DTYPES[datatype]
    assert (unlike.astype(int).min(), unlike.astype(int).max()) == (least, most)
    assert {*like.reshape(-1).astype(int)} == {0, 1}


def test_texts_are_numbers_words_and_nothing():
    unlike, like = drawn("BYTES")
    assert {*unlike.reshape(-1)} == {"0", "1", "a b c", ""}
    assert {*like.reshape(-1)} == {"0", "1"}


def test_fewer_rows_and_scalars_are_drawn_too():
    for unlike, like in (drawn("FP32", num_rows=1), drawn("FP32", ())):
        assert unlike.shape == like.shape
    assert drawn("FP32", num_rows=2)[0].shape == (2, 200)
    assert drawn("FP32", (3, -1))[0].shape == (3, 5), "a size in the graph is kept"
    assert drawn("FP32", (-1, 0))[0].shape == (8, 0)


def test_draws_are_the_same_each_time_and_unlike_one_another():
    first, second = drawn("UINT8"), drawn("UINT8")
    np.testing.assert_array_equal(first[0], second[0])
    assert (first[0] & 1 != first[1]).any()
    assert len({row.tobytes() for row in first[0]}) == 8


def test_open_axes_have_their_names_sizes_or_the_usual_ones():
    tensors = [Tensor("x", "UINT8", (-1, -1, -1, 3), names=("N", "L", "M", "C"))]
    (unlike, _) = draws_of_size(tensors, 2, {"N": 7, "L": 4, "C": 9}, 6)
    assert unlike["x"].shape == (2, 4, 6, 3)
    sizes = [each["x"].shape[1] for each in draws([Tensor("x", "UINT8", (-1, -1))], 2)]
    assert sizes == [32, 32, 8, 8, 1, 1, 64, 64, 512, 512]
    assert len([*draws([Tensor("x", "UINT8", (-1, 3))], 2)]) == 2


def test_no_more_than_a_batch_may_take_is_drawn(monkeypatch):
    tensors = [Tensor("x", "UINT8", (-1, 10)), Tensor("y", "UINT8", (-1, 5))]
    monkeypatch.setattr(drawn_inputs, "MAX_BYTES", 30)
    assert len([*draws_of_size(tensors, 2, {}, 1)]) == 2
    monkeypatch.setattr(drawn_inputs, "MAX_BYTES", 29)
    assert not [*draws_of_size(tensors, 2, {}, 1)]


@pytest.mark.parametrize(
    ("columns", "sizes"), [(1 << 12, [512]), ((1 << 12) + 1, []), (1 << 15, []), (1 << 16, [])]
)
def test_inputs_of_a_batch_take_16_mib_at_most(columns, sizes):
    """Of eight rows; sizes that would take more are not tried."""
    tensors = [Tensor("x", "UINT8", (-1, -1, columns))]
    drawn = draws_of_size(tensors, 8, {}, 512)
    assert [each["x"].shape[1] for each in islice(drawn, 1)] == sizes


def test_rows_are_taken_in_the_order_that_is_asked_for():
    feeds = {"x": np.arange(4), "y": np.arange(8).reshape(4, 2)}
    found = take(feeds, (2, 0, 2))
    assert found["x"].tolist() == [2, 0, 2]
    assert found["y"].tolist() == [[4, 5], [0, 1], [4, 5]]


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("wanted", "answer", "error"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], 0.0),
        ([[100.0, 1.0]], [[100.0, 2.0]], 0.5),  # beside 1 + 1 % of the row's greatest
        ([[-100.0, 1.0]], [[-100.0, 0.0]], 0.5),
        ([[100.0], [1.0]], [[100.0], [2.0]], 1 / 1.01),  # of its own row
        ([[0.0, 100.0]], [[1.0, 100.0]], 1.0),
        ([[0.0]], [[0.0]], 0.0), ([[0.0]], [[1.0]], INF),
        ([[NAN, 1.0]], [[NAN, 1.0]], 0.0), ([[NAN, 1.0]], [[2.0, 1.0]], INF),
        ([[2.0, 1.0]], [[NAN, 1.0]], INF), ([[INF, 1.0]], [[INF, 1.0]], 0.0),
        ([[INF, 1.0]], [[-INF, 1.0]], INF), ([[1.0]], [[1.0, 1.0]], INF),
        ([[1, 2]], [[1, 2]], 0.0), ([[1, 2]], [[1, 3]], INF), ([], [], 0.0),
    ],
    ids=str,
)  # fmt: skip
def test_difference_is_relative_to_the_numbers_of_a_row(wanted, answer, error):
    kind = np.int64 if wanted and isinstance(wanted[0][0], int) else np.float32
    found = relative_error(np.array(wanted, kind), np.array(answer, kind))
    assert min(found, 1e300) == pytest.approx(min(error, 1e300), rel=1e-6)


def _pairs(kind):
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    return shapes.flatmap(
        lambda shape: st.tuples(
            hnp.arrays(kind, shape, elements=st.floats(width=8 * np.dtype(kind).itemsize)),
            hnp.arrays(kind, shape, elements=st.sampled_from((0, 1e-7, -1e-6, 1e-4, NAN, INF))),
        )
    )


@given(
    st.sampled_from((np.float16, np.float32, np.float64)).flatmap(_pairs),
    st.sampled_from((1e-6, 1e-4, 1e-2)),
)
def test_what_is_near_is_within_the_difference_that_is_asked(pair, most):
    wanted, relative = pair
    with np.errstate(all="ignore"):
        answer = (wanted * (1 + relative)).astype(wanted.dtype)
    assert not is_near(wanted, answer, most) or relative_error(wanted, answer) <= most


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_infinities_are_near_to_nothing_and_warn_of_nothing(kind):
    """1e-8 is 0 as a float16, and 0 times infinity is NaN."""
    infinite = np.array([[INF]], kind)
    assert not is_near(infinite, infinite, 1e-6)


def test_rounding_is_near_and_other_infinities_are_not():
    wanted = np.array([[0.5, 0.25], [8.0, 1.0]], np.float32)
    assert is_near(wanted, wanted * np.float32(1 + 1e-7), 1e-4)
    assert not is_near(wanted, wanted + np.array([[1e-4], [0]], np.float32), 1e-4)
    infinite = np.array([[INF, 1.0]], np.float32)
    assert not is_near(infinite, np.array([[1.0, 2.0]], np.float32), 1e-4)


def is_unit(row):
    return ((row >= 0) & (row < 1)).all() and len({*row}) > 20


def are_two(row, size):
    """Whether both signs of a number are there, and no others."""
    return {*row} == {-size, size}


LOUD = [
    lambda row: are_two(row, 1e30),
    lambda row: np.isposinf(row).any() and is_unit(row[~np.isposinf(row)]),
    lambda row: np.isnan(row).any() and is_unit(row[~np.isnan(row)]),
    lambda row: (row == 1e9).any() and is_unit(row[row != 1e9]),
    lambda row: are_two(row, 3e38),
    lambda row: np.isneginf(row).all(),
    lambda row: (row % 1e4 == 0).all() and 2e6 < row.max() <= 2.55e6 and row.min() >= 0,
    lambda row: np.isnan(row).all(),
    lambda row: are_two(row, 1e-38),
]
"""Each loud row, in their order."""


@pytest.mark.parametrize("seed", range(6))
def test_each_seed_has_the_next_three_loud_rows(seed):
    """After the last the first again."""
    (unlike, like) = draws_of_size([Tensor("x", "FP64", (-1, 200))], 8, {}, 5, seed)
    first = 3 * (seed % 3)
    for row, is_as_loud in zip(unlike["x"][5:], LOUD[first : first + 3], strict=True):
        assert is_as_loud(row)
    assert ((like["x"] > 0) & (like["x"] <= 1)).all()


def test_rows_without_elements_are_drawn_with_each_seed():
    for seed in range(3):
        (unlike, _) = draws_of_size([Tensor("x", "FP32", (-1, 0))], 8, {}, 5, seed)
        assert unlike["x"].shape == (8, 0)


def test_later_draws_have_axes_that_are_no_shorter():
    """A pool's window may be as long. Axes of one name are alike, and others may be not."""
    tensors = [Tensor("x", "UINT8", (-1, -1, -1, 3), names=("N", "L", "", "C")),
               Tensor("z", "UINT8", (-1, -1), names=("N", "L"))]  # fmt: skip
    taken = {"x": np.zeros((8, 4, 5, 3)), "z": np.zeros((8, 4))}
    found = [*further_draws(tensors, taken, 12)]
    assert len(found) == 12
    for seed, each in enumerate(found, 1):
        rows, length, other, channels = each["x"].shape
        assert (rows, channels, each["z"].shape) == (8, 3, (8, length))
        assert {length, other} <= ({5, 6, 10, 15} if seed % 2 else {5})
        assert (each["x"].max() == 1) == (seed % 4 == 0), "each fourth has masks"
    assert {each["x"].shape[1] for each in found} == {5, 6, 10, 15}
    plain = [Tensor("x", "FP32", (-1, 3))]
    drawn_ = [*further_draws(plain, {"x": np.zeros((8, 3), np.float32)}, 2)]
    assert [each["x"].shape for each in drawn_] == [(8, 3)] * 2
    assert not [*further_draws(plain, {"x": np.zeros((8, 3), np.float32)}, 0)]


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (2, 0, 3)])
def test_rows_without_elements_are_alike(shape):
    empty = np.zeros(shape, np.float32)
    assert relative_error(empty, empty) == 0.0
    assert is_near(empty, empty, 1e-4)


def test_infinity_in_a_row_is_no_magnitude_of_its_others():
    wanted = np.array([[INF, 1.0]], np.float32)
    answer = np.array([[INF, 2.0]], np.float32)
    assert relative_error(wanted, answer) == pytest.approx(1 / 1.01)


def test_each_row_is_near_by_its_own_numbers():
    """Those of another row make it no nearer."""
    wanted = np.array([[1e6, 1e6], [1.0, 1.0]], np.float32)
    assert is_near(wanted, wanted + np.array([[1.0], [0.0]], np.float32), 1e-2)
    assert not is_near(wanted, wanted + np.array([[0.0], [1.0]], np.float32), 1e-2)


@pytest.mark.filterwarnings("error")
def test_differences_of_infinities_warn_of_nothing():
    one, other = np.array([[INF, 1.0]], np.float32), np.array([[-INF, 0.0]], np.float32)
    assert relative_error(one, other) > 1e300
    assert not is_near(one, other, 1e-4)
    assert relative_error(one, one) == 0.0
