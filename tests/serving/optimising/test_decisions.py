"""What `optimize` makes of samples and figures, with models and quantizers that are not there."""

import inspect
import json
import logging
import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import serving
from serving.errors import ConfigurationError, ModelError
from serving.model.agreement import Agreement, AgreementLimits, AnswerComparison
from serving.model.golden import read_golden
from serving.model.settings import NO_SETTINGS
from serving.optimising import source
from serving.optimising.candidates import Candidate
from serving.optimising.gate import GateLimits, GateVerdict, Loss
from serving.optimising.measure import Gain, Rates
from serving.optimising.optimize import optimize, processor_name
from serving.optimising.result import Optimization, TriedCandidate
from serving.optimising.samples import CallSamples
from serving.optimising.served import Served
from serving.optimising.source import NothingToGain, OptimizedSource
from serving.publishing.manifest import digests
from serving.tensors import Tensor, TensorSignature
from tests.support.fakes import Terminal

module = import_module("serving.optimising.optimize")
INT8, NBITS = Candidate(kind="int8"), Candidate(kind="nbits")
SOURCE = OptimizedSource(
    "net", "3", Path("net"), b"graph", {"w": b"1234"}, {"net.onnx": "aa", "w": "bb"}, {},
    "model.onnx", None,
)  # fmt: skip
TENSORS = TensorSignature(
    (Tensor("x", "FP32", (-1, 1)),), (Tensor("y", "FP32", (-1, 1)),), is_batchable=True
)
CLEARED = "\r\x1b[K"


class Model:
    """Answers twice the input."""

    tensors, device, settings = TENSORS, "cpu", NO_SETTINGS

    def run(self, call):
        return [call["x"] * 2]

    def classify(self, images):
        return np.float32([[0.25, 0.75]] * len(images))


def rates(rate):
    return Rates(alone=(rate,) * 3, busy=(rate,) * 3, batch=8)


def gain(median, least=None):
    return Gain(median=median, least=least or median, most=median, is_sure=median > 1)


AGREEMENT = Agreement(output="y", kind="values", num=9, cosine=0.999)


def tried(candidate, factor=2.0, reason="", alone=None, is_sure=True, **more):
    return TriedCandidate(
        candidate=candidate, reason=reason, rates=rates(100 * factor), is_batched=True,
        num_bytes=7, alone=gain(alone or factor), busy=replace(gain(factor), is_sure=is_sure),
        verdict=GateVerdict(reason="", agreements=(AGREEMENT,), **more),
    )  # fmt: skip


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """The parts of `optimize`: what they are asked, and what they find."""
    found = SimpleNamespace(asked={}, decided=lambda facts: facts, is_worth=True)

    class Search:
        def __init__(self, bench, maker):
            found.bench = bench

        def run(self, **options):
            found.asked["run"] = options
            found.bench.progress()

    def ready(given, folder):
        if not found.is_worth:
            raise NothingToGain("why")
        return folder / "ready.onnx"

    def decided(bench, search, facts, deadline, **options):
        found.asked["decide"] = options
        return found.decided(facts)

    def answered(model, samples, progress):
        for _ in samples.calls:
            progress()
        return [{"y": model.run(call)[0]} for call in samples.calls]

    for name, part in {
        "require_extra": lambda: None, "read_source": lambda *given: (
            found.asked.update(source=given) or SOURCE),
        "load": lambda *given: found.asked.update(load=given[:1]) or Model(),
        "fp32_answers": answered, "batch_rows": lambda *given: 8, "prepared": ready,
        "Maker": lambda *given: found.asked.update(calls=given[2]), "Search": Search,
        "_decided": decided,
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, part)
    (tmp_path / "net.onnx").touch()
    found.path = tmp_path / "net.onnx"
    return found


def samples(num=30):
    return {"x": np.arange(num, dtype=np.float32)[:, None]}


