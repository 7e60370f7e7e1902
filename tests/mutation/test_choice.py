"""The tests that a mutant meets, and the list of those that none can notice."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.choice import chosen, statement, within_budget
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


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "late.py").write_text(SOURCE)
    return tmp_path


RECORD: dict[str, Any] = {
    "seconds": {"slow": 2.0, "quick": 0.1, "far": 0.2, "other": 0.5},
    "uses": {"fixture server": ["slow", "failed"]},
    "lines": {"late.py": {"1": [""], "3": ["fixture server", "quick"], "5": ["other"]}},
}


def test_tests_that_run_the_line_are_chosen_fastest_first(tree):
    assert chosen(RECORD, tree, "late.py", 4) == ["quick", "slow"]


def test_a_line_that_only_an_import_runs_has_all_tests(tree):
    assert chosen(RECORD, tree, "late.py", 2) == ["quick", "far", "other", "slow"]


def test_a_line_that_no_test_runs_has_those_of_its_file(tree):
    lines = RECORD["lines"]["late.py"] | {"5": []}
    record = RECORD | {"lines": {"late.py": lines}}
    assert chosen(record, tree, "late.py", 6) == ["quick", "slow"]
    (tree / "new.py").write_text(SOURCE)
    assert chosen(RECORD, tree, "new.py", 4) == []


def test_tests_end_with_the_budget_but_one_always_runs():
    assert within_budget(["a", "b", "c"], {"a": 1.0, "b": 20.0, "c": 9.0}) == ["a", "b"]
    assert within_budget(["a"], {"a": 90.0}) == ["a"]


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
