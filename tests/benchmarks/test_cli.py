"""The command line, as people use it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx.parser
import pytest

from benchmarks import pictures, result_file
from benchmarks.cli import main, parser, suite_of
from benchmarks.network import family
from benchmarks.result_file import UnusableResults
from benchmarks.runner import SUITES, specs
from benchmarks.targets import Spec
from benchmarks.workload import drawn, of_samples
from tests.benchmarks.made_up import H2, INT8, PLAIN, results, sample, three_rounds
from tests.support.servers import running_server, wait_until

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_run_measures_and_reports(models, tmp_path, capsys):
    output = tmp_path / "r.json"
    with running_server(models, "--device", "cpu") as server:
        code = run(
            "run", "--models", models, "--output", output,
            "--targets", f"h2,peer=oip://{server.address}", "--device", "cpu,cuda",
            "--scenarios", "SingleStream,Offline", "--batches", "1,8", "--seconds", "0.05",
            "--rounds", "2", "--generator", "python",
        )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    document = json.loads(output.read_text())
    measured = {(s["spec"]["target"], s["scenario"], s["batch"]) for s in document["samples"]
                if s["spec"]["device"] == "cpu"}  # fmt: skip
    assert measured == {
        (target, scenario, batch)
        for target in ("h2", "peer")
        for scenario in ("SingleStream", "Offline")
        for batch in (1, 8)
    }
    assert server.address not in output.read_text()
    assert str(tmp_path) not in output.read_text()
    shown = capsys.readouterr().out
    assert "round 2/2" in shown
    assert f"report in {tmp_path / 'r.md'}" in shown
    assert (tmp_path / "r.md").is_file()


TWO_INPUTS = """
<ir_version: 8, opset_import: ["" : 17]>
two (float[N, 3, M] x, int64[N] y) => (float[N, 3, M] z, int64[N] w) { z = Relu(x)  w = Neg(y) }
"""


def test_any_model_is_measured_by_drawn_inputs(tmp_path):
    file, output = tmp_path / "two.onnx", tmp_path / "r.json"
    onnx.save(onnx.parser.parse_model(TWO_INPUTS), file)
    code = run(
        "run", "--model", file, "--output", output, "--generator", "python", "--seconds", "0.05",
        "--targets", "h2-infer,plain", "--scenarios", "SingleStream,Offline", "--batches", "8",
        "--rounds", "1",
    )  # fmt: skip
    assert code == 0
    document = json.loads(output.read_text())
    measured = {(s["spec"]["target"], s["scenario"]) for s in document["samples"]}
    assert measured == {("h2-infer", scenario) for scenario in ("SingleStream", "Offline")}
    assert not sum(sample["num_errors"] for sample in document["samples"])
    assert [skip["reason"] for skip in document["skips"]] == ["it does not answer: UNIMPLEMENTED"]


def model_command(file, *options):
    quick = ("--rounds", "1", "--seconds", "0.05", "--callers", "1,4", "--batches", "1,3")
    return run("model", file, *quick, *options)


@pytest.fixture
def two_inputs(tmp_path):
    onnx.save(onnx.parser.parse_model(TWO_INPUTS), tmp_path / "two.onnx")
    return tmp_path / "two.onnx"


def test_model_is_measured_through_the_server_and_in_process(two_inputs, tmp_path, capsys):
    output = tmp_path / "r.json"
    wanted = {
        (target, callers, batch)
        for target in ("h2-infer", "onnxruntime") for callers in (1, 4) for batch in (1, 3)
    }  # fmt: skip
    for seconds in ("0.05", "0.5", "5"):  # a busy machine may answer nothing in a short run
        code = model_command(two_inputs, "--seed", "7", "--seconds", seconds, "--output", output)
        document, shown = json.loads(output.read_text()), capsys.readouterr().out
        answered = [each for each in document["samples"] if not each["invalid"]]
        found = {(s["spec"]["target"], s["callers"], s["batch"]) for s in answered}
        if found == wanted:
            break
    assert (code, found) == (0, wanted)
    assert document["settings"]["seed"] == 7
    assert "What serving costs" in shown
    rows = re.findall(r"^(\d)  +(\d)  .* (\d+)  .* (\d+)  +[\d.]+ ×", shown, re.MULTILINE)
    assert rows == [("1", "1", "0", "0"), ("1", "4", "0", "0"), ("3", "1", "0", "0"),
                    ("3", "4", "0", "0")]  # fmt: skip


def test_model_without_rows_is_measured_one_call_at_a_time(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    one (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }"""
    file, output = tmp_path / "one.onnx", tmp_path / "r.json"
    onnx.save(onnx.parser.parse_model(text), file)
    assert model_command(file, "--output", output) == 0
    assert {s["batch"] for s in json.loads(output.read_text())["samples"]} == {1}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.zeros((2, 3, 5), np.float32)}, "has no array 'y'; it has x"),
        ({"x": np.zeros((2, 4, 5), np.float32), "y": np.zeros(2, np.int64)}, "got float32 [2, 4"),
        ({"x": np.zeros((2, 3, 5)), "y": np.zeros(2, np.int64)}, "got float64 [2, 3, 5] as x"),
        ({"x": np.zeros((0, 3, 5), np.float32), "y": np.zeros(0, np.int64)}, "got float32 [0, 3"),
    ],
)
def test_samples_that_do_not_fit_are_one_line(two_inputs, tmp_path, capsys, arrays, reason):
    np.savez(tmp_path / "s.npz", **arrays)
    assert model_command(two_inputs, "--samples", tmp_path / "s.npz") == 1
    line = capsys.readouterr().err
    assert reason in line
    assert line.count("\n") == 1