def facts(num=30, **more):
    """The outcome before anything is tried."""
    calibration = num // 3
    notes = [f"{num - calibration} held-out samples that are all answered equally leave room for "
             f"{300 / (num - calibration):.2g} % other answers"]  # fmt: skip
    plain = Optimization(
        name="net", tried=(), chosen=None, reason="", fp32=None, is_batched=True, fp32_bytes=9,
        served=(), num_calibration=calibration, num_held_out=num - calibration,
        notes=tuple(notes) if num < 300 else (), processor=processor_name("cpu"), version=None,
        page=None,
    )  # fmt: skip
    return replace(plain, **more)


@pytest.mark.parametrize("num", [30, 297, 300])
def test_model_without_anything_to_gain_has_its_facts(num, parts):
    parts.is_worth = False
    shown = Terminal()
    found = optimize(parts.path, samples=samples(num), progress=shown)
    assert found == facts(num, reason="nothing to gain: why")
    assert "of 30" in shown.getvalue() or num > 30
    assert shown.getvalue().endswith(CLEARED)
    assert "run" not in parts.asked


def test_search_is_asked_as_the_options_say(parts):
    shown = Terminal()
    found = optimize(parts.path, samples=samples(), progress=shown)
    assert found == facts()
    assert shown.getvalue().endswith(CLEARED)
    order = np.random.default_rng(0).permutation(30).tolist()
    gates = [[int(call["x"].item()) for call in gate.samples.calls] for gate in parts.bench.gates]
    assert gates == [order[:10], order[10:]]
    assert [int(call["x"].item()) for call in parts.asked.pop("calls")] == order[:10]
    assert parts.asked == {
        "source": (parts.path, None), "load": (SOURCE,), "run": {"is_portable": False},
        "decide": {"few_samples": False},
    }  # fmt: skip
    assert (parts.bench.source, parts.bench.device) == (SOURCE, "auto")
    optimize(parts.path, samples=samples(), portable=True, few_samples=True, seed=4, version=2,
             device="cpu")  # fmt: skip
    assert parts.asked["source"] == (parts.path, "2")
    assert parts.asked["run"] == {"is_portable": True}
    assert parts.asked["decide"] == {"few_samples": True}
    assert parts.bench.device == "cpu"
    first = [int(call["x"].item()) for call in parts.bench.gates[0].samples.calls]
    assert first == np.random.default_rng(4).permutation(30).tolist()[:10]


def test_defaults_are_those_of_the_page():
    defaults = {name: each.default for name, each in inspect.signature(optimize).parameters.items()
                if each.default is not each.empty}  # fmt: skip
    assert defaults == {
        "name": "", "models": "models", "version": None, "classes": "", "score": "",
        "limits": None, "few_samples": False, "portable": False, "new_signature": False,
        "device": "auto", "seed": 0, "time_limit_s": 600.0, "progress": None,
    }  # fmt: skip


def test_few_samples_are_published_only_if_asked(parts, monkeypatch):
    asked: Any = []
    monkeypatch.setattr(module, "_published", lambda *given: asked.append(given) or Path("9"))
    best = tried(INT8)
    parts.decided = lambda facts: replace(facts, chosen=best, reason="it gains")
    expected = facts(name="mine", chosen=best, reason="it gains")
    expected = replace(expected, name="net")
    assert optimize(parts.path, samples=samples(), models="m") == expected, "without a name"
    given = optimize(parts.path, samples=samples(), name="mine", models="m")
    assert given == facts(name="mine", chosen=best, reason=(
        "not published: it gains, but 30 samples are too few: 100 expected, or --few-samples"
    ))  # fmt: skip
    assert not asked
    for number, options in ((99, {"few_samples": True}), (300, {})):
        given = optimize(parts.path, samples=samples(number), name="mine", models="m", **options)
        assert (given.version, given.reason) == (Path("9"), "it gains")
    (_, _, found, target, calls, limits, new_signature, seed) = asked[-1]
    assert (found.chosen, target, len(calls)) == (best, Path("m", "mine"), 300)
    assert (limits, new_signature, seed) == (GateLimits(), False, 0)


