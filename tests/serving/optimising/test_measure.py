from collections import Counter

import numpy as np
import pytest

from serving.model.loading import load_model
from serving.optimising.candidates import Candidate
from serving.optimising.measure import Gain, Meter, Rates, batch_rows
from serving.optimising.result import TriedCandidate
from serving.optimising.search import measured
from serving.optimising.served import Served, is_confirmed, measure_served
from tests.serving.model.graphs import save, two_layers

pytestmark = pytest.mark.process  # a model that this machine has not seen is tried in one


def calls(num=6):
    x = np.random.default_rng(0).normal(size=(num, 4)).astype(np.float32)
    return [{"x": each[None]} for each in x]


def test_gain_is_of_the_same_rounds():
    gain = Gain.of((20, 10, 30), (10, 5, 10))
    assert (gain.median, gain.least, gain.most, gain.is_sure) == (2, 2, 3, False)
    assert Gain.of((21, 22), (10, 20)).is_sure
    assert str(gain) == "2.00 (2.00 to 3.00)"


def test_many_callers_decide_and_a_lone_one_loses_nothing():
    """A small model's lone run is mostly the call itself."""
    its = Rates(alone=(10, 10), busy=(10, 10), batch=8)
    tried = TriedCandidate(candidate=Candidate(kind="int8"))
    found = measured(tried, Rates(alone=(10, 9.9), busy=(12, 13), batch=8), its)
    assert (found.gain, found.is_sure, found.is_slow_alone) == (1.25, True, False)
    assert measured(tried, Rates(alone=(9, 9), busy=(12, 13), batch=8), its).is_slow_alone


def test_models_are_measured_in_turns(tmp_path):
    model = load_model(save(two_layers(), tmp_path))
    seen = Counter()
    meter = Meter(calls(), 8)
    found = meter.measure({"fp32": model, "it": model}, 2, lambda: seen.update(["turn"]))
    assert seen["turn"] == 4
    assert [len(each.alone) for each in found.values()] == [2, 2]
    assert found["it"].batch == 8
    assert min(*found["it"].alone, *found["it"].busy) > 0


def test_batch_is_the_servers(tmp_path):
    model = load_model(save(two_layers(), tmp_path))
    assert batch_rows(model, calls(), 512) == 64
    assert batch_rows(model, calls(), 4) == 4
    alone = load_model(save(two_layers(), tmp_path), batching="never")
    assert batch_rows(alone, calls(), 512) == 1


def served(callers, least, median):
    gain = Gain(median=median, least=least, most=2 * median, is_sure=True)
    return Served(callers=callers, rate=1, fp32_rate=1, gain=gain)


def test_callers_of_a_server_confirm_a_gain():
    assert is_confirmed([served(1, 0.9, 1.2), served(16, 1.1, 1.5)]) == ""
    assert is_confirmed([served(1, 0.9, 1.2), served(16, 0.99, 1.5)]).startswith(
        "through the server 16 callers got 1.50 (0.99 to 3.00)"
    )
    assert "a lone caller" in is_confirmed([served(1, 0.5, 0.9), served(16, 1.1, 1.5)])


def test_both_models_are_served_and_called(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name / "net" / "1").mkdir(parents=True)
        save(two_layers(), tmp_path / name / "net" / "1")
    turns = []
    found = measure_served(
        [tmp_path / "one", tmp_path / "other"], "net", calls(), lambda: turns.append(1), "cpu"
    )
    assert [each.callers for each in found] == [1, 16]
    assert len(turns) == 10
    assert min(each.rate for each in found) > 0
