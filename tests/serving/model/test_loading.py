"""How a version is loaded: defaults, the settings of a model and of who loads it, what is tried."""

import errno
import hashlib
import inspect
import logging
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from serving.errors import ConfigurationError, CorruptModel
from serving.model import loading, repository, trial, verdicts
from serving.model.loading import Loading, LoadOptions, load_model, settled
from serving.model.manifest import Manifest
from serving.model.onnx_runtime import SessionSettings
from serving.model.settings import NO_SETTINGS
from tests.serving.model.graphs import node, rows_model, save, two_layers

FILE = Path("net.onnx")


def test_version_is_loaded_like_this_where_nothing_is_said():
    defaults = {
        name: each.default for name, each in inspect.signature(load_model).parameters.items()
        if each.default is not each.empty
    }  # fmt: skip
    assert defaults == {
        "version": None, "device": "auto", "precision": "fp32", "max_batch_size": 512,
        "limit_factor": 1.0, "is_described": False, "batching": None, "max_bytes": 2 << 30,
        "num_threads": 1, "most_threads": 1, "tries_file": False, "name": "",
    }  # fmt: skip
    assert asdict(LoadOptions()) == {
        "device": "auto", "precision": "fp32", "settings": asdict(NO_SETTINGS),
        "max_batch_size": 512, "limit_factor": 1.0, "is_described": False, "max_bytes": 2 << 30,
        "most_threads": 1, "tries_file": False, "name": "",
    }  # fmt: skip
    assert (LoadOptions().build_s, LoadOptions().check_s) == (60.0, 10.0)
    batch = LoadOptions(limit_factor=loading.BATCH_LIMIT_FACTOR)
    assert (batch.build_s, batch.check_s) == (360.0, 60.0)


@pytest.mark.parametrize(
    ("options", "own", "batching", "num_threads", "expected", "most_threads"),
    [
        ({}, {}, None, 1, {"num_threads": 1}, 4), ({}, {}, None, 2, {"num_threads": 2}, 1),
        ({}, {"num_threads": 3}, None, 2, {"num_threads": 3}, 1),
        ({}, {"num_threads": 1}, None, 1, {"num_threads": 1}, 1),
        ({}, {"batching": "never"}, "always", 1, {"batching": "always", "num_threads": 1}, 4),
        ({}, {"batching": "never"}, None, 1, {"batching": "never", "num_threads": 1}, 4),
        ({}, {"device": "cuda"}, None, 1, {"device": "cuda", "num_threads": 1}, 4),
    ],
)  # fmt: skip
def test_settings_of_a_model_and_of_who_loads_it_are_put_together(
    options, own, batching, num_threads, expected, most_threads
):
    given = LoadOptions(most_threads=4, settings=replace(NO_SETTINGS, **own), **options)
    assert settled(given, FILE, batching, num_threads) == replace(
        given, device=own.get("device", "auto"), most_threads=most_threads,
        settings=replace(NO_SETTINGS, **{**own, **expected}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "device"),
    [({}, "cuda"), ({"device": "cpu"}, "cpu"), ({"precision": "int8"}, "auto")],
)
def test_device_of_a_model_is_used_where_none_is_named(options, device):
    """And not for int8, which runs on the CPU."""
    given = LoadOptions(settings=replace(NO_SETTINGS, device="cuda"), **options)
    assert settled(given, FILE, None, 1).device == device


@pytest.mark.parametrize(("name", "shown"), [("", "net.onnx"), ("mine", "mine")])
def test_settings_without_a_meaning_here_are_named(name, shown, caplog):
    caplog.set_level("INFO", "serving.model.loading")
    given = LoadOptions(settings=replace(NO_SETTINGS, ignored=("a", "b.c")), name=name)
    settled(given, FILE, None, 1)
    assert caplog.messages == [f"model {shown}: config.pbtxt: not used here: a, b.c"]


