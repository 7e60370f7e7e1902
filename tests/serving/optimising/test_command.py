import json
import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from serving.__main__ import main
from serving.model.agreement import Agreement, AgreementLimits
from serving.optimising import page, report
from serving.optimising.candidates import Candidate
from serving.optimising.gate import GateLimits, GateVerdict
from serving.optimising.measure import Gain, Rates
from serving.optimising.result import Optimization, TriedCandidate
from serving.optimising.served import Served
from tests.programs.test_installation import without
from tests.serving.model.graphs import node, rows_model, save


def tried(candidate, gain, cosine, reason=""):
    agreement = Agreement(output="y", kind="values", num=100, cosine=cosine, error=0.01)
    both = Gain(median=gain, least=gain - 0.1, most=gain + 0.1, is_sure=gain > 1.1)
    return TriedCandidate(
        candidate=candidate,
        reason=reason,
        verdict=GateVerdict(reason=reason, agreements=(agreement,)),
        rates=Rates(alone=(gain,), busy=(gain,), batch=8),
        alone=both,
        busy=both,
        is_batched=True,
        num_bytes=3_000_000,
    )


def outcome():
    best = tried(Candidate(kind="int8"), 2.2, 0.9991)
    gain = Gain(median=2.1, least=2, most=2.2, is_sure=True)
    return Optimization(
        name="<net>",
        tried=(
            tried(Candidate(kind="nbits"), 1.0, 0.9999, "not faster: 1.00 times fp32's rate"),
            TriedCandidate(candidate=Candidate(kind="dynamic"), reason="not made: <no> & never"),
            best,
            tried(Candidate(kind="int8", activations="s8"), 2.5, 0.2, "refused: output y: cosine"),
        ),
        chosen=best,
        reason="int8 u8: faster",
        fp32=Rates(alone=(1,), busy=(1,), batch=8),
        is_batched=True,
        fp32_bytes=12_000_000,
        served=(Served(callers=16, rate=2100, fp32_rate=1000, gain=gain),),
        num_calibration=50,
        num_held_out=100,
        processor="a processor",
    )


def test_table_has_the_best_first():
    rows = report.table(outcome()).splitlines()
    names = [re.split(r" {2,}", row)[0] for row in rows[1:]]
    assert names == ["fp32", "int8 u8", "int8 s8", "8-bit weights", "dynamic int8"]
    assert "2.20 (2.10 to 2.30)" in rows[2]
    assert rows[2].endswith("chosen")
    assert "cosine 0.2000" in rows[3]
    assert "Through the server, 16 callers: 2,100 answers/s, fp32 1,000: 2.10" in "\n".join(
        report.lines(outcome())
    )


def test_page_has_a_dot_for_each_measured_candidate_and_escapes_names():
    text = page.render(outcome())
    dots = re.findall(r'<circle class="(\w+)"', text)
    assert sorted(dots) == ["bad", "bad", "good"]
    assert "<net>" not in text
    assert "&lt;no&gt; &amp; never" in text
    assert "aria-label=" in text
    assert "http" not in text  # it loads nothing


def test_page_says_the_outcome_first_and_what_it_rests_on_after_it():
    text = page.render(replace(outcome(), notes=("a note", "another")))
    parts = [
        ">Int8 u8: faster.<", "50 samples to calibrate with, 100 held out", "a note", "another",
        "<svg", "agreement with fp32", "times fp32's rate", "A dot for each candidate",
        "Through the server, 16 callers: 2,100", "<table", "Gains are medians",
    ]  # fmt: skip
    places = [text.find(each) for each in parts]
    assert -1 not in places
    assert places == sorted(places)


def test_figures_are_written_as_json(tmp_path):
    path = page.write(outcome(), GateLimits(), tmp_path / "new")
    document = json.loads(path.with_suffix(".json").read_text())
    assert document["chosen"]["candidate"]["kind"] == "int8"
    assert document["limits"]["most_loss"] == 0.002