def bench_of(tmp_path, monkeypatch, measured, served):
    """A bench whose candidates have these rates at the end, and through servers these gains."""
    (tmp_path / "graph").write_bytes(b"quantized")
    progress: list[str] = []

    def measure(models, rounds, report):
        assert rounds == 7
        assert next(iter(models)) == "fp32"
        return {"fp32": rates(100), **{name: rates(measured[name]) for name in [*models][1:]}}

    def through(places, name, calls, report, device):
        assert (places[0], name, device) == (tmp_path / "fp32", "net", "cpu")
        assert len(calls) == 4
        factor = served[places[1].name]
        if isinstance(factor, Exception):
            raise factor
        return [Served(callers=16, rate=100 * factor, fp32_rate=100, gain=gain(factor))]

    monkeypatch.setattr("serving.optimising.served.measure_served", through)
    monkeypatch.setattr(module, "load", lambda *given: Model())
    calls = tuple({"x": np.float32([[at]])} for at in range(6))
    gate = SimpleNamespace(
        samples=CallSamples(calls, None, ({},) * 6, "cc"),
        comparison=AnswerComparison({"y": "values"}, AgreementLimits()),
    )  # fmt: skip
    bench: Any = SimpleNamespace(
        source=SOURCE, folder=tmp_path, base=Model(), device="cpu", gates=(gate, gate),
        meter=SimpleNamespace(measure=measure), progress=lambda: progress.append("round"),
    )  # fmt: skip
    return bench


def search_of(tmp_path, *some):
    found: Any = SimpleNamespace(
        tried=list(some), files={each.candidate: tmp_path / "graph" for each in some}
    )
    return found


PLAIN = Optimization(name="net", tried=(), chosen=None, reason="", num_calibration=2,
                     num_held_out=6, processor="a processor")  # fmt: skip
THREE = [Candidate(kind="int8", kept=(name,)) for name in "abc"]


def never():
    deadline: Any = SimpleNamespace(is_late=lambda: False)
    return deadline


def final(each, factor, reason=""):
    """A candidate with its rates at the end."""
    measured = Gain.of((100 * factor,) * 3, (100,) * 3)
    return replace(each, reason=reason, rates=rates(100 * factor), alone=measured, busy=measured)


def test_fastest_that_holds_through_a_server_is_chosen(tmp_path, monkeypatch):
    some = [tried(each, factor) for each, factor in zip(THREE, (2.0, 3.0, 2.5), strict=True)]
    bench = bench_of(tmp_path, monkeypatch, {"1": 300, "2": 250}, {"final-1": 2.9})
    found = module._decided(bench, search_of(tmp_path, *some), PLAIN, never(), few_samples=False)
    best = final(some[1], 3.0)
    through = Served(callers=16, rate=100 * 2.9, fp32_rate=100, gain=gain(2.9))
    assert found == replace(
        PLAIN, tried=(some[0], best, final(some[2], 2.5)), chosen=best, fp32=rates(100),
        served=(through,),
        reason="int8 u8, 1 layer fp32: 3.00 (3.00 to 3.00) times as fast alone, "
               "3.00 (3.00 to 3.00) with many callers",
    )  # fmt: skip


def test_candidates_that_do_not_hold_have_the_reason(tmp_path, monkeypatch):
    """Two have their turn at a time, the fastest first."""
    some = [tried(each, factor) for each, factor in zip(THREE, (2.0, 3.0, 2.5), strict=True)]
    measured = {"0": 200, "1": 300, "2": 105}
    served = {"final-0": ModelError("gone"), "final-1": 0.9}
    bench = bench_of(tmp_path, monkeypatch, measured, served)
    found = module._decided(bench, search_of(tmp_path, *some), PLAIN, never(), few_samples=False)
    lost = "through the server 16 callers got 0.90 (0.90 to 0.90) times fp32's rate"
    reasons = ["not confirmed: it could not be served: gone", f"not confirmed: {lost}",
               "not faster: 1.05 times fp32's rate"]  # fmt: skip
    assert [each.reason for each in found.tried] == reasons
    name = "int8 u8, 1 layer fp32"
    assert (found.chosen, found.served, found.fp32) == (None, (), rates(100))
    assert found.reason == f"nothing gained: the fastest is {name}: {reasons[1]}"


