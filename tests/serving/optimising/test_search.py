"""The search with models that are not there: what is tried, judged, measured and given up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.errors import ConfigurationError, CorruptModel, InvalidRequest
from serving.model.agreement import Agreement
from serving.optimising import search
from serving.optimising.candidates import Candidate, NotMade
from serving.optimising.gate import GateVerdict
from serving.optimising.measure import Gain, Rates
from serving.optimising.result import Optimization, TriedCandidate, passing
from serving.optimising.samples import CallSamples
from serving.optimising.search import Bench, Deadline, Search, answers_of, fp32_answers
from serving.optimising.source import OptimizedSource
from serving.system.cores import usable_cores

INT8, NBITS = Candidate(kind="int8"), Candidate(kind="nbits")
SOURCE = OptimizedSource(
    "net", "3", Path("net"), b"graph", {"w": b"1234"}, {"net.onnx": "aa"}, {}, "model.onnx",
    b"max_batch_size: 7",
)  # fmt: skip
PASSES = GateVerdict(reason="")


def refused(equal=0.5, **more):
    agreement = Agreement(output="y", kind="classes", num=9, equal=equal)
    return GateVerdict(reason="it is wrong", agreements=(agreement,), **more)


def rates(alone, busy):
    return Rates(alone=(alone,) * 3, busy=(busy,) * 3, batch=8)


FP32 = rates(10.0, 10.0)


class Model:
    """Answers each call with itself, but for those that it refuses."""

    def __init__(self, is_batchable=True, refuses=()):
        self.tensors = SimpleNamespace(
            is_batchable=is_batchable, outputs=[SimpleNamespace(name="y")]
        )
        self.refuses = refuses

    def run(self, call):
        if call in self.refuses:
            raise InvalidRequest("not this one")
        return [np.float32(call)]


class Setting:
    """A bench, and what was asked of its parts."""

    def __init__(self, folder, monkeypatch):
        self.made: dict[Candidate, Any] = {}
        """What becomes of a candidate: an error, or the model that it is."""
        self.rates: dict[Candidate, Rates] = {}
        self.verdicts: dict[Candidate, GateVerdict] = {}
        self.asked: list[Any] = []
        self.is_hopeless = self.is_half = self.is_late = False
        self.now = INT8
        self.done: list[Any] = []
        self.folder, self.base = folder, Model()
        (folder / "made.onnx").write_bytes(b"12345")
        gates = [
            SimpleNamespace(
                samples=SimpleNamespace(calls=calls), is_hopeless=self._looked,
                judge=lambda answers, name=name: self._judged(name, answers),
            )
            for name, calls in (("calibration", (1, 2)), ("held out", (3,)))
        ]  # fmt: skip
        bench: dict[str, Any] = {
            "source": SOURCE, "folder": folder, "base": self.base, "gates": tuple(gates),
            "meter": SimpleNamespace(measure=self._measured), "device": "cpu",
            "is_half": lambda: self.is_half, "is_late": lambda: self.is_late,
            "progress": self._progress,
        }  # fmt: skip
        self.bench = Bench(**bench)
        monkeypatch.setattr(search, "load", self._load)
        maker: Any = SimpleNamespace(make=self._make, file=folder / "ready.onnx")
        self.search = Search(self.bench, maker)

    @property
    def num_progress(self):
        return self.done.count("progress")

    def _progress(self):
        self.done.append("progress")

    def _make(self, candidate, *, keeps_activations=False):
        self.now = candidate
        self.done.append(candidate)
        if keeps_activations:
            return self.folder / "with activations"
        if isinstance(self.made.get(candidate), NotMade):
            raise self.made[candidate]
        return self.folder / "made.onnx"

    def _load(self, source, place, file, device):
        assert (source, file, device) == (SOURCE, self.folder / "made.onnx", "cpu")
        (place / "net").mkdir(parents=True)
        found = self.made.get(self.now, Model())
        if isinstance(found, Exception):
            raise found
        return found

    def _measured(self, models, rounds, progress):
        assert [*models] == ["fp32", "it"]
        assert models["fp32"] is self.base
        self.asked.append(rounds)
        return {"fp32": FP32, "it": self.rates.get(self.now, rates(20.0, 20.0))}

    def _looked(self, answers, far):
        self.asked.append(far)
        return self.is_hopeless

    def _judged(self, name, answers):
        self.asked.append((name, [float(each["y"]) for each in answers if each]))
        return self.verdicts.get(self.now, PASSES)

    def run(self, monkeypatch, *candidates, **options):
        monkeypatch.setattr(search, "first_candidates", lambda **given: (
            options.update(given) or candidates))  # fmt: skip
        found = self.search.run(is_portable=True)
        assert options == {"is_batched": True, "is_portable": True}
        assert not [*self.folder.glob("tried-*")], "it is removed, however it ends"
        return found


@pytest.fixture
def setting(tmp_path, monkeypatch):
    return Setting(tmp_path, monkeypatch)


def tried(alone, busy, reason="", verdict=PASSES, is_batched=True):
    its = rates(alone, busy)
    return TriedCandidate(
        candidate=INT8, reason=reason, verdict=verdict, rates=its, is_batched=is_batched,
        alone=Gain.of(its.alone, FP32.alone), busy=Gain.of(its.busy, FP32.busy), num_bytes=5,
    )  # fmt: skip


HELD_OUT, CALIBRATION = ("held out", [3.0]), ("calibration", [1.0, 2.0])
TRIED = {
    # name: (its own rates, verdict, whether its rows share runs), what is tried, who is asked
    "passes": ((20.0, 20.0, PASSES, True), tried(20.0, 20.0), [3, 5.0, HELD_OUT]),
    "just enough": ((9.7, 11.0, PASSES, True), tried(9.7, 11.0), [3, 5.0, HELD_OUT]),
    "refused": (
        (20.0, 20.0, refused(), True),
        tried(20.0, 20.0, "refused: it is wrong", refused()), [3, 5.0, HELD_OUT],
    ),
    "slow alone": (
        (9.0, 20.0, PASSES, True),
        tried(9.0, 20.0, "slower alone: 0.90 (0.90 to 0.90) times fp32's rate"),
        [3, 5.0, HELD_OUT],
    ),
    "refused, and slow alone": (
        (9.0, 20.0, refused(), True),
        tried(9.0, 20.0, "refused: it is wrong", refused()), [3, 5.0, HELD_OUT],
    ),
    "slow alone and with many callers": (
        (9.0, 9.0, PASSES, True),
        tried(9.0, 9.0, "slower alone: 0.90 (0.90 to 0.90) times fp32's rate"), [3, CALIBRATION],
    ),
    "not faster": (
        (20.0, 10.9, PASSES, True), tried(20.0, 10.9, "not faster: 1.09 times fp32's rate"),
        [3, CALIBRATION],
    ),
    "not batched": (
        (20.0, 5.0, PASSES, False),
        tried(20.0, 5.0, "not faster: 0.50 times fp32's rate, since its rows can't share runs",
              is_batched=False),
        [3, CALIBRATION],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRIED)
def test_candidate_is_measured_and_judged(name, setting, monkeypatch):
    (alone, busy, verdict, is_batchable), expected, asked = TRIED[name]
    setting.rates[INT8], setting.verdicts[INT8] = rates(alone, busy), verdict
    setting.made[INT8] = Model(is_batchable)
    setting.is_late = True  # no layer is left out
    assert setting.run(monkeypatch, INT8) == [expected]
    assert setting.asked == asked
    assert setting.search.files == {INT8: setting.folder / "made.onnx"}
    assert setting.num_progress == 1


def test_hopeless_candidate_is_judged_by_the_samples_that_it_knows(setting, monkeypatch):
    setting.is_hopeless = True
    kept = INT8.keeping(["a"])
    setting.run(monkeypatch, INT8, kept)
    assert setting.asked == [3, 5.0, CALIBRATION, 3, 1.5, CALIBRATION]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(NotMade("no weights"), "not made: no weights"), (CorruptModel("bad"), "not loaded: bad")],
)
def test_candidate_that_is_no_model_is_named(error, reason, setting, monkeypatch):
    setting.made[NBITS] = error
    found = setting.run(monkeypatch, NBITS)
    assert found == [TriedCandidate(candidate=NBITS, reason=reason)]
    assert (setting.asked, setting.search.files, setting.num_progress) == ([], {}, 1)


def test_progress_is_said_of_what_is_done(setting, monkeypatch):
    setting.is_late = True
    setting.run(monkeypatch, INT8, NBITS)
    assert setting.done == [INT8, "progress", NBITS, "progress"]


def test_half_of_the_time_is_for_first_candidates(setting, monkeypatch):
    setting.is_half = True
    assert setting.run(monkeypatch, INT8, NBITS) == []
    assert setting.num_progress == 2


SETS = [("a",), ("a", "b"), ("a", "b", "c")]


@pytest.mark.parametrize(("passing_at", "number"), [(0, 1), (1, 2), (3, 3)])
def test_layers_are_left_in_fp32_until_the_gate_holds(passing_at, number, setting, monkeypatch):
    """Of a candidate that is fast and wrong."""
    asked: Any = []
    monkeypatch.setattr(search, "losses", lambda *given: asked.append(given) or "losses")
    monkeypatch.setattr(search, "left_out", lambda *given: asked.append(given) or SETS)
    setting.verdicts |= {each: refused() for each in (INT8, *map(INT8.keeping, SETS))}
    if passing_at < 3:
        setting.verdicts[INT8.keeping(SETS[passing_at])] = PASSES
    found = setting.run(monkeypatch, INT8)
    assert [each.candidate for each in found] == [INT8, *map(INT8.keeping, SETS[:number])]
    assert setting.num_progress == 1 + number
    assert asked == [
        (setting.folder / "ready.onnx", setting.folder / "with activations", (1, 2),
         setting.bench.is_late),
        ("losses", 0.5),
    ]  # fmt: skip


def test_layers_are_left_out_no_longer_once_the_gain_is_gone(setting, monkeypatch):
    monkeypatch.setattr(search, "losses", lambda *_: [])
    monkeypatch.setattr(search, "left_out", lambda *_: SETS)
    setting.verdicts |= {each: refused() for each in (INT8, *map(INT8.keeping, SETS))}
    setting.rates[INT8.keeping(SETS[1])] = rates(10.0, 10.0)
    found = setting.run(monkeypatch, INT8)
    assert [each.candidate for each in found] == [INT8, *map(INT8.keeping, SETS[:2])]
    assert setting.num_progress == 3


def test_graph_whose_switches_can_not_run_has_no_layers_left_out(setting, monkeypatch):
    def fail(*_):
        raise RuntimeError("of ONNX Runtime")

    monkeypatch.setattr(search, "losses", fail)
    setting.verdicts[INT8] = refused()
    assert len(setting.run(monkeypatch, INT8)) == 1


def test_layers_are_left_out_of_the_closest_of_each_kind_that_may_still_win(setting, monkeypatch):
    """Closest to fp32, then fastest; none where another passes that is as fast."""
    monkeypatch.setattr(search, "losses", lambda *_: [])
    monkeypatch.setattr(search, "left_out", lambda *_: [("a",)])
    near, far, fast = (
        Candidate(kind="int8", activations=activations, calibration=calibration)
        for activations, calibration in (("u8", "minmax"), ("u8", "percentile"), ("s8", "minmax"))
    )
    products = Candidate(kind="int8", only_products=True)
    slow = Candidate(kind="int8", has_reduced_range=True)
    setting.verdicts = {near: refused(0.9), far: refused(0.8), fast: refused(0.9),
                        products: refused(0.1), slow: refused(0.99)}  # fmt: skip
    setting.rates = {fast: rates(20.0, 30.0), slow: rates(20.0, 10.0)}
    some = near, far, fast, products, slow, NBITS
    setting.rates[NBITS] = rates(20.0, 20.0)
    found = setting.run(monkeypatch, *some)
    assert [each.candidate for each in found[6:]] == [fast.keeping("a")]
    setting.search.tried.clear()
    setting.rates[NBITS] = rates(20.0, 10.0)
    found = setting.run(monkeypatch, *some)
    assert [each.candidate for each in found[6:]] == [fast.keeping("a"), products.keeping("a")]
    setting.search.tried.clear()
    setting.verdicts[fast] = setting.verdicts[products] = refused(0.9, needs_samples=True)
    found = setting.run(monkeypatch, *some)
    assert [each.candidate for each in found[6:]] == [near.keeping("a")]


def test_candidate_is_loaded_as_a_server_does(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(search, "load_model", lambda *given, **more: asked.append((given, more)))
    search.load(SOURCE, tmp_path / "new", b"other graph", "cpu")
    place = tmp_path / "new" / "net"
    assert asked == [((place, "1", "cpu"), {
        "max_batch_size": 512, "most_threads": usable_cores(), "tries_file": True,
    })]  # fmt: skip
    files = {each.name: each.read_bytes() for each in (place / "1").iterdir()}
    assert files == {"model.onnx": b"other graph", "w": b"1234"}
    assert (place / "config.pbtxt").read_bytes() == b"max_batch_size: 7"


def test_call_that_fails_is_answered_with_nothing():
    model: Any = Model(refuses=(2,))
    calls: Any = (1, 2, 3)
    assert answers_of(model, calls) == [{"y": 1.0}, {}, {"y": 3.0}]


def samples_of(*calls):
    given: Any = calls
    return CallSamples(given, None, (), "")


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ((1, 2, 7), "the model refuses sample 2: not this one"),
        ((1, np.inf), "the model answers sample 1 with numbers that are not finite: y"),
        ((4, 4, 4), "the model answers all 3 samples alike, which shows nothing"),
    ],
)
def test_samples_that_show_nothing_are_named(calls, reason):
    model: Any = Model(refuses=(7,))
    with pytest.raises(ConfigurationError) as caught:
        fp32_answers(model, samples_of(*calls), lambda: None)
    assert str(caught.value) == reason


def test_answers_of_fp32_are_those_of_each_sample():
    model: Any = Model()
    done: list[int] = []
    found: Any = fp32_answers(model, samples_of(1, 2), lambda: done.append(1))
    assert found == [{"y": 1.0}, {"y": 2.0}]
    assert done == [1, 1]
    (alone,) = fp32_answers(model, samples_of(5), lambda: None)
    assert alone["y"] == 5.0


def test_time_is_over_after_its_seconds():
    now_s = [100.0]
    deadline = Deadline(5.0, lambda: now_s[0])
    for seconds, is_late in ((100.0, False), (105.0, False), (105.1, True)):
        now_s[0] = seconds
        assert deadline.is_late() == is_late


def test_outcome_where_nothing_was_found_says_so():
    plain = TriedCandidate(candidate=INT8)
    facts = (plain.reason, plain.verdict, plain.rates, plain.alone, plain.busy, plain.is_batched)
    assert facts == ("", None, None, None, None, False)
    assert (plain.num_bytes, plain.gain, plain.is_sure, plain.is_slow_alone) == (
        0,
        0.0,
        False,
        False,
    )
    found = Optimization(name="net", tried=(), chosen=None, reason="why")
    assert (found.fp32, found.is_batched, found.fp32_bytes, found.served) == (None, False, 0, ())
    assert (found.num_calibration, found.num_held_out, found.notes) == (0, 0, ())
    assert (found.processor, found.version, found.page) == ("", None, None)
    assert CallSamples((), None, (), "").num_copies == 0
    verdict = GateVerdict(reason="why")
    assert (verdict.needs_samples, verdict.agreements, verdict.loss) == (False, (), None)
    assert (verdict.score, verdict.fp32_score, verdict.agreement) == (None, None, 1.0)


def test_fastest_without_a_reason_is_first():
    found = [tried(1.0, busy, reason) for busy, reason in ((2.0, ""), (9.0, "slow"), (3.0, ""))]
    assert passing(found) == [found[2], found[0]]
