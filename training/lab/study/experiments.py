"""The study: train every recipe from several seeds, and measure and save each final model.

Each row is saved as soon as it is complete, so an interrupted study resumes with what is missing. A
final model that is trained already is only measured.
"""

from pathlib import Path

from training.config import RECIPES
from training.data.mnist import Mnist
from training.fitting.loop import Log
from training.lab.study.final_models import final_model, model_folder, teacher_runs
from training.lab.study.measures import Measures
from training.lab.study.results import Results, chosen_run

SEEDS = 5
"""The number of final models of each recipe; their seeds are 0, 1 and so on."""


def run(data: Mnist, folder: Path, results: Path, log: Log) -> Results:
    """Train and measure what the results lack.

    Args:
        data: MNIST.
        folder: the artifacts: the cache of teachers, and each final model with its report, in
            study/<recipe>-<seed>.
        results: the results file; it gets each row as soon as that is complete.
        log: gets lines of progress.

    Raises:
        KeyboardInterrupt: interrupted; what was complete is in the results.
        OSError: a file could not be written.
        ResumeError: the folder of a final model has the checkpoint of another training.
    """
    found, measures = Results.load(results), Measures(data)
    done = {(row["recipe"], row["seed"]) for row in found.runs}
    for name, seed in ((name, seed) for name in RECIPES for seed in range(SEEDS)):
        if (name, seed) not in done:
            found.runs.append(final_model(RECIPES[name], seed, data, folder, measures, log))
            found.save(results)
    for row in teacher_runs(RECIPES["best"], data, folder, measures, log, len(found.teachers)):
        found.teachers.append(row)
        found.save(results)
    return found


def chosen_folder(folder: Path, results: Results) -> Path:
    """Return the folder of the model that stands for `best`: see `chosen_run`."""
    run = chosen_run(results.of("best"))
    return model_folder(folder, run["recipe"], run["seed"])
