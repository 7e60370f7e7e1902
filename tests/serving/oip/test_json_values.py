"""Values that are read alone, where a request is known but for them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.oip import rest
from serving.oip.rest import find_values
from serving.oip.values import to_raw

ODD = st.sampled_from([0.5, 1e300, -1, 300, True, None, "1", [1, 2]])
GOOD = st.lists(st.integers(0, 255), min_size=4, max_size=4)
NESTED = GOOD.map(lambda numbers: [numbers[:2], numbers[2:]])
LISTS = st.one_of(GOOD, NESTED, st.tuples(GOOD, ODD).map(lambda both: [*both[0][:3], both[1]]))
PARTS = st.sampled_from(
    ["[", "]", "1", ",", " ", "NaN", "true", '"', "{", "}", '"data":', '"shape":[4]', "\\", "1e2"]
)
TEXTS = st.one_of(LISTS.map(json.dumps), st.lists(PARTS, max_size=12).map("".join))
TOP = st.sampled_from([{}, {"parameters": {"a": '"data": [1]'}}, {"data": [7, 7, 7, 7]}])
SIZES = st.sampled_from([0, 1, 5, 99])
EXTRAS = st.sampled_from([{}, {"data ": [1]}, {'"data"': [7, 7, 7, 7]}])


@st.composite
def requests(draw):
    """A request as text, and where the values of its input stand."""
    shape = draw(st.sampled_from([[4], [2, 2]]))
    datatype = draw(st.sampled_from(["UINT8", "FP32"]))
    fields = {"name": "x", "shape": shape, "datatype": datatype, "data": "HERE", **draw(EXTRAS)}
    order = draw(st.permutations(sorted(fields)))
    document = {**draw(TOP), "inputs": [{name: fields[name] for name in order}]}
    if draw(st.booleans()):
        document["outputs"] = [{"name": "y", "parameters": {"binary_data": False}}]
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]))
    before, _, after = json.dumps(document, separators=separators).partition('"HERE"')
    return before, after


def outcome(body):
    try:
        sent = rest.read(body)
    except InvalidRequest as err:
        return str(err)
    return to_raw(sent.values[0]), sent


def without_values(sent):
    return sent._replace(values=None)


@given(requests(), st.one_of(GOOD, NESTED), TEXTS, st.sampled_from(["", " ", "}"]), SIZES)
def test_other_values_are_read_as_the_whole_request_would_be(request_, first, text, end, num_bytes):
    before, after = request_
    whole = f"{before}{json.dumps(first)}{after}".encode()
    known = outcome(whole)
    values = find_values(whole, None, known[1])
    body = f"{before}{text}{after}{end}".encode()
    expected = outcome(body)
    raw = values and read(values, body, num_bytes)
    if raw:
        assert raw == expected[0]
        assert without_values(expected[1]) == without_values(known[1])


def read(values, body, num_bytes):
    """The raw contents, or None, as the paths of HTTP read them."""
    found = [rest.read_values(text, values.datatype) for text in values.parts(body, num_bytes)]
    parts = [part for part in found if part is not None]
    if not parts or parts != found or any(sizes != parts[0][1] for _, sizes in parts):
        return None
    raw = b"".join(raw for raw, _ in parts)
    return raw if len(raw) == values.num_bytes else None


@pytest.mark.parametrize("num_bytes", [0, 1, 2, 99])
@pytest.mark.parametrize(
    "text", ["91,2,3,4]", "{1,2,3,4]", '"1,2,3,4]', "[1,2,3,4,]", "[,1,2,3,4]", "[1,2,  ,3,4]"]
)
def test_values_that_are_no_json_are_not_read(text, num_bytes):
    form = '{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [4], "data": %s}]}'
    good, bad = (form % each for each in ("[1,2,3,4]", text))
    values = find_values(good.encode(), None, outcome(good.encode())[1])
    assert "JSON" in outcome(bad.encode())
    assert read(values, bad.encode(), num_bytes) is None


def test_long_text_around_values_is_not_kept():
    form = '{"parameters": {"a": "%s"}, "inputs": [{"name": "x", "datatype": "UINT8", %s}]}'
    for size in (100, 10_000):
        body = (form % ("a" * size, '"shape": [4], "data": [1,2,3,4]')).encode()
        head = (form % ("a" * size, '"shape": [4], "parameters": {"binary_data_size": 4}')).encode()
        found = find_values(body, None, outcome(body)[1])
        behind = find_values(head + bytes(4), len(head), None)
        assert (found is None, behind is None) == (size > 8 << 10,) * 2


@pytest.mark.parametrize("num_bytes", [0, 2, 9, 99])
@pytest.mark.parametrize(
    "text", ["[1,2,3,4]", "[[1, 2], [3, 4]]", "[[1,2],[3,4]]", "[[[1],[2]]\n,[[3],[4]]]"]
)
@pytest.mark.parametrize("form", ['"data": %s, "shape": [2, 2]', '"shape": [2,2], "data":%s'])
def test_values_are_found_wherever_they_stand(form, text, num_bytes):
    body = (
        '{"inputs": [{"name": "x", "datatype": "UINT8", %s}], "id": ""}' % (form % text)
    ).encode()
    assert read(find_values(body, None, outcome(body)[1]), body, num_bytes) == b"\1\2\3\4"


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [9], "data": [0]}]}',
        '{"data": [7], "inputs": [{"name": "x", "datatype": "UINT8", "shape": [0], "data": []}]}',
        '{"inputs": [{"name": "x", "datatype": "BOOL", "shape": [1], "data": [true]}]}',
    ],
)
def test_a_list_that_is_not_the_inputs_is_no_place_of_values(text):
    assert find_values(text.encode(), None, outcome(text.encode())[1]) is None


@pytest.mark.parametrize("number", ["1e400", "-1E+999", "1" + 400 * "0" + ".5"])
def test_number_too_large_is_no_infinity_beside_nan_either(number):
    form = '{"inputs": [{"name": "x", "datatype": "FP64", "shape": [2], "data": [%s, %s]}]}'
    for other in ("1.5", "NaN", "-Infinity"):
        with pytest.raises(InvalidRequest, match="number"):
            rest.read((form % (other, number)).encode())
    assert rest.read((form % ("NaN", "1e300")).encode()).values[0][1] == 1e300


def test_name_may_be_any_text_that_utf_8_has():
    form = '{"inputs": [{"name": "%s", "datatype": "UINT8", "shape": [1], "data": [1]}]}'
    sent = rest.read((form % r"a\u200b\n").encode())
    assert sent.inputs[0].name == "a\u200b\n"
    half = (form % r"\ud800").encode()
    for body in (half, half.replace(b"[1]}", b"[NaN]}")):
        with pytest.raises(InvalidRequest, match=r"UTF-8|surrogate"):
            rest.read(body)