def test_samples_are_what_is_asked(two_inputs, tmp_path):
    x = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
    np.savez(tmp_path / "s.npz", x=x, y=np.arange(2))
    feeds = of_samples(two_inputs, tmp_path / "s.npz").feeds(5)
    assert np.array_equal(feeds["x"], x[[0, 1, 0, 1, 0]])
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(OSError, match="no NPZ file"):
        of_samples(two_inputs, tmp_path / "bad.npz")


def test_same_seed_draws_the_same(two_inputs):
    one, same, other = (drawn(two_inputs, seed).feeds(4)["x"] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "kept.json"
    three_rounds().save(path)
    return path


def test_plot_writes_the_report(kept):
    assert run("plot", kept) == 0
    assert kept.with_suffix(".md").is_file()


def test_readme_has_the_committed_figures():
    results = ROOT / "benchmarks" / "results" / "peers.json"
    assert run("plot", results, "--readme", ROOT / "README.md", "--check") == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "--targets", "nope"], "expected plain"),
        (["run", "--targets", "old=checkout:/nope"], "no checkout"),
        (["run", "--callers", "0x3"], "at least 1"),
        (["run", "--batches", "4097"], "at most 4096"),
        (["run", "--rounds", "0"], "at least 1"),
        (["run", "--seconds", "x"], "expected a time"),
        ([], "required"),
    ],
)
def test_bad_usage_exits_2(arguments, reason, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert reason in capsys.readouterr().err


def test_missing_files_are_one_line(tmp_path, capsys):
    assert run("plot", tmp_path / "a") == 2
    assert run("run", "--models", tmp_path, "--targets", "h2") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("python -m benchmarks: ") for line in lines)


@pytest.mark.parametrize("command", ["run", "model", "tune", "peers", "plot"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parser().parse_args([command, "--help"])
    assert exit_info.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 8


def suite(*arguments):
    return suite_of(parser().parse_args(["run", *arguments]))


def test_options_change_the_suite():
    assert suite() == SUITES["bench"]
    changed = suite("--device", "cpu,cuda", "--latency-slo", "0.02", "--scenarios", "Server")
    assert [str(spec) for spec in changed.specs] == [
        "plain", "grpcio", "grpcio int8", "grpcio cuda", "h2", "h2 int8", "h2 cuda",
    ]  # fmt: skip
    assert (changed.scenarios, changed.latency_slo_s) == (["Server"], 0.02)
    named = suite("--targets", "h2,peer=oip://h:1", "--workers", "2", "--suite", "full")
    assert [str(spec) for spec in named.specs] == ["h2 x2"]
    few = suite("--targets", "plain,h2", "--threads", "1,2")
    assert [str(spec) for spec in few.specs] == ["h2 1-thread", "h2 2-thread"]
    old = suite("--targets", f"h2,old=checkout:{ROOT}", "--precision", "fp32,int8")
    assert [str(spec) for spec in old.specs] == ["h2", "h2 int8", "old", "old int8"]
    spread = suite("--callers", "5,8x32", "--scenarios", "ClosedLoop")
    cells = {(cell.callers, cell.connections) for cell in spread.cells()}
    assert cells == {(5, 0), (256, 8)}
    full = {(cell.spec.target, cell.scenario) for cell in SUITES["full"].cells()}
    assert ("h2", "Server") in full
    with pytest.raises(UnusableResults, match="nothing to measure"):
        suite("--targets", "plain", "--device", "cuda")


def test_settings_a_target_lacks_are_left_out():
    found = specs(["plain", "h2"], ("cpu", "cuda"), ("fp32", "int8"), (1, 2))
    assert [str(spec) for spec in found] == [
        "plain",
        "h2", "h2 x2", "h2 int8", "h2 int8 x2", "h2 cuda", "h2 cuda x2",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["devices", "peers"])
def test_pictures_beside_the_results_are_theirs(name):
    folder = ROOT / "benchmarks" / "results"
    for end, svg in pictures.pictures_of(result_file.load(folder / f"{name}.json")).items():
        assert svg == (folder / f"{name}{end}.svg").read_text()
        colours = set(re.findall("#[0-9a-f]{6}", svg))
        assert "currentColor" in svg
        assert "#000000" not in colours, "ink that cannot be seen in the dark"


def test_picture_says_in_words_what_it_shows():
    rates = {PLAIN: 1e4, Spec(target="triton"): 3e4, H2: 135e3, INT8: 2e5}
    kept = results(
        *(sample(spec, "SingleStream", calls_per_s=2e4) for spec in rates),
        *(
            sample(spec, "ClosedLoop", callers=256, calls_per_s=rate)
            for spec, rate in rates.items()
        ),
    )
    parsed = ElementTree.fromstring(pictures.pictures_of(kept)[""])
    assert "256 in flight: 135 k answers/s" in parsed.attrib["aria-label"]
    words = {"".join(each.itertext()).strip() for each in parsed.iter() if "text" in each.tag}
    names = {"a plain grpcio server", "Triton", "digit-serving", "digit-serving int8"}
    assert names | {"p99.9", "1 ms"} <= words


def test_sigterm_ends_the_servers_and_leaves_no_folder(two_inputs, tmp_path):
    """As Ctrl-C does: `timeout`, systemd and notebooks send it."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "benchmarks", "tune", str(two_inputs)]
    variables = {**os.environ, "TMPDIR": str(temporary)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=pipe, stderr=pipe, text=True
    ) as process:
        wait_until(lambda: [*temporary.glob("tune-*")] and len([*family(process.pid)]) > 2)
        started = [*family(process.pid)]
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.endswith("interrupted\n")
    assert not [*temporary.iterdir()]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