def test_versions_are_tried_as_a_server_chooses_its_default(monkeypatch):
    asked = []
    labels = SimpleNamespace(found={"stable": "3", "canary": "4"})
    found = ["12", "2", "1"]
    monkeypatch.setattr(loading, "read_labels", lambda place: (labels.found, 0.0))
    monkeypatch.setattr(repository, "versions", lambda place: found)
    monkeypatch.setattr(loading, "find_signature", lambda *given, **more: (given, more))

    def unaccepted(place, versions, read):
        asked.append((place, versions, read("2")))
        return {"12": "why"}

    monkeypatch.setattr(loading, "unaccepted", unaccepted)

    def candidates(**own):
        return [*loading._candidates(FILE, "fp32", replace(NO_SETTINGS, **own)).items()]

    assert candidates() == candidates(versions="2") == [("3", "")], "the label is newer"
    labels.found = {"canary": "4"}
    assert candidates(versions="2,12,1,2") == [("12", ""), ("2", ""), ("1", "")]
    assert not asked
    assert candidates(versions="all", file_name="a.onnx") == [("12", "why"), ("2", ""), ("1", "")]
    read = (FILE, "2"), {"precision": "fp32", "file_name": "a.onnx"}
    assert asked == [(FILE, found, read)]
    found[:] = ["7"]
    assert candidates(versions="latest") == candidates() == [("7", "")]


def test_loaded_model_has_what_its_file_and_its_settings_say(tmp_path):
    path = save(two_layers(), tmp_path, "net.onnx")
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 7")
    model = load_model(path, device="cpu", name="mine")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (model.precision, model.is_proved, model.output_step) == ("fp32", True, 0.0)
    assert model.verdict_key == verdicts.key_of(digest, {})
    assert model.settings == replace(
        NO_SETTINGS, max_batch_size=7, has_batch_axis=True, num_threads=1
    )
    assert (model.labels, model.answers, model.class_labels) == ((), None, ())
    assert model.batching == "batching on: row independence proved"
    assert model.sample_shapes == {"x": (1, 4)} or model.sample_shapes == {"x": (8, 4)}
    manifest = model.manifest
    assert (manifest.name, manifest.version, manifest.golden) == ("mine", "1", None)
    assert manifest.digests == {"net.onnx": digest, "model.onnx": digest}
    assert model.inline_rows > 0


@pytest.mark.parametrize(("mode", "level"), [("auto", logging.INFO), ("always", logging.WARNING)])
def test_line_on_batching_is_a_warning_where_the_operator_insists(mode, level, tmp_path, caplog):
    caplog.set_level("INFO", "serving.model.loading")
    mixing = rows_model(node("ReduceMax", ["x"], ["m"]), node("Div", ["x", "m"], ["y"]))
    load_model(save(mixing, tmp_path, "net.onnx"), device="cpu", batching=mode)
    ((name, found, text),) = caplog.record_tuples
    assert (name, found) == ("serving.model.loading", level)
    assert text.startswith("model net version 1: batching o")


def test_step_that_fails_ends_the_runs_that_go_on(tmp_path):
    loaded = Loading(tmp_path / "none.onnx", "1", LoadOptions())
    with pytest.raises(Exception, match="there is no file"):
        loaded.read()
    assert loaded._run_options.terminate


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError("is not ready"), CorruptModel("version 3 is not ready")),
        (ConfigurationError("own"), ConfigurationError("own")),
        (OSError(errno.EIO, "x" * 400),
         CorruptModel("version 3 can't be loaded: " + f"OSError: [Errno 5] {'x' * 400}"[:300])),
        (KeyboardInterrupt(), KeyboardInterrupt()),
    ],
)  # fmt: skip
def test_failure_is_as_callers_expect_it(error, expected):
    found = loading._failure("3", error)
    assert (type(found), str(found)) == (type(expected), str(expected))


