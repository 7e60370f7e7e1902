from pathlib import Path
from typing import Any

from training.lab.study.comparison import (
    corruption_table,
    markdown,
    outlier_table,
    recipe_table,
    significance_table,
    tables,
)
from training.lab.study.corruptions import MNIST_C
from training.lab.study.results import RESULTS, Results
from training.report.page import Table

ROOT = Path(__file__).parents[4]


def run(recipe: str, seed: int, wrong: list[int], validation: float = 0.99) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "seed": seed,
        "accuracy": {"test": 1 - len(wrong) / 100, "validation": validation},
        "loss": {"test": 0.1, "validation": 0.1},
        "errors": {"test": len(wrong)},
        "calibration": {"ece": {"before": 0.01, "after": 0.002}, "coverage": {"accuracy": 0.999}},
        "cpu_seconds": 100.0,
        "wrong": wrong,
        "corrupted": {"noise": 0.9, "blur": 0.8},
    }


def new_run(recipe: str, seed: int, wrong: list[int]) -> dict[str, Any]:
    """A run with all that today's study measures."""
    return run(recipe, seed, wrong) | {
        "examples": {"training": 60_000, "validation": 0},
        "parameters": 241_650,
        "covered": {"0.99": 0.999, "0.98": 0.9995},
        "corrupted": dict.fromkeys(MNIST_C, 0.5) | {"noise": 1.0, "fog": 0.0},
        "outliers": {"letters": 0.25, "blobs": 0.5},
    }


def column(table: Table, name: str) -> list[str]:
    place = table[0].index(name)
    return [row[place] for row in table[1:]]


def test_no_results_are_no_tables() -> None:
    assert tables(Results()) == {}


def test_recipe_table_has_mean_and_deviation() -> None:
    results = Results([run("seed", 0, [1, 2]), run("seed", 1, [1, 2, 3, 4]), run("best", 0, [1])])
    _, seed, best = recipe_table(results)
    assert seed[:4] == ("seed", "2", "97.000 ± 1.414 %", "3.0 (-9.7 to 15.7)")
    assert best[:4] == ("best", "1", "99.000%", "1.0")


def test_recipe_table_leaves_out_what_no_run_has() -> None:
    heading, _ = recipe_table(Results([run("seed", 0, [1])]))
    assert not {"trained on", "right, 98 % covered", "corrupted, mean of 15"} & set(heading)


def test_recipe_table_has_dashes_for_old_runs_and_teachers() -> None:
    teacher = new_run("teacher", 0, [1])
    del teacher["calibration"], teacher["cpu_seconds"]
    results = Results([run("seed", 0, [1]), new_run("best", 0, [1, 2])], [teacher])
    table = recipe_table(results)
    assert column(table, "recipe") == ["seed", "best", "teacher"]
    assert column(table, "trained on") == ["-", "60,000", "60,000"]
    assert column(table, "ECE, calibrated") == ["0.20%", "0.20%", "-"]
    assert column(table, "right, 98 % covered") == ["-", "99.95%", "99.95%"]
    assert column(table, "corrupted, mean of 15") == ["-", "46.67%", "46.67%"]
    assert column(table, "CPU seconds / 2") == ["50", "50", "-"]


def test_outlier_table_has_shares_by_kind() -> None:
    second = new_run("best", 1, [])
    second["outliers"] = {"letters": 0.75, "blobs": 0.5}
    assert outlier_table(Results([new_run("best", 0, []), second, run("seed", 0, [])])) == [
        ("images", "seed", "best"),
        ("letters", "-", "50.00%"),
        ("blobs", "-", "50.00%"),
    ]


def test_significance_compares_what_validation_chooses() -> None:
    results = Results(
        [run("seed", 0, [1, 2, 3]), run("seed", 1, [1], validation=0.98), run("best", 0, [2, 9])]
    )
    assert significance_table(results)[1:] == [("best", "seed", "2", "1", "1 (-2 to 3)", "1")]


def test_significance_compares_every_pair() -> None:
    results = Results([run(name, 0, [1]) for name in ("seed", "default", "best")])
    results.teachers.append(run("teacher", 0, list(range(12))))
    rows = significance_table(results)[1:]
    assert len({frozenset(row[:2]) for row in rows}) == 6
    assert ("best", "teacher", "11", "0", "11 (5 to 11)", "0.00098") in rows


def test_pages_have_the_tables_of_the_committed_results() -> None:
    committed = Results.load(RESULTS)
    page = (ROOT / "docs" / "training.md").read_text()
    for title, table in tables(committed).items():
        assert markdown(table) in page, f"docs/training.md lacks {title!r}:\n{markdown(table)}"
    assert markdown(recipe_table(committed)) in (ROOT / "README.md").read_text()


def test_corruption_table_averages_over_seeds() -> None:
    first, second = run("seed", 0, []), run("seed", 1, [])
    second["corrupted"] = {"noise": 0.8, "blur": 0.8}
    assert corruption_table(Results([first, second])) == [
        ("corruption", "seed"),
        ("noise", "85.00%"),
        ("blur", "80.00%"),
    ]


def test_corruption_table_has_the_mean_of_the_15_and_dashes_for_old_runs() -> None:
    old, new = run("seed", 0, []), run("best", 0, [])
    new["corrupted"] = dict.fromkeys(MNIST_C, 0.5) | {"noise": 1.0, "fog": 0.0}
    table = corruption_table(Results([old, new]))
    assert table[0] == ("corruption", "seed", "best")
    assert table[-1] == ("mean of the 15", "-", "46.67%")
    assert ("blur", "80.00%", "-") in table
    assert ("fog", "-", "0.00%") in table
