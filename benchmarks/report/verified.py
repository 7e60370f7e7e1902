"""The tables of a verification: its steps, and how engines' answers compare with the CPU's."""

from benchmarks.report.figures import Figures
from benchmarks.report.rates import NOT_MEASURED
from benchmarks.report.table import NONE, Table


def steps(figures: Figures) -> Table:
    """Lay out what was done, in what time, and what was not."""
    rows = [["step", "time", "outcome"]]
    for step in figures.results.steps:
        outcome = f"{NOT_MEASURED}: {step.reason}" if step.reason else "done"
        rows.append([step.name, f"{step.seconds:.0f} s", outcome])
    return Table("Verification", "A step that fails does not keep the others from running.", rows)


def answers(figures: Figures) -> Table:
    """Lay out how far an engine's answers are from the CPU's, by images a run."""
    rows = [["target", "images a run", "other digits", "largest difference", "accuracy"]]
    rows += [
        [str(each.spec), str(each.batch), f"{each.num_other_digits} of {each.num_images:,}",
         f"{each.max_difference:.2g}", f"{each.accuracy:.2%}"]
        for each in figures.results.agreements
    ]  # fmt: skip
    done = {each.spec for each in figures.results.agreements}
    rows += [
        [str(spec), NOT_MEASURED, *[NONE] * 3]
        for spec in dict.fromkeys(skip.spec for skip in figures.results.skips)
        if done and spec not in done and spec.target.startswith("engine")
    ]
    note = (
        "Beside float32 on the CPU, over the test images: how many have another digit, the largest "
        "difference of a probability, and the accuracy."
    )
    return Table("Answers", note, rows)
