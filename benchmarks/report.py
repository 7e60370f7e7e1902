"""The report: a page of Markdown with a picture, and the README's section."""

import os
import re
from pathlib import Path

from benchmarks import tables
from benchmarks.figures import Figures
from benchmarks.result_file import Cell, Results, UnusableResults
from benchmarks.targets import OURS, PRODUCT, Spec, protocol_of

BEGIN, END = "<!-- benchmarks: written by `make bench-peers` -->", "<!-- /benchmarks -->"

_ALT = {
    "": "Rates and latencies by callers",
    "-devices": "Rates by device and precision",
    "-batches": "Rates and latencies by rows a call",
}
"""Texts for those who can't see a picture, by the end of its name."""
_SHOWN = {"gRPC": 8, "JSON": 64, "bytes": 64}
"""The connections of 64 callers of which sentences speak."""
_CALLERS = 64
_AS_FAST = 1.05
"""Gains up to this one are said to be none."""
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
    """Return the text between the README's two markers, with them: a picture and what it says.

    Raises:
        UnusableResults: they are no comparison with other servers.
    """
    picture = f"![{_ALT['']}, a line for each server]({_PICTURE})"
    return "\n\n".join([BEGIN, picture, summary(Figures(results)), END])


def summary(figures: Figures) -> str:
    """Say what a comparison found, where this server is not the fastest, and on what machine.

    Raises:
        UnusableResults: they are no comparison, or lack this server.
    """
    if not tables.is_comparison(figures.results):
        raise UnusableResults("no comparison with other servers: `python -m benchmarks peers`")
    model = next(cell.model for cell in figures.samples)
    rates = [said for protocol in _SHOWN if (said := _rates(figures, model, protocol))]
    if not rates:
        raise UnusableResults(f"no comparison: this server's rates of {model} are missing")
    there, settings = figures.results.environment, figures.results.settings
    cores = there["cores_for"]
    machine = (
        f"{there['cpu']}, cores: {cores['target']} for the server and {cores['generator']} for the "
        f"callers, medians of {settings['rounds']} rounds on {figures.results.date}, with the "
        "least and the greatest ratio."
    )
    return " ".join([f"Calls of `{model}` a second.", *rates, _losses(figures), machine])


def _rates(figures: Figures, model: str, protocol: str) -> str:
    """Say the rate of this server and of the fastest other one in a protocol; empty without."""
    alike = [
        cell
        for cell in figures.rounds
        if (cell.model, cell.scenario, cell.batch) == (model, "ClosedLoop", 1)
        and (cell.callers, cell.connections or _SHOWN[protocol]) == (_CALLERS, _SHOWN[protocol])
        and cell.spec == Spec(target=cell.spec.target)
        and protocol_of(cell.spec.target) == protocol
    ]
    ours = [cell for cell in alike if cell.spec.target == OURS[protocol]]
    if not ours:
        return ""
    others = [cell for cell in alike if cell not in ours]
    in_flight = f"{tables.shape_of(ours[0])} in flight"
    rate = f"{PRODUCT} {_rate(figures, ours[0])}"
    said = f"{tables.protocol_said(protocol)}, {in_flight}: {rate}"
    best = max(others, key=lambda cell: figures.of(cell) or 0.0, default=None)
    if best is None:
        return f"{said}."
    ratio = figures.gain(best)
    beside = f": {ratio}" if ratio else ""
    return f"{said}, {tables.name_of(best.spec)} {_rate(figures, best)}{beside}."


def _losses(figures: Figures) -> str:
    """Say where another server is as fast or faster, of all that was measured alike."""
    found = []
    for cell in figures.rounds:
        ratio = figures.gain(cell) if cell.scenario == "ClosedLoop" else None
        if ratio is not None and ratio.estimate < _AS_FAST:
            client = f" by {cell.spec.client}" if cell.spec.client else ""
            where = f"{cell.model}, {tables.protocol_said(protocol_of(cell.spec.target))}"
            shape = tables.shape_of(cell)
            found.append(f"{tables.name_of(cell.spec)} with {where}{client}, {shape} ({ratio})")
    if not found:
        return f"Nowhere here is another server as fast (within {_AS_FAST - 1:.0%})."
    return f"Others as fast or faster, in brackets {PRODUCT} beside them: {'; '.join(found)}."


def _rate(figures: Figures, cell: Cell) -> str:
    return tables.short(figures.of(cell))


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
