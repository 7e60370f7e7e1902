"""Results: kept whole, without a trace of whose machine it was."""

import json
import os
import re
import socket
from pathlib import Path

import pytest

from benchmarks.run import runner
from benchmarks.run.result_file import UnusableResults, load
from tests.benchmarks.made_up import H2, PLAIN, results, sample


def test_results_survive_a_file(tmp_path):
    kept = results(sample(PLAIN, "Server"), sample(H2, "Offline", batch=8, latency_s=0.0123))
    kept.save(tmp_path / "r.json")
    again = load(tmp_path / "r.json")
    again.save(tmp_path / "again.json")
    assert (tmp_path / "r.json").read_text() == (tmp_path / "again.json").read_text()
    assert again.samples[1].latency.quantile(0.99) == pytest.approx(0.0123, rel=0.008)
    assert again.samples[1].images_per_s == 8000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("{", "no results file"),
        ("[]", "no results file"),
        ("{}", "no results file"),
        ('{"format": 2}', "format 1 expected, got 2"),
    ],
)
def test_unusable_file_is_refused(tmp_path, text, reason):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UnusableResults, match=reason):
        load(path)


def test_environment_names_neither_machine_nor_folder(models):
    found = runner.describe(models, {"target": 1, "generator": 1})
    text = json.dumps(found)
    assert found["model"]["digest"]
    for secret in (socket.gethostname(), os.getcwd(), str(models), str(Path.home())):
        assert not re.search(rf"(^|\W){re.escape(secret)}(\W|$)", text)
