import json
import socket

import numpy as np
import pytest

import serving
from benchmarks import optimized
from serving.optimising.result import Optimization
from tests.serving.model.graphs import save, two_layers
from tests.serving.optimising.test_command import outcome

pytestmark = pytest.mark.process


@pytest.fixture
def folder(tmp_path):
    save(two_layers(), tmp_path, "net.onnx")
    save(two_layers(), tmp_path, "without-samples.onnx")
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.savez(tmp_path / "net.npz", x=x)
    (tmp_path / "net.json").write_text(json.dumps({"few_samples": True}))
    return tmp_path


def test_table_has_rates_of_all_servers(folder, monkeypatch, capsys):
    asked = {}

    def optimize(file, *, name, models, **options):
        asked.update(options)
        version = serving.publish(file, name, models=models)
        found = outcome()
        return Optimization(
            name=name, tried=found.tried, chosen=found.chosen, reason="", version=version,
            fp32_bytes=12_000_000,
        )  # fmt: skip

    monkeypatch.setattr(serving, "optimize", optimize, raising=False)
    monkeypatch.setattr(optimized, "CALLERS", (1, 2))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"nobody=127.0.0.1:{closed.getsockname()[1]}"
    words = [str(folder), "--output", str(folder / "table.md"), "--beside", nobody]
    assert optimized.main(words) == 0
    out = capsys.readouterr().out
    _, _, row = out.splitlines()
    cells = [each.strip() for each in row.strip("|").split(" | ")]
    assert cells[:3] == ["net", "int8 u8", "2.20 (2.10 to 2.30)"]
    assert cells[5] == "12.0 -> 3.0 MB"
    assert cells[6].startswith("fp32 ")
    assert "; optimized " in cells[7]
    assert "; nobody fails: " in cells[7]
    assert asked["few_samples"] is True
    assert (folder / "table.md").read_text() == out


def test_model_that_gains_nothing_has_its_reason(folder, monkeypatch, capsys):
    found = Optimization(name="net", tried=(), chosen=None, reason="nothing to gain: no | weights")
    monkeypatch.setattr(serving, "optimize", lambda *_, **__: found, raising=False)
    assert optimized.main([str(folder)]) == 0
    assert "| net | nothing to gain: no / weights |" in capsys.readouterr().out


def test_folder_without_models_fails(tmp_path):
    assert optimized.main([str(tmp_path)]) == 1