def test_command_says_why_nothing_is_gained(tmp_path, capsys):
    save(rows_model(node("Relu", ["x"], ["y"])), tmp_path, "net.onnx")
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).normal(size=(120, 4)).astype("f4"))
    options = [
        "--samples",
        str(tmp_path / "s.npz"),
        "--name",
        "net",
        "--output",
        str(tmp_path / "o"),
    ]
    assert main(["optimize", str(tmp_path / "net.onnx"), "--name", "net", *options]) == 0
    out = capsys.readouterr().out
    assert "Nothing to gain: it has no convolution or matrix product to quantize" in out
    assert f"page: {tmp_path / 'o' / 'net.html'}" in out
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["none.onnx"], "there is no file none.onnx"),
        (["none"], "no model in models/none"),
        (["net.onnx", "--name", "../up"], "name: expected up to 100 letters"),
        (["net.onnx", "--least-equal", "200"], "expected a number from 0 to 100"),
        (["net.onnx", "--classes", "z"], "--classes: expected one of y"),
        (["net.onnx", "--score", "none.py:f"], "--score: expected FILE.py:function"),
        (["net.keras"], "digit-serving export net.keras"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, monkeypatch, capsys, options, reason):
    monkeypatch.chdir(tmp_path)
    save(rows_model(node("MatMul", ["x", "w"], ["y"]), constants={"w": np.eye(4, dtype="f4")}),
         tmp_path, "net.onnx")  # fmt: skip
    np.savez("s.npz", x=np.random.default_rng(0).normal(size=(120, 4)).astype("f4"))
    try:
        code = main(["optimize", *options, "--samples", "s.npz"])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2
    assert reason in err
    assert "Traceback" not in err


