"""Tables and page, from made-up results."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import drawing, pictures, report, tables
from benchmarks.figures import Figures, paired_ratio
from benchmarks.result_file import Cell, Skip, UnusableResults, load
from benchmarks.targets import Spec
from tests.benchmarks.made_up import H2, ON_CUDA, PLAIN, results, sample, three_rounds


def rows_of(kept, title):
    (table,) = [table for table in tables.every(kept) if table.title == title]
    return [list(row) for row in table.rows]


@pytest.mark.parametrize(
    ("number", "text"), [(999.6, "1 k"), (999.4, "999"), (999_600, "1 M"), (0, "0"), (None, "–")]
)
def test_numbers_have_three_digits_and_no_exponent(number, text):
    assert tables.short(number) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999.6e-6, "1 ms"), (0.9996, "1 s"), (127.4e-6, "127 µs"), (2.5, "2.5 s")]
)
def test_times_have_the_unit_that_suits_them(value, text):
    assert tables.seconds(value) == text


def test_ratio_is_that_of_each_round_so_that_drift_cancels():
    drift = np.array([1.0, 0.6, 1.4, 0.9, 1.1])
    assert paired_ratio(30 * drift, 10 * drift) == pytest.approx((3, 3, 3))
    ratio = paired_ratio([2, 9, 4], [1, 3, 1])
    assert (ratio, str(ratio)) == ((3, 2, 4), "3 ×, 2 to 4")
    ratio = paired_ratio([2.0], [1.0])
    assert (ratio, str(ratio)) == ((2.0, 0.0, math.inf), "2 ×, one round")


def test_summary_has_ratios_that_drift_does_not_touch():
    heading, plain, h2 = rows_of(three_rounds(), "Targets")
    assert heading == ["target", "SingleStream, p90", "Server, p99 ≤ 10 ms", "Offline, 1 a call"]
    assert plain[0] == "plain"
    assert all("(10 ×, 10 to 10)" in cell for cell in h2[2:])
    assert re.search(r"\((9.9\d|10|10.\d+) ×", h2[1])


def test_invalid_runs_are_left_out_and_listed():
    bad = sample(H2, "Offline", number=1, calls_per_s=9, invalid="the generator was the limit")
    kept = results(sample(H2, "Offline", calls_per_s=100), bad)
    cell = Cell(spec=H2, scenario="Offline", callers=0)
    assert Figures(kept).rounds == {cell: {0: 100.0}}
    assert rows_of(kept, "Not measured")[1:] == [
        ["h2, Offline", "1 of 2", "the generator was the limit"]
    ]


def test_speedup_of_latencies_is_their_inverse():
    kept = results(
        *(sample(PLAIN, "SingleStream", number=n, latency_s=0.02) for n in range(3)),
        *(sample(H2, "SingleStream", number=n, latency_s=0.01) for n in range(3)),
    )
    ratio = Figures(kept).speedup(Cell(spec=H2, scenario="SingleStream"))
    assert ratio is not None
    assert ratio.estimate == pytest.approx(2, rel=0.01)


def test_targets_that_could_not_run_are_not_measured():
    kept = results(sample(H2, "Offline"), skips=(Skip(spec=ON_CUDA, reason="no GPU"),))
    assert rows_of(kept, "Targets")[-1] == ["h2 cuda", "not measured"]
    assert rows_of(kept, "Not measured")[1:] == [["h2 cuda", "–", "no GPU"]]


def test_target_by_address_has_a_row_too():
    peer = Spec(target="triton")
    kept = results(sample(H2, "SingleStream"), sample(peer, "SingleStream", latency_s=0.002))
    kept.starts = [start for start in kept.starts if start.spec != peer]
    assert [row[0] for row in rows_of(kept, "Targets")[1:]] == ["h2", "triton"]


def test_summary_leaves_out_targets_with_other_tasks():
    other = sample(Spec(target="h2-infer"), "ClosedLoop", callers=16, connections=1)
    kept = results(sample(H2, "SingleStream"), other)
    assert [row[0] for row in rows_of(kept, "Targets")] == ["target", "h2"]


def test_cells_of_a_task_stand_together_with_tails_and_costs():
    two = replace(H2, workers=2)
    kept = results(
        sample(PLAIN, "ClosedLoop", callers=256, connections=8, calls_per_s=1000),
        sample(two, "ClosedLoop", callers=4, calls_per_s=500, cpu_us=None),
        sample(H2, "ClosedLoop", callers=256, connections=8, calls_per_s=3000, latency_s=0.002),
        sample(H2, "Offline", batch=32, cpu_us=64),
    )
    assert rows_of(kept, "All that was measured") == [
        ["scenario", "target", "figure", "× plain", "p50", "p90", "p99", "p99.9", "CPU µs",
         "errors"],
        ["ClosedLoop 8 × 32", "plain", "1 k/s", "–", *(3 * ["1 ms"]), "–", "100", "0"],
        ["ClosedLoop 8 × 32", "h2", "3 k/s", "3 ×, one round", *(3 * ["2.01 ms"]), "–", "100", "0"],
        ["ClosedLoop 4", "h2 x2", "500/s", "–", "1 ms", "1 ms", "–", "–", "–", "0"],
        ["Offline, 32 a call", "h2", "32 k/s", "–", *(3 * ["1 ms"]), "–", "2", "0"],
    ]  # fmt: skip


def test_cell_with_errors_in_one_round_has_no_rate():
    failed = {"num_errors": 7, "invalid": "7 calls failed", "number": 1}
    kept = results(
        sample(PLAIN, "ClosedLoop", callers=4),
        sample(H2, "ClosedLoop", callers=4),
        sample(H2, "ClosedLoop", callers=4, calls_per_s=9000, **failed),
    )
    cell = Cell(spec=H2, scenario="ClosedLoop", callers=4)
    figures = Figures(kept)
    assert (figures.of(cell), figures.speedup(cell), figures.errors(cell)) == (None, None, 7)
    assert rows_of(kept, "All that was measured")[-1] == [
        "ClosedLoop 4", "h2", *(7 * ["–"]), "7",
    ]  # fmt: skip


def test_cost_of_serving_is_shown_by_rows_and_callers():
    alone, served = Spec(target="onnxruntime"), Spec(target="h2-infer")
    kept = results(
        sample(alone, "ClosedLoop", callers=8, batch=2, calls_per_s=2000, latency_s=0.002),
        sample(served, "ClosedLoop", callers=8, batch=2, calls_per_s=1000),
        sample(alone, "ClosedLoop", num_errors=3, invalid="3 calls failed"),
        sample(served, "ClosedLoop"),
    )
    table = next(each for each in tables.every(kept) if each.title == "What serving costs")
    assert table.rows[1:] == [
        ["1", "1", "1 k", "1 ms", "1 ms", "0", "–", "–", "–", "3", "–"],
        [
            "2",
            "8",
            "2 k",
            "1 ms",
            "1 ms",
            "0",
            "4 k",
            "2.01 ms",
            "2.01 ms",
            "0",
            "0.5 ×, one round",
        ],
    ]


def test_overload_table_accounts_for_every_call_that_was_due():
    outcomes = {"due": 3000, "sent": 2900, "in time": 900, "refused": 1500, "late": 500}
    kept = results(sample(H2, "Overload", overload=3.0, calls_per_s=900, outcomes=outcomes))
    assert rows_of(kept, "Overload")[1:] == [
        ["digit-serving", "3 ×", "3 k", "2.9 k", "900", "90%", "1.5 k", "500", "0", "1 of 3"]
    ]


@pytest.mark.parametrize("name", ["devices", "peers"])
def test_committed_report_is_that_of_its_results(name):
    path = Path("benchmarks/results") / name
    text = path.with_suffix(".md").read_text("utf-8")
    for table in tables.every(load(path.with_suffix(".json"))):
        assert table.markdown() in text


def compared():
    """Two models in two protocols, by the generator and by clients, and a peer that fails."""
    found = [
        sample(Spec(target=target), scenario, model=model, callers=callers, number=number,
               connections=connections, calls_per_s=rate * callers, latency_s=1 / rate)
        for model in ("digits", "trees")
        for callers, connections in ((1, 1), (64, 64), (64, 8))
        for number in range(2)
        for scenario in ("ClosedLoop", "SameBytes")
        for target, rate in (("http-json", 50), ("mosec", 10), ("h2-infer", 100), ("triton", 40))
        if (target in ("http-json", "mosec")) == (connections == 64) or callers == 1
    ]  # fmt: skip
    found += [
        sample(Spec(target=target, client="Client"), "ClosedLoop", model="digits", callers=64,
               calls_per_s=rate)
        for target, rate in (("h2-infer", 3000), ("triton", 4000))
    ]  # fmt: skip
    found += [
        replace(sample(Spec(target=target), "Load", model="digits", callers=0, overload=share,
                       calls_per_s=1e4 * share, latency_s=0.001 + share / 500),
                offered_per_s=1e4 * share)
        for target in ("h2-infer", "triton") for share in (0.1, 0.5, 0.9)
    ]  # fmt: skip
    failed = {"num_errors": 3, "invalid": "3 calls failed", "calls_per_s": 99_999}
    broken = {"model": "digits", "callers": 64, "connections": 64}
    found.append(sample(Spec(target="ray"), "ClosedLoop", **broken, **failed))
    cuda = Spec(target="h2-infer", device="cuda")
    kept = results(*found, skips=[Skip(spec=cuda, reason="no GPU", model="digits")])
    kept.starts = [replace(start, model="digits") for start in kept.starts]
    kept.environment["peers"] = {"mosec": {"mosec": "1.2"}}
    return kept


def test_readme_gets_a_picture_and_what_it_says(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert report.update_readme(readme, compared())
    assert not report.update_readme(readme, compared())
    text = readme.read_text()
    assert text.count("](benchmarks/results/peers.svg)") == 1
    assert "| model | gRPC | JSON over HTTP | bytes over HTTP |" in text
    assert "| `digits` | 2.5 × Triton | 5 × mosec | – |" in text
    assert "Real clients, two of them ours, have 0.75 × the rate" in text
    assert "Triton with digits, gRPC by Client, 64 (0.75 ×, one round)" in text
    assert "Ray" not in text  # it has errors, and so no rate
    with pytest.raises(UnusableResults, match="no comparison"):
        report.update_readme(readme, three_rounds())


def test_shorter_tail_of_a_slower_server_is_said():
    ours, triton = Spec(target="h2-infer"), Spec(target="triton")
    shape = {"callers": 64, "connections": 8, "model": "digits"}
    kept = results(
        *(sample(ours, "ClosedLoop", number=n, calls_per_s=6000, latency_s=0.004, **shape)
          for n in range(3)),
        *(sample(triton, "ClosedLoop", number=n, calls_per_s=2000, latency_s=0.003, **shape)
          for n in range(3)),
    )  # fmt: skip
    text = report.summary(Figures(kept))
    assert "| `digits` | 3 × Triton | – | – |" in text
    said = "Triton with digits, gRPC, 8 × 8 (2.99 ms beside 4.02 ms)"
    assert f"Where another server's p99 is shorter by 5% or more: {said}." in text


def test_range_of_all_callers_is_beside_the_fastest_of_each():
    def rate(target, callers, calls_per_s):
        return sample(
            Spec(target=target), "ClosedLoop", callers=callers, connections=1, model="trees",
            calls_per_s=calls_per_s,
        )  # fmt: skip

    kept = results(
        *(rate("http-json", n, 1000) for n in (1, 64)),
        rate("mosec", 1, 100), rate("mosec", 64, 800),
        rate("triton-json", 1, 500), rate("triton-json", 64, 200),
    )  # fmt: skip
    assert "| `trees` | – | 1.25 to 2 × Triton, mosec | – |" in report.summary(Figures(kept))


def test_losses_that_are_none_are_said_too():
    kept = compared()
    kept.samples = [each for each in kept.samples if not each.spec.client]
    assert "Nowhere here is another server as fast" in report.summary(Figures(kept))


def test_comparison_is_like_with_like():
    kept = compared()
    rows = {(row[0], row[1]): row for row in rows_of(kept, "digits, gRPC")}
    assert rows["server", "connections × calls"][2:4] == ["rows/s", "digit-serving is"]
    assert rows["digit-serving", "8 × 8"][2:4] == ["6.4 k", "–"]
    assert rows["Triton", "8 × 8"][2:4] == ["2.56 k", "2.5 ×, 2.5 to 2.5"]
    assert rows["Triton", "8 × 8"][6] == "2.56 k"  # with the same bytes in all calls
    assert rows["digit-serving cuda", "not measured"]
    rows = {(row[0], row[1]): row for row in rows_of(kept, "digits, JSON over HTTP")}
    assert rows["mosec", "1 × 1"][3] == "5 ×, 5 to 5"
    assert rows["Ray Serve", "64 × 1"][2:9] == ["–"] * 7
    assert rows["Ray Serve", "64 × 1"][-1] == "3"
    assert {row[0] for row in rows.values()} == {"server", "digit-serving", "mosec", "Ray Serve"}
    assert ["mosec", "mosec 1.2"] in rows_of(kept, "Versions")
    assert rows_of(kept, "What a swap brings")[1][:5] == [
        "Client", "64", "3 k", "4 k", "0.75 ×, one round",
    ]  # fmt: skip


def test_load_and_cost_have_a_row_for_each_server():
    kept = compared()
    assert [row[:4] for row in rows_of(kept, "Under load")[1:4]] == [
        ["digit-serving", "gRPC", "10%", "1 k"],
        ["digit-serving", "gRPC", "50%", "5 k"],
        ["digit-serving", "gRPC", "90%", "9 k"],
    ]
    costs = {(row[0], row[2]): row for row in rows_of(kept, "Cost") if row[1] == "digits"}
    assert costs["Triton", "gRPC"][3:] == ["8 × 8", "100", "64 MiB", "300 ms"]
    assert ("Ray Serve", "JSON") not in costs


def test_comparison_is_drawn_with_one_colour_for_a_product():
    kept = compared()
    drawn = pictures.pictures_of(kept)
    assert set(drawn) == {""}  # of devices there is one, which is no comparison
    assert "Ray" not in drawn[""]
    texts = re.findall(r">([^<>]+)</text>", drawn[""])
    assert {"digit-serving", "Triton", "mosec", "digit-serving, gRPC"} <= {*texts}
    fast = [each for each in kept.samples if each.spec == Spec(target="h2-infer")]
    kept.samples += [replace(each, spec=replace(each.spec, precision="int8")) for each in fast]
    drawn = pictures.pictures_of(kept)
    assert drawn["-devices"].count(">cpu int8<") == 2
    assert "not measured" not in drawn["-devices"]


def test_batches_are_drawn_where_there_are_several():
    kept = results(
        *(
            sample(replace(H2, workers=number), "Offline", batch=batch, calls_per_s=1000 / batch)
            for number in (1, 2) for batch in (1, 8, 64)
        )
    )  # fmt: skip
    words = pictures.pictures_of(kept)["-batches"]
    assert "digit-serving x2, 64 rows a call: rows/s 1.02 k" in words


def test_settings_of_this_server_alone_have_a_colour_each():
    kept = results(
        *(
            sample(Spec(target="h2-infer", precision=precision, threads=threads), "Offline",
                   batch=batch, calls_per_s=1000 / batch)
            for precision in ("fp32", "int8") for threads in (0, 1, 2) for batch in (1, 8, 64)
        )
    )  # fmt: skip
    drawn = pictures.pictures_of(kept)["-batches"]
    assert "int8 2-thread, 8 rows a call: p50 latency of a call" in drawn
    assert "fp32, 64 rows a call: rows/s" in drawn
    used = {colour for colour in drawing.COLOURS if colour in drawn}
    assert len(used) == 6


@pytest.mark.parametrize("number", [2, 7])
def test_names_beside_lines_are_never_on_each_other(number):
    figure = Figure(figsize=(4.8, 2.9), layout="constrained")
    axes = figure.subplots()
    lines = {f"server {each}": (1000.0 + each, "#123456") for each in range(number)}
    axes.plot([0, 1], [1, 2000])
    axes.set_yscale("log")
    drawing.name_lines(axes, lines)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    heights = [box.y0 for box in boxes]
    assert heights == sorted(heights)  # as their lines


def measured(target, number, calls_per_s, cpu_us=100.0):
    return sample(
        Spec(target=target), "ClosedLoop", number=number, calls_per_s=calls_per_s, callers=64,
        connections=8, model="digits", cpu_us=cpu_us,
    )  # fmt: skip


def test_range_has_no_ratio_of_one_round_beside_others():
    def shape(target, callers, number, calls_per_s):
        made = measured(target, number, calls_per_s)
        return replace(made, callers=callers, connections=callers)

    kept = results(
        *(shape("h2-infer", callers, n, 6000) for callers in (1, 8) for n in range(3)),
        *(shape("triton", 1, n, 3000) for n in range(3)), shape("triton", 8, 0, 100),
    )  # fmt: skip
    assert "| `digits` | 2 × Triton | – | – |" in report.summary(Figures(kept))
    kept.samples = [each for each in kept.samples if each.callers == 8]
    assert "| `digits` | 60 × Triton | – | – |" in report.summary(Figures(kept))


@pytest.mark.parametrize(("slowest", "is_named"), [(990, True), (1000, False)])
def test_loss_in_one_round_is_named(slowest, is_named):
    kept = results(
        *(measured("h2-infer", n, rate) for n, rate in enumerate((slowest, 1200, 1300))),
        *(measured("triton", n, 1000) for n in range(3)),
    )
    text = report.summary(Figures(kept))
    assert ("Triton with digits, gRPC, 8 × 8 (1.2 ×, 0.99 to 1.3)" in text) == is_named


def test_cost_that_could_not_be_read_counts_for_nothing():
    runs = [measured("h2-infer", n, 1000, cost) for n, cost in enumerate((-590.0, 61.5, 62.5))]
    figures = Figures(results(*runs))
    assert figures.cost_us(runs[0].cell) == 62.0
    figures = Figures(results(measured("h2-infer", 0, 1000, -590.0)))
    assert figures.cost_us(runs[0].cell) is None
