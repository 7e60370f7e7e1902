"""The report: HTML and markdown beside its results file, and the README's table."""

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.report import costs, rates, verified
from benchmarks.report.figures import Figures
from benchmarks.report.pictures import draw_all
from benchmarks.report.table import Table
from benchmarks.run.result_file import Results, UnusableResults
from training.report.page import Picture, page, section

BEGIN, END = "<!-- benchmarks: written by `make bench-readme` -->", "<!-- /benchmarks -->"

CAPTIONS = {
    "knee": (
        "The knee",
        "Closed loops of 1, 2, 4 ... callers: throughput grows until the target is full, then only "
        "latency does.",
    ),
    "server": (
        "The Server scenario",
        "Open loop: calls come when they come, and latency counts from the intended send time. "
        "Each dot is one rate that was tried; the vertical line is the highest that kept to the "
        "objective, median of the rounds.",
    ),
    "latency": ("Latency", "One call of one image at a time, all rounds together."),
    "batches": ("Batch size", "Offline: as many calls as the target can use, by images a call."),
    "formed": (
        "Batches that formed",
        "Share of the model's runs by size, for calls of one image: an idle engine never waits, "
        "a busy one takes what has come meanwhile.",
    ),
}
"""Heading and caption of each picture, in the order of the page."""

_TABLES = (
    rates.targets, rates.closed_loops, rates.overload, rates.crossovers, rates.composition,
    costs.by_scenario, costs.by_callers, costs.by_batch, costs.starts, costs.installations,
    costs.trainings, verified.steps, verified.answers, costs.skips, costs.invalid,
)  # fmt: skip


def tables(results: Results) -> list[Table]:
    """Make every table that the results have something for."""
    figures = Figures(results)
    return [table for make in _TABLES if len((table := make(figures)).rows) > 1]


def write(results: Results, path: Path) -> list[Path]:
    """Write NAME.md, NAME.html and a NAME-*.svg for each picture beside NAME.json.

    Returns:
        What was written.
    """
    pictures = draw_all(Figures(results))
    files = {
        path.with_suffix(".md"): _markdown(results, pictures, path.stem).encode(),
        path.with_suffix(".html"): _html(results, pictures).encode(),
    }
    files |= {
        path.with_name(f"{path.stem}-{name}.svg"): picture.svg for name, picture in pictures.items()
    }
    for file, content in files.items():
        file.write_bytes(content)
    return list(files)


def _html(results: Results, pictures: Mapping[str, Picture]) -> str:
    first, *rest = (section(table.title, table.note, table.rows) for table in tables(results))
    drawn = [section(*CAPTIONS[name], pictures[name]) for name in CAPTIONS if name in pictures]
    title, lead = "Digit serving: benchmark report", [machine(results)]
    return page(title, "Benchmark report", lead, [first, *drawn, *rest])


def _markdown(results: Results, pictures: Mapping[str, Picture], stem: str) -> str:
    first, *rest = (
        f"## {each.title}\n\n{each.note}\n\n{each.markdown()}" for each in tables(results)
    )
    drawn = [
        "## {}\n\n{}\n\n![{}]({}-{}.svg)".format(*CAPTIONS[name], picture.alt, stem, name)
        for name, picture in pictures.items()
    ]
    return "\n\n".join(["# Benchmark report", machine(results), first, *drawn, *rest]) + "\n"


def machine(results: Results) -> str:
    """Say in a few sentences what was measured where, and with what."""
    there, settings = results.environment, results.settings
    cores = there["cores_for"]
    generators = sorted({sample.generator for sample in results.samples})
    packages = ", ".join(f"{name} {version}" for name, version in there["packages"].items())
    return (
        f"Suite {results.suite}, {results.date}, commit {there['commit']}. {there['cpu']}, "
        f"{there['cores']} cores: {cores['target']} for the target, {cores['generator']} for the "
        f"generator. GPU: {there['gpu'] or 'none'}. Governor: {there['governor'] or 'unknown'}. "
        f"{settings['rounds']} interleaved rounds of {settings['seconds']:g} s a run; arrivals in "
        f"the Server scenario: {settings['arrivals']}. Load by: {', '.join(generators)}. "
        f"Python {there['python']}, {packages}."
    )


def readme_section(results: Results) -> str:
    """Return what belongs between the README's two markers, with them."""
    table = rates.targets(Figures(results))
    return f"{BEGIN}\n\n{table.markdown()}\n\n{table.note} {machine(results)}\n\n{END}"


def update_readme(readme: Path, results: Results) -> bool:
    """Put the table into the README; return whether that changed it.

    Raises:
        UnusableResults: the README lacks the markers.
    """
    old = readme.read_text("utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    new, num_found = between.subn(lambda _: readme_section(results), old)
    if not num_found:
        raise UnusableResults(f"{readme} lacks the lines {BEGIN!r} and {END!r}")
    readme.write_text(new, "utf-8")
    return new != old
