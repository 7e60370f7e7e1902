"""A caller's values go into a tensor's type only if each of them stays what it is."""

from itertools import product

import numpy as np
import pytest

from serving.errors import InvalidRequest
from serving.tensors import DTYPES, Tensor, as_array

FLOATS = 0.0, -1.5, 3e38, 1e39, -1e39, np.inf, np.nan
INTEGERS = [each + more for each in (0, 2**7, 2**8, 2**15, 2**31, 2**32, 2**62) for more in (-1, 0)]


def taken(datatype, value):
    """Return the array that is made of a value; None if it is refused."""
    try:
        return as_array(Tensor("x", datatype, (-1,)), value)
    except InvalidRequest:
        return None


@pytest.mark.parametrize("kind", [list, np.float64])
def test_floats_go_into_float32_if_each_finite_one_stays_finite(kind):
    for values in product(FLOATS, repeat=2):
        found = taken("FP32", list(values) if kind is list else np.array(values))
        is_lost = any(np.isfinite(each) and abs(each) > 3.5e38 for each in values)
        assert (found is None) == is_lost, f"one of {values} became an infinity, or none did"
        if found is not None:
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, np.array(values, np.float32))


@pytest.mark.parametrize("datatype", [each for each in DTYPES if "INT" in each])
@pytest.mark.parametrize("kind", [list, np.int64])
def test_integers_go_into_a_type_that_holds_each_of_them(datatype, kind):
    most = np.iinfo(DTYPES[datatype])
    for values in product(INTEGERS, repeat=2):
        found = taken(datatype, list(values) if kind is list else np.array(values, np.int64))
        fits = all(most.min <= each <= most.max for each in values)
        assert (found is not None) == fits, f"one of {values} became another number, or none did"
        if found is not None:
            assert found.tolist() == list(values)
