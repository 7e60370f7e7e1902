from pathlib import Path
from typing import Any

import pytest

from reports.page import Table
from training.study.comparison import (
    ablation_table,
    chosen_run,
    corruption_table,
    mcnemar,
    recipe_table,
    significance_table,
    tables,
)
from training.study.corruptions import MNIST_C
from training.study.results import RESULTS, Results

ROOT = Path(__file__).parents[3]


def markdown(table: Table) -> str:
    heading, *rows = table
    return "".join(f"| {' | '.join(row)} |\n" for row in (heading, ["---"] * len(heading), *rows))


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


def test_mcnemar_is_the_sign_test_of_the_disagreements() -> None:
    assert mcnemar(5, 0) == 2 / 32  # all of five the same way, of either sign
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(3, 3) == mcnemar(0, 0) == 1


def test_mcnemar_copes_with_many_disagreements() -> None:
    assert 0 <= mcnemar(2_000, 100) < 1e-300


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    results = Results([run("seed", 0, [1, 2])], [{"trick": "all", "seed": 0}])
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_no_file_is_no_results(tmp_path: Path) -> None:
    assert Results.load(tmp_path / "results.json") == Results()
    assert tables(Results()) == {}


def test_recipe_table_has_mean_and_deviation() -> None:
    results = Results([run("seed", 0, [1, 2]), run("seed", 1, [1, 2, 3, 4]), run("best", 0, [1])])
    _, seed, best = recipe_table(results)
    assert seed[:4] == ("seed", "2", "97.000 ± 1.414 %", "3.0")
    assert best[:4] == ("best", "1", "99.000%", "1.0")


def test_significance_compares_what_validation_chooses() -> None:
    results = Results(
        [run("seed", 0, [1, 2, 3]), run("seed", 1, [1], validation=0.98), run("best", 0, [2, 9])]
    )
    assert significance_table(results)[1:] == [("best", "seed", "2", "1", "1")]


def test_validation_chooses_and_loss_breaks_a_tie() -> None:
    worse, better = run("best", 0, [1], 0.99), run("best", 1, [1, 2], 0.99)
    better["loss"] = {"validation": 0.05}
    assert chosen_run([worse, better]) is better


def test_ablation_table_averages_over_seeds() -> None:
    rows = [
        {"trick": "more", "seed": seed, "accuracy": 0.9, "loss": 0.5, "errors": errors}
        for seed, errors in enumerate((10, 11))
    ]
    assert ablation_table(Results([], rows))[1] == ("more", "2", "10.5", "0.5000", "90.00%")


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
