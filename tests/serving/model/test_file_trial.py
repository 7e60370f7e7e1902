"""A file that ends the process which builds or runs it ends no server."""

import hashlib
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import Client
from serving.errors import CorruptModel, DeadlineExceeded, InvalidRequest, Overloaded, TooLarge
from serving.model import file_trial, verdicts
from serving.model.engine import open_engine
from serving.model.file_trial import File, Step, try_file
from serving.model.loading import load_model
from serving.model.onnx_runtime import ON_CPU
from serving.model.verdicts import Verdict
from serving.processes.pool import JobLimits
from tests.serving.http.peer import HttpPeer
from tests.serving.model.graphs import model, node, rows_model, save, two_layers, value
from tests.support.servers import running_server, wait_until


def ends_by_a_run():
    """Its BatchNormalization has outputs without names: SIGSEGV in the first run."""
    outputs = ["y", "", "", "", ""]
    constants = {name: np.ones(4, np.float32) for name in "sbmv"}
    return model(
        [node("BatchNormalization", ["x", *"sbmv"], outputs)],
        [value("x", "FP32", ["N", 4])],
        [value("y", "FP32", None)],
        constants,
        opset=9,
    )


def ends_by_its_building():
    """Its Split in two has three outputs: an abort."""
    return model(
        [node("Split", ["x"], ["y", "z", "w"], axis=1, num_outputs=2)],
        [value("x", "FP32", ["N", 4])],
        [value("y", "FP32", None)],
        opset=18,
    )


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(verdicts.VARIABLE, str(tmp_path / "verdicts"))
    return tmp_path


def file_of(onnx):
    digests = (hashlib.sha256(onnx).hexdigest(),)
    return File("net version 1", onnx, {}, digests, ON_CPU, None, 60.0, 10.0)


@pytest.mark.parametrize(
    ("make", "how"), [(ends_by_a_run, "SIGSEGV"), (ends_by_its_building, "SIGABRT")]
)
def test_file_that_ends_its_process_is_refused(make, how):
    file = file_of(make().SerializeToString())
    for needs_verdict in (True, False):
        with pytest.raises(CorruptModel, match=rf"it ends the process that \w+ it \({how}\), and"):
            try_file(file, needs_verdict=needs_verdict)
    assert not file_trial.has_passed(file)


@pytest.mark.parametrize("make", [ends_by_a_run, ends_by_its_building])
def test_command_says_so_in_one_line(make, folder):
    path = save(make(), folder, "net.onnx")
    command = [sys.executable, "-m", "serving", "info", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "it ends the process that" in line


def test_new_version_that_ends_its_process_leaves_the_old_one(folder):
    (folder / "net" / "1").mkdir(parents=True)
    save(two_layers(), folder / "net" / "1")
    with running_server(folder, "--http-port", "off") as server, Client(server.address) as client:
        row = np.ones((1, 4), np.float32)
        before = client.infer("net", {"x": row})["y"]
        shutil.copytree(folder / "net" / "1", folder / "net" / "2")
        save(ends_by_a_run(), folder / "net" / "2")
        server.process.send_signal(signal.SIGHUP)
        peer = HttpPeer(f"http://{server.facts['metrics']}")
        refused = b'serving_reloads_total{outcome="failed"} 1.0'
        wait_until(lambda: refused in peer.get("/metrics").body)
        np.testing.assert_array_equal(client.infer("net", {"x": row})["y"], before)
        (folder / "net" / "3").mkdir()
        save(two_layers(), folder / "net" / "3")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: client.describe("net").version == "3")
        np.testing.assert_array_equal(client.infer("net", {"x": row})["y"], before)
        assert server.stop() == 0
        assert "it ends the process that" in server.process.stderr.read()


def test_good_file_passes_once_and_brings_its_verdict():
    file = file_of(two_layers().SerializeToString())
    assert try_file(file, needs_verdict=True) == (Verdict(None), True)
    assert file_trial.has_passed(file)
    assert not file_trial.has_passed(file._replace(settings=ON_CPU.__class__(num_threads=2)))
    assert try_file(file, needs_verdict=False) == (None, False)


def test_file_that_is_no_model_is_refused_by_the_server_itself(folder):
    (folder / "net.onnx").write_bytes(b"no model")
    assert try_file(file_of(b"no model"), needs_verdict=True) == (None, False)
    with pytest.raises(CorruptModel, match="not an ONNX file"):
        load_model(folder / "net.onnx", device="cpu", tries_file=True)


@pytest.fixture
def pools(monkeypatch):
    """The outcomes of the next children, each with the step at which it comes."""
    outcomes: list[tuple[Step, object]] = []
    opened: list[bool] = []
    closed: list[bool] = []

    class Pool:
        def __init__(self, *_, **__):
            opened.append(True)

        def submit(self, owner, function, file, progress, needs_verdict, *, limits):
            step, self.outcome = outcomes.pop(0)
            with open(progress, "wb") as written:
                written.write(bytes([step]))
            if isinstance(self.outcome, Overloaded):
                raise self.outcome
            return self

        def add_done_callback(self, _):
            raise AssertionError

        def result(self):
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome

        def close(self):
            closed.append(True)

    monkeypatch.setattr("serving.processes.pool.ProcessPool", Pool)
    monkeypatch.setattr(file_trial, "wait", lambda *_: type("Waited", (), {"done": True}))
    yield outcomes
    assert closed == opened != [], "each child is ended, however its try has ended"


