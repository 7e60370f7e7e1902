"""Patterns: which texts fit, which are refused, and the readings that fit."""

import re
from collections.abc import Iterator

import numpy as np
import pytest

from digit_classifier import Classifier
from digit_reader import read_numbers
from digit_reader.text.pattern import MAX_STATES, SYMBOLS, of_rows
from experiments.synthetic.hands import Writers, write
from experiments.synthetic.papers import file_of
from serving.errors import InvalidRequest
from training.data.mnist import Mnist


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    with Classifier.pretrained(device="cpu") as classifier:
        yield classifier


def fits(pattern: str, text: str) -> bool:
    states, state = of_rows(pattern), 0
    for symbol in text:
        state = int(states.moves[state, SYMBOLS.index(symbol)])
        if state < 0:
            return False
    return bool(states.ends[state])


@pytest.mark.parametrize(
    "pattern",
    [r"\d{2}/\d{2}/\d{4}", r"\d+[.,]\d{2}", r"^\d{1,3}( \d)*$", r"(?:1|2[0-3])?:[^.-]",
     r"-?(\d|1\d)*5", r"(\d{1,2})?-?[.,/]+(1|20){2,}", r"(1?2?){0,2}\.{,2}3", "1{2}|.-."],
)  # fmt: skip
def test_same_texts_fit_as_python_says(pattern: str) -> None:
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice([*"01235/.,-: "], rng.integers(1, 11))) for _ in range(3000)]
    texts += ["12/05/2026", "0,12", "100 2 3", "1:/", "2015", "12-/1120"]
    expected = [bool(re.fullmatch(pattern, text)) for text in texts]
    assert [fits(pattern, f"{text}\n") for text in texts] == expected
    assert any(expected)


def test_letters_are_ink_of_one_or_more_pieces() -> None:
    assert fits(r"[A-Z]{2}\d", "AA1\n")
    assert fits(r"[A-Z]{2}\d", "AAAAA1\n")
    assert not fits(r"[A-Z]{2}\d", "A1\n")
    assert fits(r"N\d|[A-Z0-9]", "7\n")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"\d{4", "expected literals"), (r"(\d", "missing )"), (r"\d)", "unbalanced"),
        (r"\d**", "multiple repeat"), (r"\d{3,2}", "min repeat"), ("[", "expected literals"),
        (r"\d$1", "$ is not read"), (r"\d(?=1)", "expected"), (r"(\d)\1", "expected"),
        ("\\", "expected"),
        (r"\d*", "needs a digit"), ("", "needs a digit"), ("1" * 201, "200 characters"),
        (r"(\d|1)*1(\d|1){20}", "simpler"), (r"(((\d{1,99}){1,99}){1,99}){1,99}", "simpler"),
        ("1" + "(" * 28 + "1" + ")*1?2?" * 28, "nested"), (r"\d++", "multiple repeat"),
        (r"\d{9999999999999}", "literals"), ("(" * 99 + "1" + ")*" * 33, "200|missing"),
    ],
)  # fmt: skip
def test_bad_and_complex_patterns_are_refused_in_one_line(pattern: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        of_rows(pattern)
    assert "\n" not in str(caught.value)
    assert any(word in str(caught.value) for word in words.split("|"))


def test_states_are_bounded() -> None:
    for pattern in (r"\d{90}", "(1?2?){3}4", "(" * 10 + "1" + ")*" * 10 + "2"):
        assert len(of_rows(pattern).moves) <= MAX_STATES


@pytest.fixture(scope="module")
def pages(mnist_sample: Mnist) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    return {text: 255 - write(text, Writers(mnist_sample.test), rng, (0.12, 0.3), "fonts").ink
            for text in ("12/05/2026", "-3,14", "496.12", "1234 5678")}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "pattern", "sure"),
    [
        ("12/05/2026", r"\d{2}/\d{2}/\d{4}", 0.8),
        ("496.12", r"-?\d+[.,]\d{2}", 0.8),
        ("-3,14", r"-?\d+[.,]\d{2}", 0.8),
        ("1234 5678", r"\d{4} \d{4}", 0.3),
    ],
)
def test_number_that_fits_is_read(
    text: str, pattern: str, sure: float, pages: dict[str, np.ndarray], classifier: Classifier
) -> None:
    (number,) = read_numbers(file_of(pages[text]), classifier, pattern)
    assert number.text == text
    assert number.probability > sure
    fields = "".join(field.text for field in number.fields)
    assert fields == text.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("496.12", r"\d{6}"), ("12/05/2026", r"\d+[.,]\d{2}"), ("-3,14", r"\d{5}"),
     ("496.12", r"[A-Z]{2}\d{4}")],
)  # fmt: skip
def test_number_that_does_not_fit_is_doubted(
    text: str, pattern: str, pages: dict[str, np.ndarray], classifier: Classifier
) -> None:
    found = read_numbers(file_of(pages[text]), classifier, pattern)
    assert all(number.probability < 0.6 for number in found)