def test_candidates_have_no_turn_where_the_time_is_over(tmp_path, monkeypatch):
    some = [tried(each, factor) for each, factor in zip(THREE, (2.0, 3.0, 2.5), strict=True)]
    bench = bench_of(tmp_path, monkeypatch, {"1": 100, "2": 100}, {})
    late: Any = SimpleNamespace(is_late=lambda: True)
    found = module._decided(bench, search_of(tmp_path, *some), PLAIN, late, few_samples=False)
    assert [each.reason for each in found.tried] == [
        "no time to confirm it", *["not faster: 1.00 times fp32's rate"] * 2
    ]  # fmt: skip


@pytest.mark.parametrize("few_samples", [False, True])
def test_candidate_that_only_lacks_samples_is_waived_if_asked(few_samples, tmp_path, monkeypatch):
    some = [
        tried(THREE[0], 2.0, "refused: too few", needs_samples=True),
        tried(THREE[1], 2.0, "refused: wrong"), tried(THREE[2], 1.05, "slow", needs_samples=True),
    ]  # fmt: skip
    bench = bench_of(tmp_path, monkeypatch, {"0": 200}, {"final-0": 2.0})
    found = module._decided(
        bench, search_of(tmp_path, *some), PLAIN, never(), few_samples=few_samples
    )
    assert found.chosen == (final(some[0], 2.0) if few_samples else None)
    assert [each.reason for each in found.tried[1:]] == ["refused: wrong", "slow"]


@pytest.mark.parametrize(
    ("alone", "factor", "is_sure", "reason"),
    [
        (0.9, 2.0, True, "slower alone: 0.90 (0.90 to 0.90) times fp32's rate"),
        (2.0, 1.09, True, "not faster: 1.09 times fp32's rate"),
        (2.0, 1.5, False,
         "not sure: 1.50 times fp32's rate, but its worst round is not above fp32's best"),
    ],
)  # fmt: skip
def test_slow_candidate_says_how(alone, factor, is_sure, reason):
    each = tried(INT8, factor, alone=alone, is_sure=is_sure)
    assert module._is_slow(each)
    assert module._slow(each) == replace(each, reason=reason)
    assert not module._is_slow(tried(INT8, 1.1))


def test_reason_names_the_fastest_and_the_fastest_that_is_right():
    wrong = replace(tried(INT8, 3.0, "refused: w"), verdict=GateVerdict(reason="w"))
    unmade = TriedCandidate(candidate=NBITS, reason="not made: n")
    right = [
        tried(each, factor, f"slow {factor}")
        for each, factor in zip(THREE, (1.0, 1.05), strict=False)
    ]
    begin = "nothing gained: the fastest is int8 u8: refused: w"
    assert module._why_not([]) == "nothing gained: no candidate was tried in time"
    assert module._why_not([unmade, wrong]) == begin
    assert module._why_not([*right, unmade, wrong]) == (
        f"{begin}; of those that the gate passes int8 u8, 1 layer fp32: slow 1.05"
    )
    assert module._why_not([unmade]) == "nothing gained: the fastest is 8-bit weights: not made: n"
    assert module._why_not([*right, unmade]) == (
        "nothing gained: the fastest is int8 u8, 1 layer fp32: slow 1.05"
    )


LOSS = Loss(num=6, accuracy=0.5, fp32_accuracy=0.75, low=-0.1, high=0.2)


