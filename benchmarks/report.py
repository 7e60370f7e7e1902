"""The report: a page of Markdown with a picture, and the README's section."""

import os
import re
from dataclasses import replace
from pathlib import Path

from benchmarks import tables
from benchmarks.figures import Figures
from benchmarks.result_file import Cell, Results, UnusableResults
from benchmarks.targets import Spec

BEGIN, END = "<!-- benchmarks: written by `make bench-peers` -->", "<!-- /benchmarks -->"

_ALT = {
    "": "Rates and latencies by callers",
    "-devices": "Rates by device and precision",
    "-tails": "Latency of a lone caller by percentile",
}
"""Texts for those who can't see a picture, by the end of its name."""
_PICTURE = "benchmarks/results/peers.svg"


def write(results: Results, path: Path) -> Path:
    """Write NAME.md and NAME.svg beside NAME.json, and return the page's path."""
    page, parts = path.with_suffix(".md"), ["# Benchmark report", machine(results)]
    for name, drawn in _pictures(results).items():
        picture = path.with_name(f"{path.stem}{name}.svg")
        picture.write_text(drawn, "utf-8")
        parts.append(f"![{_ALT[name]}]({picture.name})")
    for table in tables.every(results):
        parts += [f"## {table.title}", table.note, table.markdown()]
    page.write_text("\n\n".join(parts) + "\n", "utf-8")
    return page


def _pictures(results: Results) -> dict[str, str]:
    """Return the pictures by the end of their names; none if there is nothing to draw with."""
    # Its list of fonts would stand in the home otherwise.
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("MPLCONFIGDIR", str(Path(user) / "digit-serving" / "matplotlib"))
    try:
        from benchmarks import pictures  # late: matplotlib takes half a second to import
    except ModuleNotFoundError:
        return {}
    return pictures.pictures_of(results)


def machine(results: Results) -> str:
    """Say in a few sentences where and with which software was measured."""
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
    """Return the text between the README's two markers, with them: a picture and three sentences.

    Raises:
        UnusableResults: they are no comparison with other servers.
    """
    picture = f"![{_ALT['']}, a panel for each model, a curve for each server]({_PICTURE})"
    return "\n\n".join([BEGIN, picture, summary(Figures(results)), END])


def summary(figures: Figures) -> str:
    """Say in three sentences what a comparison found, where, and of what.

    Raises:
        UnusableResults: this server was not measured over gRPC and over JSON.
    """
    model, callers = _headline(figures)
    fast, json_, peer = (
        _best(figures, model, callers, names)
        for names in ({"h2-infer"}, {"http-json"}, _others(figures))
    )
    if fast is None or json_ is None:
        raise UnusableResults("no comparison: it lacks h2-infer or http-json of the first model")
    ours = (
        f"With {callers} callers of the model `{model}`, this server answers "
        f"{_rate(figures, fast)} calls/s over gRPC and {_rate(figures, json_)} as JSON over HTTP"
    )
    other = (
        "" if peer is None else f"; the fastest other server, {peer.spec}, {_rate(figures, peer)}"
    )
    alone = []
    for cell in (fast, json_, peer):
        quantile = None if cell is None else _quantile(figures, replace(cell, callers=1))
        if cell is not None and quantile is not None:
            alone.append(f"{cell.spec} {tables.seconds(quantile)}")
    there = figures.results.environment
    cores = there["cores_for"]
    return (
        f"{ours}{other}. A lone caller's p99: {', '.join(alone) or 'not measured'}. "
        f"{there['cpu']}, cores: {cores['target']} for the server and {cores['generator']} for the "
        f"callers, medians of {figures.results.settings['rounds']} rounds on "
        f"{figures.results.date}; h2-infer is this server over gRPC, http-json over HTTP."
    )


def _headline(figures: Figures) -> tuple[str, int]:
    """Return the first model, and the greatest number of callers."""
    cells = [cell for cell in figures.samples if cell.model]
    if not cells:
        raise UnusableResults("no comparison with other servers: `python -m benchmarks peers`")
    return cells[0].model, max(cell.callers for cell in cells)


def _others(figures: Figures) -> set[str]:
    return {spec.target for spec in figures.specs} - {"h2-infer", "http-json"}


def _best(figures: Figures, model: str, callers: int, names: set[str]) -> Cell | None:
    """Return the fastest cell of some targets, in fp32 on the CPU, called by the generator."""
    cells = [
        cell
        for cell in figures.rounds
        if (cell.model, cell.callers, cell.batch) == (model, callers, 1)
        and cell.spec.target in names
        and cell.spec == Spec(target=cell.spec.target)
    ]
    return max(cells, key=lambda cell: figures.of(cell) or 0.0, default=None)


def _rate(figures: Figures, cell: Cell) -> str:
    return tables.short(figures.of(cell))


def _quantile(figures: Figures, cell: Cell) -> float | None:
    return figures.latency_s(cell, 0.99) if cell in figures.rounds else None


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