def test_version_needs_a_manifest_unless_it_is_said(tmp_path):
    (tmp_path / "1").mkdir()
    save(two_layers(), tmp_path / "1")
    with pytest.raises(CorruptModel, match="manifest"):
        repository.load(tmp_path, "1")
    manifest, onnx, weights = repository.load(tmp_path, "1", is_described=False)
    digest = hashlib.sha256(onnx).hexdigest()
    assert (manifest.digests, weights) == ({"model.onnx": digest}, {})


def test_what_is_true_of_a_model_is_found_once(tmp_path, monkeypatch):
    """What is not so is found again: the machine may have been busy."""
    monkeypatch.setenv(verdicts.VARIABLE, str(tmp_path / "a" / "b"))
    outcomes = [False, True]
    found = [loading._kept("key", "gains", lambda: outcomes.pop(0)) for _ in range(3)]
    assert found == [False, True, True]
    assert not loading._kept("other", "gains", lambda: False)
    assert not loading._kept("key", "another fact", lambda: False)
    (file,) = (tmp_path / "a" / "b").iterdir()
    assert file.suffix == ".json"
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("is_bundled", [False, True])
def test_files_have_their_digests_and_what_is_known_of_them(is_bundled, monkeypatch, caplog):
    """A manifest is believed where its file came with an installed application."""
    verdict = verdicts.Verdict(None)
    monkeypatch.setattr(loading, "_bundled_verdicts", lambda: {"aa": verdict})
    manifest = replace(
        Manifest.of_graph("net", "3", {"model.onnx": "aa", "model.int8.onnx": "cc", "w": "bb"}),
        unknown=("x", "y"), verdicts={"model.onnx": verdict} if is_bundled else {},
    )  # fmt: skip
    weights = {"w": b"1234"}
    found = loading._files_of(manifest, b"graph", weights, "fp32")
    assert found == (
        manifest, b"graph", weights, ("aa", "bb"), verdicts.key_of("aa", {"w": "bb"}),
        verdict if is_bundled else None, is_bundled,
    )  # fmt: skip
    assert caplog.messages == ["model net version 3: manifest.json: not known here: x, y"]
    other = loading._files_of(replace(manifest, unknown=()), b"graph", {}, "int8")
    assert (other.digests, other.is_bundled, other.verdict) == (("cc",), False, None)
    assert len(caplog.messages) == 1


def test_each_option_of_a_load_is_its_loadings(tmp_path, monkeypatch):
    asked: Any = []

    class Noted:
        def __init__(self, *given):
            asked.append(given)

        def load(self):
            return "loaded"

    monkeypatch.setattr(loading, "Loading", Noted)
    path = save(two_layers(), tmp_path, "net.onnx")
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 7")
    given: dict[str, Any] = {
        "device": "cpu", "precision": "fp32", "max_batch_size": 9, "limit_factor": 2.0,
        "is_described": True, "max_bytes": 77, "most_threads": 3, "tries_file": True, "name": "n",
    }  # fmt: skip
    found: Any = load_model(path, "4", batching="always", **given)
    assert found == "loaded"
    own = replace(NO_SETTINGS, max_batch_size=7, has_batch_axis=True, batching="always",
                  num_threads=1)  # fmt: skip
    assert asked == [(path, "4", LoadOptions(settings=own, **given))]
    load_model(path)
    assert asked[1][1] == "1"


SLOW = "model net version 1: {} goes on after 2 s; the limit is {} s of processor time"


