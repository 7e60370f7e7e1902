from pathlib import Path
from typing import Any

from training.lab.study.results import RESULTS, Results, chosen_run


def run(seed: int, validation: float, held_out: int | None) -> dict[str, Any]:
    examples = {} if held_out is None else {"examples": {"validation": held_out}}
    return {
        "recipe": "best",
        "seed": seed,
        "accuracy": {"validation": validation},
        "loss": {"validation": 0.1},
        **examples,
    }


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"recipe": "seed", "seed": number} for number in range(4)]
    results = Results(rows[:2], rows[2:])
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_no_file_is_no_results(tmp_path: Path) -> None:
    assert Results.load(tmp_path / "results.json") == Results()


def test_committed_results_name_known_recipes() -> None:
    committed = Results.load(RESULTS)
    assert committed.runs
    assert {run["recipe"] for run in committed.runs} <= set(committed.recipes)


def test_validation_chooses_and_loss_breaks_a_tie() -> None:
    for held_out in (None, 5_000):
        worse, better, worst = (run(i, accuracy, held_out) for i, accuracy in
                                enumerate((0.99, 0.99, 0.98)))  # fmt: skip
        better["loss"] = {"validation": 0.05}
        assert chosen_run([worst, worse, better]) is better


def test_seed_0_is_chosen_where_no_image_validates() -> None:
    first, second = run(0, 0.98, 0), run(1, 0.99, 0)
    assert chosen_run([second, first]) is first
    del first["accuracy"]["validation"], first["examples"]
    assert chosen_run([second, first]) is first
