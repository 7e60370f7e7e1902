"""Tables, pictures, page, comparison and recommendation, from made-up results."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import comparison, page, recommendation
from benchmarks.report.figures import Figures
from benchmarks.report.page import CAPTIONS, tables
from benchmarks.report.pictures import draw_all
from benchmarks.run.cell import Cell
from benchmarks.run.result_file import Results, Skip, UnusableResults, load
from benchmarks.targets.target import Spec
from tests.benchmarks.made_up import (
    H2,
    INT8,
    ON_CPU,
    ON_CUDA,
    PLAIN,
    results,
    sample,
    three_rounds,
)


def rows_of(kept: Results, title: str) -> list[list[str]]:
    (table,) = [table for table in tables(kept) if table.title == title]
    return [list(row) for row in table.rows]


def on_devices(*cuda_rates: float) -> Results:
    cpu = [sample(ON_CPU, "Offline", batch=2**n, calls_per_s=1000) for n in range(3)]
    cuda = [
        sample(ON_CUDA, "Offline", batch=2**n, calls_per_s=rate)
        for n, rate in enumerate(cuda_rates)
    ]
    skips = () if cuda_rates else (Skip(spec=ON_CUDA, reason="no GPU"),)
    return results(*cpu, *cuda, skips=skips)


def test_summary_has_ratios_that_drift_does_not_touch() -> None:
    heading, plain, h2 = rows_of(three_rounds(), "Targets")
    assert heading == ["target", "SingleStream, p90", "Server, p99 ≤ 10 ms", "Offline, 1 a call"]
    assert plain[0] == "plain"
    assert all("(10 ×, 10 to 10)" in cell for cell in h2[2:])
    assert re.search(r"\((9.9\d|10|10.\d+) ×", h2[1])


def test_invalid_runs_are_left_out_and_told() -> None:
    bad = sample(H2, "Offline", number=1, calls_per_s=9, invalid="the generator was the limit")
    kept = results(sample(H2, "Offline", calls_per_s=100), bad)
    cell = Cell(spec=H2, scenario="Offline", callers=0)
    assert Figures(kept).rounds == {cell: {0: 100.0}}
    assert ["h2, Offline batch 1", "1 of 2", "the generator was the limit"] in rows_of(
        kept, "Left out"
    )


def test_speedup_of_latencies_is_their_inverse() -> None:
    kept = results(
        *(sample(PLAIN, "SingleStream", number=n, latency_s=0.02) for n in range(3)),
        *(sample(H2, "SingleStream", number=n, latency_s=0.01) for n in range(3)),
    )
    ratio = Figures(kept).speedup(Cell(spec=H2, scenario="SingleStream"), PLAIN)
    assert ratio is not None
    assert ratio.estimate == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("cuda_rates", "expected"),
    [
        ((500, 1001, 2000), "2"),
        ((2000, 500, 2000), "4"),
        ((500, 500, 500), "no size up to 4"),
        ((), "not measured"),
    ],
)
def test_crossover_is_computed_or_not_measured(
    cuda_rates: tuple[float, ...], expected: str
) -> None:
    assert rows_of(on_devices(*cuda_rates), "Crossover")[1:] == [
        ["engine cuda", "engine", expected]
    ]


def test_other_kind_of_engine_is_compared_with_the_usual_one_on_the_cpu() -> None:
    graphs = Spec(target="engine-graphs", device="cuda")
    kept = results(
        *(sample(ON_CPU, "Offline", callers=0, batch=size, calls_per_s=100) for size in (1, 64)),
        sample(graphs, "Offline", callers=0, batch=1, calls_per_s=50),
        sample(graphs, "Offline", callers=0, batch=64, calls_per_s=500),
    )
    assert rows_of(kept, "Crossover")[1:] == [["engine-graphs cuda", "engine", "64"]]


def test_targets_that_could_not_run_are_not_measured() -> None:
    kept = on_devices()
    assert rows_of(kept, "Targets")[-1] == ["engine cuda", "not measured", "not measured"]
    assert rows_of(kept, "Not measured")[1:] == [["engine cuda", "no GPU"]]


def test_target_by_address_has_a_row_too() -> None:
    peer = Spec(target="triton")
    kept = results(sample(H2, "SingleStream"), sample(peer, "SingleStream", latency_s=0.002))
    kept.starts = [start for start in kept.starts if start.spec != peer]
    assert [row[0] for row in rows_of(kept, "Targets")[1:]] == ["h2", "triton"]


def test_composition_compares_with_what_the_parts_allow() -> None:
    kept = results(
        sample(H2, "ClosedLoop", callers=8, calls_per_s=1600),
        sample(Spec(target="echo"), "ClosedLoop", callers=8, calls_per_s=4000),
        sample(Spec(target="bare"), "ClosedLoop", callers=8, calls_per_s=1800),
        sample(Spec(target="engine"), "Offline", batch=1, calls_per_s=4000),
        sample(Spec(target="engine"), "Offline", batch=1000, calls_per_s=4),
    )
    (row,) = rows_of(kept, "What the parts allow")[1:]
    assert row == ["h2, ClosedLoop 8 callers", "400.0", "1.6 k", "2 k", "80%", "1.8 k"]


def test_composition_counts_images_of_large_messages() -> None:
    engine = Spec(target="engine")
    kept = results(
        sample(Spec(target="grpcio"), "Offline", batch=100, calls_per_s=15, callers=8),
        sample(Spec(target="echo-grpcio"), "Offline", batch=100, calls_per_s=40, callers=8),
        *(sample(engine, "Offline", batch=batch, calls_per_s=4000 // batch) for batch in (1, 1000)),
    )
    (row,) = rows_of(kept, "What the parts allow")[1:]
    assert row == ["grpcio, Offline batch 100", "375.0", "1.5 k", "2 k", "75%", "–"]


def test_costs_are_compared_by_size() -> None:
    two = replace(H2, workers=2)
    kept = results(
        sample(H2, "ClosedLoop", callers=8, cpu_us=50),
        sample(two, "ClosedLoop", callers=8, cpu_us=60),
        sample(two, "ClosedLoop", callers=64, cpu_us=40),
        sample(Spec(target="triton"), "ClosedLoop", callers=8, cpu_us=None),
        sample(H2, "Offline", batch=32, cpu_us=64),
    )
    assert rows_of(kept, "Processor time an image, by callers") == [
        ["target", "8", "64"], ["h2", "50", "–"], ["h2 x2", "60", "40"]
    ]  # fmt: skip
    assert rows_of(kept, "Processor time an image, by images a call")[1:] == [["h2", "2"]]


def test_trainings_are_the_medians_of_their_runs() -> None:
    kept = results(sample(H2, "SingleStream"))
    kept.training = [
        {"recipe": "best", "device": "cpu", "seconds": seconds, "accuracy": 0.99}
        for seconds in (100.0, 300.0, 140.0)
    ]
    assert rows_of(kept, "Training")[1:] == [["best, cpu", "3", "140 s", "99.00%"]]


def test_summary_leaves_out_what_was_asked_other_questions() -> None:
    stream = sample(Spec(target="h2-stream"), "ClosedLoop", callers=16, connections=1)
    kept = results(sample(H2, "SingleStream"), stream)
    assert [row[0] for row in rows_of(kept, "Targets")] == ["target", "h2"]


def test_closed_loops_are_compared_with_their_tails() -> None:
    kept = results(
        sample(PLAIN, "ClosedLoop", callers=256, connections=8, calls_per_s=1000),
        sample(H2, "ClosedLoop", callers=256, connections=8, calls_per_s=3000, latency_s=0.002),
        sample(H2, "ClosedLoop", callers=4, calls_per_s=500),
    )
    assert [row[:4] for row in rows_of(kept, "Closed loops")] == [
        ["target", "in flight", "images/s", "× plain"],
        ["plain", "8 × 32", "1 k", "–"],
        ["h2", "8 × 32", "3 k", "3 ×, one round"],
        ["h2", "4", "500", "–"],
    ]


def test_overload_table_accounts_for_what_was_offered() -> None:
    outcomes = {"due": 3000, "sent": 2900, "in time": 900, "refused": 1500, "late": 500}
    kept = results(
        sample(H2, "Overload", overload=3.0, calls_per_s=900, outcomes=outcomes),
        sample(H2, "OverloadReset", overload=1.0, calls_per_s=0, outcomes={"due": 10}),
    )
    assert rows_of(kept, "Overload")[1:] == [
        ["h2", "grpc-timeout", "3 ×", "3 k", "2.9 k", "900", "90%", "1.5 k", "500", "0"],
        ["h2", "reset only", "1 ×", "10", "0", "0", "0%", "0", "0", "0"],
    ]


@pytest.mark.parametrize("name", ["bench", "serving", "triton", "peers"])
def test_committed_reports_are_what_their_results_give(name: str) -> None:
    path = Path("benchmarks/results", name)
    text = path.with_suffix(".md").read_text("utf-8")
    for table in tables(load(path.with_suffix(".json"))):
        assert table.markdown() in text


def full() -> Results:
    """Something for every picture and table."""
    closed = [
        sample(spec, "ClosedLoop", callers=n, number=r, calls_per_s=900.0 * n, latency_s=0.001 * n)
        for spec in (PLAIN, H2, INT8)
        for n in (1, 2, 4)
        for r in range(2)
    ]
    return results(
        *three_rounds().samples, *closed, *on_devices(500, 1000, 2000).samples,
        sample(H2, "Offline", batch=64, calls_per_s=99),
        sample(INT8, "SingleStream", calls_per_s=1),
    )  # fmt: skip


def test_report_is_written_whole(tmp_path: Path) -> None:
    names = {path.name for path in page.write(full(), tmp_path / "r.json")}
    svgs = {f"r-{name}.svg" for name in CAPTIONS}
    assert names == {"r.md", "r.html", *svgs}
    assert all(b"<svg " in (tmp_path / name).read_bytes() for name in svgs)
    markdown = (tmp_path / "r.md").read_text()
    assert all(name in markdown for name in svgs)
    # The page needs nothing beside it.
    sources = re.findall(r'(?:src|href)="([^"]*)', (tmp_path / "r.html").read_text())
    assert len(sources) == len(CAPTIONS)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)


def test_alternatives_give_the_figures() -> None:
    drawn = draw_all(Figures(full()))
    assert drawn.keys() == CAPTIONS.keys()
    assert "within 10 ms: plain" in drawn["server"].alt
    for picture in drawn.values():
        assert re.search(r"h2.* \d", picture.alt)


def test_readme_gets_the_table(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    assert page.update_readme(readme, three_rounds())
    assert not page.update_readme(readme, three_rounds())
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| h2 |" in text
    readme.write_text("no markers")
    with pytest.raises(UnusableResults, match="lacks the lines"):
        page.update_readme(readme, three_rounds())


def test_two_runs_agree_on_ratios_despite_drift() -> None:
    rows = comparison.compare(three_rounds(), three_rounds(1.01, drift=(0.5, 0.6, 0.55)))
    judged = {row.cell: row.agrees for row in rows if row.ratios}
    assert len(judged) == 3
    assert not any(judged.values())  # no noise but drift: 1 % is a difference
    same = comparison.compare(three_rounds(), three_rounds(drift=(0.5, 0.6, 0.55)))
    assert all(row.agrees for row in same if row.ratios and not row.cell.is_latency)
    assert all(row.change.low <= 0.6 <= row.change.high for row in same)


def test_unlike_runs_are_refused() -> None:
    a = results(sample(PLAIN, "Offline"))
    with pytest.raises(UnusableResults, match="unlike machines: cpu 'A CPU' and 'B'"):
        comparison.compare(a, results(sample(PLAIN, "Offline"), cpu="B"))
    with pytest.raises(UnusableResults, match="no target"):
        comparison.compare(a, results(sample(H2, "Offline")))


def measured() -> Results:
    return results(
        sample(PLAIN, "Server", calls_per_s=2000, cpu_us=400),
        sample(H2, "Server", calls_per_s=30_000, cpu_us=30),
        sample(H2, "Server", calls_per_s=90_000, latency_s=0.5),
        sample(INT8, "Server", calls_per_s=40_000, cpu_us=25),
        sample(INT8, "Offline", batch=64, calls_per_s=5_000, latency_s=0.05, cpu_us=64),
        sample(ON_CUDA, "Offline", batch=64, calls_per_s=50_000, cpu_us=64),
        *(sample(Spec(target=target), "ClosedLoop", calls_per_s=10**7, cpu_us=1)
          for target in ("raw", "client-h2", "engine-bound", "h2-graphs")),  # nothing to deploy
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rate", "slo_s", "place", "expected"),
    [
        (1_000, 0.01, "served", [INT8, H2, PLAIN]),
        (10_000, 0.01, "served", [INT8, H2]),
        (35_000, 0.01, "served", [INT8]),
        (1_000_000, 0.01, "embedded", [ON_CUDA]),
    ],
)
def test_recommendation_is_the_cheapest_that_suffices(
    rate: float, slo_s: float, place: str, expected: list[object]
) -> None:
    ranked, suffices = recommendation.rank(recommendation.choices(measured(), slo_s, place), rate)
    assert suffices
    assert [choice.spec for choice in ranked] == expected


def test_recommendation_never_goes_beyond_what_was_measured() -> None:
    ranked, suffices = recommendation.rank(recommendation.choices(measured(), 0.01), 50_000)
    assert not suffices
    assert ranked[0].images_per_s == 40_000
    assert recommendation.choices(measured(), 0.0001) == []
    (large,) = recommendation.choices(measured(), 0.1, batch=64)
    assert (large.spec, large.images_per_s, large.cost_us) == (INT8, 320_000, 1.0)