@pytest.mark.parametrize("is_classifier", [False, True])
def test_version_is_written_with_its_origin(is_classifier, tmp_path, monkeypatch):
    document = {"signature": {"classes": 2}, "preprocessing": {"size": [1, 1]}, "recipe": "cnn",
                "seed": 5, "settings": {"a": 1}, "parameters": 9, "parity": {}, "name": "old",
                "golden": {"images": "AAEC"}}  # fmt: skip
    bench = bench_of(tmp_path, monkeypatch, {}, {})
    if is_classifier:
        bench.source = replace(SOURCE, document=document)
        monkeypatch.setattr(Model, "tensors", replace(TENSORS, inputs=(
            Tensor("x", "UINT8", (-1, 1)),)))  # fmt: skip
    marks: Any = []
    monkeypatch.setattr(
        module, "mark_of", lambda *given, **more: marks.append((given, more)) or {".mark": b""}
    )
    best = replace(tried(INT8, alone=1.5), verdict=GateVerdict(
        reason="", agreements=(AGREEMENT,), loss=LOSS, score=0.5, fp32_score=0.25))  # fmt: skip
    through = Served(callers=1, rate=2, fp32_rate=1, gain=gain(2.0))
    found = replace(PLAIN, chosen=best, served=(through,))
    given = CallSamples((), None, (), "dd")
    limits = GateLimits(agreement=AgreementLimits(least_cosine=0.5))
    target = tmp_path / "models" / "mine"
    version = module._published(
        bench, search_of(tmp_path, best), found, target, given, limits, True, 4
    )
    assert version == target / "1"
    assert marks == [((b"quantized", target), {
        "is_new_allowed": True, "document": bench.source.document})]  # fmt: skip
    files = {each.name: each.read_bytes() for each in version.iterdir()}
    manifest = json.loads(files.pop("manifest.json"))
    assert {*files} == {"model.onnx", "golden.npz", ".mark"}
    assert files["model.onnx"] == b"quantized"
    comparison = AnswerComparison({"y": "values"}, limits.agreement)
    golden = read_golden(files["golden.npz"], comparison)
    assert [call["x"].item() for call in golden.calls] == [0, 1, 2, 3, 4, 5]
    assert [answer["y"].item() for answer in golden.answers] == [0, 2, 4, 6, 8, 10]
    libraries = manifest.pop("libraries")
    assert {"onnxruntime", "onnx", "numpy", "python"} <= {*libraries}
    kept: dict[str, Any] = {}
    entry: dict[str, Any] = {"file": "golden.npz", "outputs": {"y": "values"},
             "limits": asdict(limits.agreement), "gated_on": "a processor"}  # fmt: skip
    if is_classifier:
        names = ("signature", "preprocessing", "recipe", "seed", "settings", "parameters")
        kept = {name: document[name] for name in names}
        kept["accuracy"] = {"validation": None, "test": 0.5}
        entry |= {"images": "AAEC", "probabilities": [[0.25, 0.75]] * 3}
    expected = {
        "format": 1, "name": "mine", "version": "1", **kept,
        "files": digests({name: files[name] for name in ("model.onnx", "golden.npz")}),
        "golden": entry,
        "optimized": {
            "from": {"name": "net", "version": "3", "files": {"net.onnx": "aa", "w": "bb"}},
            "by": {"digit-serving": serving.__version__, "candidate": "int8 u8",
                   "settings": asdict(INT8)},
            "samples": {"sha256": "dd", "calibration": 2, "held_out": 6, "seed": 4},
            "gate": {"found": "score 0.5 (fp32 0.25), loss 25 points (-10 to 20), cosine 0.9990, "
                              "error 0 %",
                     "outputs": [asdict(AGREEMENT)], "loss": asdict(LOSS), "score": 0.5,
                     "fp32_score": 0.25, "limits": asdict(limits)},
            "gain": {"alone": asdict(gain(1.5)), "busy": asdict(gain(2.0)),
                     "served": [asdict(through)]},
            "processor": "a processor",
        },
    }  # fmt: skip
    assert manifest == json.loads(json.dumps(expected))


def test_version_that_can_not_be_written_is_an_error_in_a_line(tmp_path, monkeypatch):
    bench = bench_of(tmp_path, monkeypatch, {}, {})
    monkeypatch.setattr(module, "mark_of", lambda *_, **__: {})
    (tmp_path / "models").touch()
    target = tmp_path / "models" / "mine"
    best = tried(INT8)
    given = CallSamples((), None, (), "dd")
    found = replace(PLAIN, chosen=best)
    with pytest.raises(
        ConfigurationError, match=r"^not published, can't write .*: Not a directory"
    ):
        module._published(
            bench, search_of(tmp_path, best), found, target, given, GateLimits(), False, 0
        )