RAN = file_trial.Tried(None)
CRASHED = InvalidRequest("it crashes")
LATE, LARGE = DeadlineExceeded("it takes more than 9 s"), TooLarge("it needs too much memory")


@pytest.mark.parametrize("error", [LATE, LARGE])
def test_proof_that_does_not_end_leaves_the_rest_to_a_second_process(error, pools):
    pools += [(Step.PROVING, error), (Step.RUNNING, RAN)]
    found = try_file(file_of(b"net"), needs_verdict=True)
    assert not pools
    assert found.verdict is not None
    assert found.verdict.obstacle == (
        "the proof that rows are independent takes too much time or memory"
    )
    assert not found.is_lasting


@pytest.mark.parametrize("step", [Step.PARSING, Step.BUILDING, Step.RUNNING])
def test_step_that_takes_too_long_refuses_the_version(step, pools):
    pools += [(step, LATE)]
    with pytest.raises(CorruptModel, match="it takes more than 9 s"):
        try_file(file_of(b"net"), needs_verdict=False)


@pytest.mark.parametrize("step", [*Step])
def test_step_that_ends_the_process_refuses_the_version_and_is_named(step, pools):
    pools += [(step, CRASHED)]
    does = {1: "parses", 2: "proves", 3: "builds", 4: "runs"}[step]
    with pytest.raises(CorruptModel, match=f"it ends the process that {does} it"):
        try_file(file_of(b"net"), needs_verdict=True)


@pytest.mark.parametrize("outcome", [(Step.BUILDING, LARGE), (Step.PARSING, Overloaded("none"))])
def test_without_memory_or_a_process_the_server_goes_on(outcome, pools, caplog):
    caplog.set_level("INFO")
    pools.append(outcome)
    file = file_of(b"net")
    assert try_file(file, needs_verdict=True) == (None, False)
    assert not file_trial.has_passed(file)
    assert "model net version 1: not tried first" in caplog.text


def test_without_a_temporary_folder_the_server_goes_on(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert try_file(file_of(b"net"), needs_verdict=True) == (None, False)
    assert "not tried first: there is no temporary folder" in caplog.text


def test_functions_of_a_proved_model_are_not_in_the_graph_that_serves(folder, monkeypatch):
    from onnx import helper

    double = helper.make_function(
        "own", "Double", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    made = rows_model(node("Double", ["x"], ["y"], domain="own"))
    made.functions.append(double)
    made.opset_import.append(helper.make_opsetid("own", 1))
    path = save(made, folder, "net.onnx")
    built = []

    def noted(onnx, *more):
        built.append(onnx)
        return open_engine(onnx, *more)

    monkeypatch.setattr("serving.model.loading.open_engine", noted)
    for tries_file in (True, False):  # the second has the verdict of the first
        loaded = load_model(path, device="cpu", tries_file=tries_file)
        assert loaded.is_proved
        np.testing.assert_array_equal(loaded.run({"x": np.ones((2, 4), np.float32)})[0], 2)
    assert [b"Double" in each for each in built] == [False, False]
    monkeypatch.setenv(verdicts.VARIABLE, "off")
    load_model(path, device="cpu", batching="never")
    assert built[-1] == path.read_bytes()


@pytest.fixture
def children(monkeypatch):
    """What each child is started for; all have run the file."""
    seen = []

    class Pool:
        def __init__(self, number, modules):
            seen.append((number, modules))

        def submit(self, owner, function, file, progress, needs_verdict, *, limits):
            assert Path(progress).name.startswith("trial-")
            Path(progress).write_bytes(bytes([Step.PROVING]))
            seen.append((owner, function, needs_verdict, limits))
            return self

        def result(self):
            return RAN

        def close(self):
            seen.append("closed")

    monkeypatch.setattr("serving.processes.pool.ProcessPool", Pool)
    monkeypatch.setattr(file_trial, "available_bytes", lambda: 1000)
    return seen


@pytest.mark.parametrize("is_done", [True, False])
def test_child_has_all_memory_and_six_times_its_steps_on_the_clock(
    is_done, children, monkeypatch, caplog
):
    """And half a minute."""
    caplog.set_level("INFO", "serving.model.file_trial")
    waits: Any = []
    monkeypatch.setattr(file_trial, "wait", lambda *given: waits.append(given[1]) or type(
        "Waited", (), {"done": is_done}))  # fmt: skip
    file = file_of(b"net")._replace(build_s=7.0, check_s=2.0)
    assert try_file(file, needs_verdict=True) == RAN
    limits = JobLimits(1000, 84.0)
    assert children == [
        (1, ("serving.model.file_trial",)), ("", file_trial._steps, True, limits), "closed",
    ]  # fmt: skip
    assert waits == [2.0]
    slow = "model net version 1: a process that proves it first takes long"
    assert caplog.messages == [] if is_done else [slow]
    assert file_trial.has_passed(file)


@pytest.mark.parametrize("needs_verdict", [True, False])
def test_steps_of_a_child_are_noted_as_they_begin(needs_verdict, tmp_path):
    file = file_of(two_layers().SerializeToString())
    progress = tmp_path / "progress"
    found = file_trial._steps(file, str(progress), needs_verdict)
    assert found == ((Verdict(None), True) if needs_verdict else (None, False))
    assert progress.read_bytes() == bytes([Step.RUNNING])
    assert file_trial._steps(file_of(b"no model"), str(progress), needs_verdict) == (None, False)
    assert progress.read_bytes() == bytes([Step.PARSING])
