"""The tests that a mutant meets, and the list of those that none can notice."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.choice import far, near, nearest, package_of, statement, within_budget
from tests.mutation.locks import REFUSES, Busy, locked

ROOT = Path(__file__).parents[2]
SOURCE = """\
def late(now_s,
         at_s=3.0):
    if (now_s
            > at_s):
        return [
            now_s,
        ]
"""


@pytest.mark.parametrize(
    ("line", "expected"), [(2, (1, 2)), (4, (3, 4)), (6, (5, 7))], ids=["signature", "if", "list"]
)
def test_a_line_counts_with_its_statement(line, expected):
    assert statement(SOURCE, line) == expected


RECORD: dict[str, Any] = {
    "seconds": {"slow": 2.0, "quick": 0.1, "far": 0.2, "other": 0.5, "starting": 3.0},
    "processes": ["other", "starting"],
    "uses": {"fixture server": ["slow", "failed"]},
    "contexts": ["", "fixture server", "other", "quick"],
    "lines": {"late.py": {"1": [0], "3": [1, 3], "5": [2]}},
}


def test_tests_that_run_the_line_are_chosen_fastest_first_then_processes():
    assert near([RECORD], SOURCE, "late.py", 4) == ["quick", "slow", "other", "starting"]
    assert near([RECORD], SOURCE, "late.py", 6) == ["other", "starting"]


def test_far_tests_start_no_process_and_are_not_asked_twice():
    assert far([RECORD], SOURCE, "late.py", 4, besides=["quick"]) == ["slow"]


def test_a_line_that_only_an_import_runs_has_those_of_its_file():
    assert far([RECORD], SOURCE, "late.py", 2, besides=[]) == ["quick", "slow"]


def test_a_line_that_only_an_import_runs_has_the_packages_others_behind_them():
    """A class's attribute may be all that a test reads of a file."""
    record = RECORD | {"seconds": RECORD["seconds"] | {"reads it": 0.05}}
    expected = ["quick", "other", "slow", "reads it", "far", "starting"]
    assert near([record], SOURCE, "late.py", 2) == expected
    assert near([record], SOURCE, "late.py", 4) == ["quick", "slow", "other", "starting"]


def test_a_line_that_no_test_runs_has_those_of_its_file():
    record = RECORD | {"lines": {"late.py": RECORD["lines"]["late.py"] | {"5": []}}}
    assert far([record], SOURCE, "late.py", 6, besides=[]) == ["quick", "slow"]
    assert near([record], SOURCE, "late.py", 6) == ["quick", "slow", "other", "starting"]
    assert far([RECORD], SOURCE, "new.py", 4, besides=[]) == []


def test_tests_end_with_the_budget_but_one_always_runs():
    assert within_budget(["a", "b", "c"], {"a": 1.0, "b": 20.0, "c": 9.0}, 25.0) == ["a", "b"]
    assert within_budget(["a"], {"a": 90.0}, 25.0) == ["a"]


def test_each_file_has_nearest_tests():
    named = nearest((ROOT / "docs" / "tour.md").read_text("utf-8"))
    files = [file for top in ("serving", "digit_classifier") for file in (ROOT / top).rglob("*.py")]
    missing = [file for file in files if not package_of(str(file.relative_to(ROOT)), named)]
    assert [file.relative_to(ROOT) for file in missing] == [Path("serving/__init__.py")]


def test_equivalent_changes_are_of_lines_that_are_there():
    rows = (Path(__file__).parent / "equivalent.tsv").read_text("utf-8").splitlines()[1:]
    for row in rows:
        file, before, after, reason = row.split("\t")
        code = " ".join((ROOT / file).read_text("utf-8").split())
        assert before in code, f"{file} has changed: {before}"
        assert after != before
        assert reason


def test_second_run_of_a_draw_is_refused_while_the_first_goes_on(tmp_path):
    results, others = tmp_path / "5-200-abc.jsonl", tmp_path / "6-200-abc.jsonl"
    text = r"another run of the same draw has .*5-200-abc\.jsonl: wait, or draw another seed"
    for each, expected in (results, pytest.raises(Busy, match=text)), (others, nullcontext()):
        with locked(results, REFUSES), expected, locked(each, REFUSES):
            assert each is others
    with locked(results, REFUSES):
        pass