def test_missing_extra_is_one_line(tmp_path):
    save(rows_model(node("Relu", ["x"], ["y"])), tmp_path, "net.onnx")
    for hidden in ("onnx", "onnx_ir"):
        code, out, err = without(
            (hidden,), "serving", "optimize", str(tmp_path / "net.onnx"), "--samples", "s.npz"
        )
        assert (code, out) == (2, "")
        assert err == (
            f"digit-serving: {hidden} is not installed: pip install '.[optimize]' in the checkout "
            "of digit-serving\n"
        )


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the command asks for; its outcome has no version, unless a test gives it one."""
    monkeypatch.chdir(tmp_path)
    seen = []
    found = replace(outcome(), name="net")

    def optimize(model, **options):
        seen.append((model, options))
        return (
            replace(found, version=tmp_path / "models" / "mine" / "4") if name_of(seen) else found
        )

    monkeypatch.setattr(import_module("serving.optimising.optimize"), "optimize", optimize)
    return seen


def name_of(seen):
    return seen[-1][1]["name"]


def test_options_that_are_left_out_are_as_the_page_says(asked, capsys):
    assert main(["optimize", "net.onnx", "--samples", "s.npz"]) == 0
    agreement = AgreementLimits(least_equal=0.99, least_cosine=0.995, most_error=0.02)
    assert asked == [("net.onnx", {
        "samples": Path("s.npz"), "name": "", "models": "models", "version": None, "classes": "",
        "score": "", "limits": GateLimits(agreement=agreement, most_loss=0.002),
        "few_samples": False, "portable": False, "new_signature": False, "device": "auto",
        "seed": 0, "time_limit_s": 600.0, "progress": sys.stderr,
    })]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "page: optimized/net.html",
        "not published: --name net publishes it as the next version",
    ]
    assert Path("optimized", "net.html").is_file()


def test_each_option_is_what_is_asked_for(asked, capsys, tmp_path):
    options = """
        mine --samples calls --name mine --models m --version 3 --device cpu --portable
        --new-signature --seed 7 --time 5ms --output o --classes logits --score f.py:g
        --most-loss 50 --least-equal 25 --least-cosine 99.5 --most-error 75 --few-samples
    """
    assert main(["optimize", *options.split()]) == 0
    agreement = AgreementLimits(least_equal=0.25, least_cosine=1.0, most_error=0.75)
    assert asked == [("mine", {
        "samples": Path("calls"), "name": "mine", "models": "m", "version": "3",
        "classes": "logits", "score": "f.py:g",
        "limits": GateLimits(agreement=agreement, most_loss=0.5), "few_samples": True,
        "portable": True, "new_signature": True, "device": "cpu", "seed": 7,
        "time_limit_s": 0.005, "progress": sys.stderr,
    })]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "page: o/net.html", f"published {tmp_path / 'models' / 'mine' / '4'}",
    ]  # fmt: skip
    document = json.loads(Path("o", "net.json").read_text())
    assert document["limits"]["most_loss"] == 0.5


@pytest.mark.parametrize("option", ["most-loss", "least-equal", "least-cosine", "most-error"])
def test_limits_are_from_0_to_100(option, asked, capsys):
    for number in ("0", "100"):
        assert main(["optimize", "net.onnx", "--samples", "s.npz", f"--{option}", number]) == 0
    for number in ("-0.001", "100.001", "nan", "much"):
        with pytest.raises(SystemExit) as end:
            main(["optimize", "net.onnx", "--samples", "s.npz", f"--{option}={number}"])
        assert end.value.code == 2
        assert f"expected a number from 0 to 100, got {number!r}" in capsys.readouterr().err
    assert len(asked) == 2


def test_page_that_can_not_be_written_is_one_line(asked, capsys):
    Path("file").touch()
    assert main(["optimize", "net.onnx", "--samples", "s.npz", "--output", "file/o"]) == 2
    out, err = capsys.readouterr()
    assert err == "digit-serving: can't write file/o: Not a directory\n"
    assert "many callers" in out, "an hour's search is printed all the same"
    assert "page:" not in out


def test_lines_of_the_terminal_are_these():
    shown = report.lines(replace(outcome(), notes=("a note",)))
    assert shown[:3] == [
        "<net>: 50 samples to calibrate, 100 held out; a processor", "a note", "",
    ]  # fmt: skip
    assert [re.split(r" {2,}", each.strip()) for each in shown[3].splitlines()] == [
        ["alone", "many callers", "size", "agreement"],
        ["fp32", "1", "1", "12.0 MB", "batched"],
        ["int8 u8", "2.20 (2.10 to 2.30)", "2.20 (2.10 to 2.30)", "3.0 MB",
         "cosine 0.9991, error 1 %", "chosen"],
        ["int8 s8", "2.50 (2.40 to 2.60)", "2.50 (2.40 to 2.60)", "3.0 MB",
         "cosine 0.2000, error 1 %", "refused: output y: cosine"],
        ["8-bit weights", "1.00 (0.90 to 1.10)", "1.00 (0.90 to 1.10)", "3.0 MB",
         "cosine 0.9999, error 1 %", "not faster: 1.00 times fp32's rate"],
        ["dynamic int8", "not made: <no> & never"],
    ]  # fmt: skip
    assert shown[4:] == [
        "",
        "Gains are medians over fp32's rate in the same rounds, least to greatest.",
        "Through the server, 16 callers: 2,100 answers/s, fp32 1,000: 2.10 (2.00 to 2.20) times",
        "Int8 u8: faster",
    ]


def test_nothing_tried_has_no_table():
    found = replace(outcome(), tried=(), chosen=None, served=(), reason="nothing to gain: why")
    assert report.lines(found) == [
        "<net>: 50 samples to calibrate, 100 held out; a processor", "Nothing to gain: why",
    ]  # fmt: skip


def test_candidate_that_is_batched_otherwise_than_fp32_says_so():
    found = outcome()
    alone = replace(found.tried[2], is_batched=False)
    changed = replace(found, tried=(alone,), chosen=alone)
    assert report.cells(changed)[1][-1] == "chosen; not batched"
    passing = replace(changed, chosen=None, is_batched=False)
    assert report.cells(passing)[0][-1] == "not batched"
    assert report.cells(passing)[1][-1] == "passes"


def test_page_has_headings_and_ticks_for_each_agreement(tmp_path):
    text = page.render(outcome())
    assert re.findall(r">([\d.]+ %)</text>", text) == ["50 %", "90 %", "99 %", "99.9 %", "99.99 %"]
    headings = re.findall(r"<th[^>]*>([a-z ]+)</th>", text.partition("</thead>")[0])
    assert headings == [
        "candidate", "gain alone", "gain with many callers", "size", "agreement", "outcome",
    ]  # fmt: skip
    folder = tmp_path / "some" / "new"
    for _ in range(2):
        assert page.write(outcome(), GateLimits(), folder).is_file()
    document = json.loads((folder / "<net>.json").read_text())
    assert document["limits"]["most_loss"] == 0.002
    assert '\n  "name": "<net>"' in (folder / "<net>.json").read_text()
