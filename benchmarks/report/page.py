"""What the benchmark report says, and in which order."""

from collections.abc import Mapping, Sequence

from benchmarks.report.table import Table
from benchmarks.run.result_file import Results
from reports.page import Picture, page, section

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
    "batches": ("Batch size", "Offline: as many calls as the target can use, of so many images."),
    "formed": (
        "Batches that formed",
        "Share of the model's runs by size, for calls of one image: an idle engine never waits, "
        "a busy one takes what has come meanwhile.",
    ),
    "cost": ("Processor time", "Of the target alone, for a call of one image."),
}
"""Heading and caption of each picture, in the order of the page."""


def render(results: Results, tables: Sequence[Table], pictures: Mapping[str, Picture]) -> str:
    """Write the page.

    Args:
        results: tells of the machine.
        tables: the first comes before the pictures, the others after.
        pictures: by the names in CAPTIONS.
    """
    drawn = [section(*CAPTIONS[name], pictures[name]) for name in CAPTIONS if name in pictures]
    first, *rest = (section(table.title, table.note, table.rows) for table in tables)
    return page(
        title="Digit serving: benchmark report",
        heading="Benchmark report",
        lead=[machine(results)],
        sections=[first, *drawn, *rest],
    )


def machine(results: Results) -> str:
    """Tell in a few sentences what was measured where, and with what."""
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
