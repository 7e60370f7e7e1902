"""The report: a page of Markdown with a picture, and the README's section."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.figures import Figures, ours_beside
from benchmarks.result_file import Cell, Results, UnusableResults
from benchmarks.targets import OURS, PRODUCT, protocol_of

BEGIN, END = "<!-- benchmarks: written by `make bench-peers` -->", "<!-- /benchmarks -->"

_ALT = {
    "": "Rates and latencies by callers",
    "-devices": "Rates by device and precision",
    "-batches": "Rates and latencies by rows a call",
}
"""Texts for those who can't see a picture, by the end of its name."""
_PROTOCOLS = "gRPC", "JSON", "bytes"
_AS_FAST = 1.05
"""Gains up to this one are said to be none."""
_TAIL = 0.99
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
    models = list(dict.fromkeys(cell.model for cell in figures.samples))
    rows = [["model", *map(tables.protocol_said, _PROTOCOLS)]]
    rows += [[f"`{each}`", *(_gains(figures, each, way) for way in _PROTOCOLS)] for each in models]
    if all(each == tables.NONE for row in rows[1:] for each in row[1:]):
        raise UnusableResults("no comparison: this server's rates are missing")
    there, settings = figures.results.environment, figures.results.settings
    cores = there["cores_for"]
    heading = (
        "The picture has the digits alone. Calls a second of all networks, times those of the "
        "fastest other server, from the least to the greatest of all numbers of connections and "
        f"calls in flight (medians of the rounds that count, of {settings['rounds']}):"
    )
    machine = (
        f"Measured on {figures.results.date}: {there['cpu']}, cores: {cores['target']} for the "
        f"server and {cores['generator']} for the callers."
    )
    parts = [
        heading,
        tables.ReportTable("", "", rows).markdown(),
        _with_clients(figures),
        _losses(figures),
        _longer_tails(figures),
        machine,
    ]
    return "\n\n".join(filter(None, parts))


def _gains(figures: Figures, model: str, protocol: str) -> str:
    """Say how many times as fast this server is as the fastest other one, over all callers."""
    fastest: dict[tuple[int, int], Cell] = {}
    for cell in figures.rounds:
        is_other = cell.spec.target != OURS[protocol] and not cell.spec.client
        if (
            is_other
            and (cell.model, cell.scenario) == (model, "ClosedLoop")
            and protocol_of(cell.spec.target) == protocol
            and figures.gain(cell)
        ):
            shape = cell.callers, cell.connections
            best = fastest.get(shape)
            if best is None or (figures.of(cell) or 0.0) > (figures.of(best) or 0.0):
                fastest[shape] = cell
    gains = [(gain, cell) for cell in fastest.values() if (gain := figures.gain(cell))]
    gains = [(gain, cell) for gain, cell in gains if not gain.is_of_one_round] or gains
    if not gains:
        return tables.NONE
    names = dict.fromkeys(tables.name_of(cell.spec) for _, cell in gains)
    return f"{_range([gain.estimate for gain, _ in gains])} {', '.join(names)}"


def _range(ratios: Sequence[float]) -> str:
    least, greatest = f"{min(ratios):.3g}", f"{max(ratios):.3g}"
    return f"{least} ×" if least == greatest else f"{least} to {greatest} ×"


def _with_clients(figures: Figures) -> str:
    """Say what the same programs gain by this server in place of Triton; empty without any."""
    found = [
        gain.estimate
        for cell in figures.rounds
        if cell.spec.client and (gain := figures.gain(cell)) is not None
    ]
    if not found:
        return ""
    return (
        f"Real clients, two of them ours, have {_range(found)} the rate that they have with "
        "Triton; with 64 callers most of them fill their own core."
    )


def _losses(figures: Figures) -> str:
    """Say where another server is as fast or faster, at the median or in a round."""
    found = []
    for cell in figures.rounds:
        ratio = figures.gain(cell) if cell.scenario == "ClosedLoop" else None
        if ratio is None:
            continue
        if ratio.estimate < _AS_FAST or (ratio.low < 1 and not ratio.is_of_one_round):
            found.append(f"{_where(cell)} ({ratio})")
    if not found:
        return f"Nowhere here is another server as fast (within {_AS_FAST - 1:.0%})."
    return (
        f"Where another server is faster, or within {_AS_FAST - 1:.0%}, in one round at least "
        f"(connections × calls on each; in brackets {PRODUCT}'s rate, times the other's): "
        f"{'; '.join(found)}."
    )


def _longer_tails(figures: Figures) -> str:
    """Say where another server has a shorter p99; empty where none has."""
    found = []
    for cell in figures.rounds:
        ratio = figures.gain(cell) if cell.scenario == "ClosedLoop" else None
        if ratio is None:
            continue
        mine = figures.latency_s(ours_beside(cell), _TAIL)
        theirs = figures.latency_s(cell, _TAIL)
        if mine is not None and theirs is not None and mine > _AS_FAST * theirs:
            pair = f"{tables.seconds(theirs)} beside {tables.seconds(mine)}"
            found.append(f"{_where(cell)} ({pair})")
    if not found:
        return ""
    return (
        f"Where another server's p99 is shorter by {_AS_FAST - 1:.0%} or more: {'; '.join(found)}."
    )


def _where(cell: Cell) -> str:
    client = f" by {cell.spec.client}" if cell.spec.client else ""
    protocol = tables.protocol_said(protocol_of(cell.spec.target))
    shape = tables.shape_of(cell)
    return f"{tables.name_of(cell.spec)} with {cell.model}, {protocol}{client}, {shape}"


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