def test_golden_calls_are_as_many_as_a_load_has_time_for(monkeypatch):
    """128, of 4 MiB with their answers, in a second."""
    calls = [{"x": np.full((1, 1), at, np.float32)} for at in range(130)]
    model: Any = Model()
    assert len(module._golden_calls(model, calls)[0]) == 128
    half = [{"x": np.zeros((1, 1 << 18), np.float32)} for _ in range(4)]  # with its answer 2 MiB
    assert len(module._golden_calls(model, half)[0]) == 2
    whole = [{"x": np.zeros((1, 1 << 20), np.float32)} for _ in range(2)]
    assert len(module._golden_calls(model, whole)[0]) == 1, "at least one"
    now_s = iter([0.0, *(0.4 * number for number in range(1, 99))])
    monkeypatch.setattr("time.perf_counter", lambda: next(now_s))
    kept, answers = module._golden_calls(model, calls)
    assert [call["x"].item() for call in kept] == [0, 1, 2]
    assert [answer["y"].item() for answer in answers] == [0, 2, 4]


@pytest.mark.parametrize(
    ("run_s", "num", "expected"),
    [(0.125, 300, (160, 140)), (0.125, 160, (160, 0)), (1.0, 150, (100, 50)), (0.0, 300, (300, 0))],
)
def test_held_out_samples_are_as_many_as_fp32_answers_in_20_seconds(
    run_s, num, expected, monkeypatch
):
    """At least a hundred."""
    now_s = [0.0]

    class Slow(Model):
        def run(self, call):
            now_s[0] += run_s
            return super().run(call)

    monkeypatch.setattr("time.perf_counter", lambda: now_s[0])
    calls = tuple({"x": np.float32([[at]])} for at in range(num))
    slow: Any = Slow()
    kept, left_out = module._bounded(slow, CallSamples(calls, None, ({},) * num, ""))
    assert (len(kept), left_out) == expected
    assert kept.calls == calls[: len(kept)]


def test_copies_and_few_samples_are_noted():
    given = replace(CallSamples(({},) * 299, None, ({},) * 299, ""), num_copies=1200)
    few = "200 held-out samples that are all answered equally leave room for 1.5 % other answers"
    held_out = CallSamples(({},) * 200, None, ({},) * 200, "")
    notes = module._notes(given, held_out, few_samples=False)
    assert notes == ["copies of other samples were left out: 1,200", few]
    many = CallSamples(({},) * 300, None, ({},) * 300, "")
    assert module._notes(many, held_out, few_samples=False) == []


def test_what_quantizers_print_and_log_is_kept_back_until_they_end(capsys, caplog):
    root = logging.root
    before = (root.manager.disable, [*root.handlers], root.level)

    def quantize():
        print("a banner")
        logging.basicConfig(level=1, force=True)
        logging.getLogger("serving.any").error("advice")
        warnings.warn("more advice", stacklevel=1)
        raise KeyError

    with pytest.raises(KeyError), source.quiet():
        quantize()
    assert (root.manager.disable, [*root.handlers], root.level) == before
    assert capsys.readouterr() == ("", "")
    assert not caplog.messages


def test_what_is_made_on_the_way_is_gone_however_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def work(error=None):
        with source.workplace() as folder:
            assert folder.parent == tmp_path
            assert folder.name.startswith("optimize-")
            assert tempfile.gettempdir() == str(folder)
            (folder / "file").touch()
            if error is not None:
                raise error

    for error in (None, KeyError()):
        with nullcontext() if error is None else pytest.raises(KeyError):
            work(error)
        assert tempfile.tempdir == str(tmp_path)
        assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("labels", "kind", "classes"), [({}, "values", ""), ({"labels": [0, 1] * 15}, "classes", "y")]
)
def test_output_that_labels_are_about_has_classes(labels, kind, classes, parts):
    limits = GateLimits(agreement=AgreementLimits(least_cosine=0.5))
    optimize(parts.path, samples={**samples(), **labels}, limits=limits)
    for gate in parts.bench.gates:
        assert gate.comparison == AnswerComparison({"y": kind}, limits.agreement)
        assert (gate.classes, gate.limits, gate.score) == (classes, limits, None)