def test_loading_lets_go_of_its_files_step_by_step(tmp_path, monkeypatch, caplog):
    """And each step says that it takes long."""
    caplog.set_level("INFO", "serving.model.time_limit")

    def within(limit_s, work, on_slow):
        on_slow()
        return work()

    monkeypatch.setattr(loading, "within", within)
    onnx.save(two_layers(), tmp_path / "net.onnx", save_as_external_data=True, location="w",
              size_threshold=0)  # fmt: skip
    one = Loading(tmp_path / "net.onnx", "1", LoadOptions(device="cpu"))
    one.read()
    assert one._files.onnx
    assert [*one._files.weights] == ["w"]
    judge, held = loading._judge, []

    def judged(*given):
        held.append((one._files.onnx, one._files.weights))
        return judge(*given)

    monkeypatch.setattr(loading, "_judge", judged)
    one.judge()
    assert held == [(b"", {})], "the proof has a copy of its own"
    assert (one._files.onnx, one._files.weights, one._source.proto) == (b"", {}, None)
    one.build()
    one.check()
    assert (one._source.onnx, one._source.weights) == (b"", {})
    steps = [("reading", 60), ("reading", 60), ("building the session", 60), ("the check", 10)]
    assert [each for each in caplog.messages if "the proof" not in each and "by a run" not in each
            ] == [SLOW.format(*step) for step in steps]  # fmt: skip
    assert one.loaded.tensors.is_batchable


@pytest.mark.parametrize(("num_bytes", "is_large"), [(4 << 20, False), (4 << 20 | 1, True)])
def test_memory_of_a_large_file_is_given_back_once_nothing_holds_it(
    num_bytes, is_large, tmp_path, monkeypatch
):
    """One of more than 4 MiB: for others it would take longer than it is worth."""
    described = two_layers()
    described.doc_string = "x" * (4 << 20)
    described.doc_string = "x" * ((4 << 20) + num_bytes - described.ByteSize())
    path = save(described, tmp_path, "net.onnx")
    assert path.stat().st_size == num_bytes
    one, held = Loading(path, "1", LoadOptions(device="cpu")), []
    monkeypatch.setattr(loading, "trim_memory", lambda: held.append(one._source.onnx))
    for step in (one.read, one.judge, one.build):
        step()
    held.clear()
    one.check()
    assert held == [b""] * is_large


def test_verdict_of_a_first_try_goes_before_an_older_one(tmp_path, monkeypatch):
    path = save(two_layers(), tmp_path, "net.onnx")
    lasting, older = verdicts.Verdict("as tried"), verdicts.Verdict("as kept")
    for tried, expected in ((lasting, lasting), (None, older)):
        one = Loading(path, "1", LoadOptions(device="cpu", tries_file=True))
        one.read()
        one._files = one._files._replace(verdict=older)
        monkeypatch.setattr(one, "_tried", lambda tried=tried: tried)
        one.judge()
        assert one._verdict == expected


def test_file_that_is_too_large_or_undescribed_is_refused(tmp_path):
    (tmp_path / "1").mkdir()
    size = save(two_layers(), tmp_path / "1").stat().st_size
    assert load_model(tmp_path, "1", "cpu", max_bytes=size).version == "1"
    with pytest.raises(CorruptModel, match=f"at most {size - 1} expected"):
        load_model(tmp_path, "1", "cpu", max_bytes=size - 1)
    with pytest.raises(CorruptModel, match="manifest"):
        load_model(tmp_path, "1", "cpu", is_described=True)


def test_runs_of_unknown_time_are_not_where_calls_are_read(tmp_path):
    tiled = rows_model(
        node("Tile", ["x", "once"], ["y"]), constants={"once": np.array([1, 1], np.int64)}
    )
    assert load_model(save(tiled, tmp_path), device="cpu").inline_rows == 0


def test_what_is_kept_rests_on_the_code_that_finds_it(monkeypatch):
    asked = []

    def version(*names):
        asked.append(names)
        return "version"

    monkeypatch.setattr(verdicts, "sources_version", version)
    monkeypatch.setattr(trial, "sources_version", version)
    loading._kept("key", "gains", lambda: False)
    trial.key_of("key", SessionSettings(), "cpu", 8)
    assert asked == [
        ("model/memory.py", "model/wide.py", "model/engine.py", "model/onnx_runtime.py"),
        ("model/trial.py", "model/onnx_runtime.py", "proof/drawn_inputs.py"),
    ]  # fmt: skip
