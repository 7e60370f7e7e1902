"""Targets: started, asked a first question, and refused where they can't be measured."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import runner
from benchmarks.methods import RpcMethod
from benchmarks.network import Demand, Generator, cpu_s, family, memory_bytes
from benchmarks.others import NotMeasured
from benchmarks.runner import Suite
from benchmarks.targets import Spec, messages_of, open_target
from benchmarks.workload import Workload
from tests.benchmarks.retries import SHORT_S, until_answered
from tests.support.servers import running_server

ROOT = Path(__file__).parents[2]


def test_options_from_the_environment_are_not_those_of_a_target(setting, monkeypatch):
    monkeypatch.setenv("SERVING_WORKERS", "1,2")  # for `run`; `serve` refuses it
    monkeypatch.setenv("SERVING_LOG_FORMAT", "json")
    with open_target(Spec(target="h2"), setting) as running:
        assert running.pid


@pytest.mark.parametrize("target", ["plain", "h2", "h2-infer", "grpcio"])
def test_served_target_is_started_and_answers(setting, target):
    with open_target(Spec(target=target), setting) as running:
        trace = until_answered(lambda seconds: running.load.closed(Demand(2, 1, seconds)))
        assert trace.num_errors == 0
        assert running.pid
        assert cpu_s(running.pid) > 0
        assert memory_bytes(running.pid) > 2**20
        assert running.startup_s


@pytest.mark.parametrize("target", ["http-json", "http-binary"])
def test_http_is_asked_for_its_digits_and_loaded_in_both_ways(setting, target):
    with Generator(setting.generator.cores, "auto") as generator:
        found = replace(setting, generator=generator)
        with open_target(Spec(target=target), found) as running:

            def load(demand):
                return until_answered(
                    lambda seconds: running.load.closed(demand._replace(seconds=seconds))
                )

            ours = load(Demand(2, 3, SHORT_S))
            open_ = running.load.open(np.array([0.0, 0.01]), 1)
            same = load(Demand(2, 3, SHORT_S, repeats=True))
    assert (ours.generator, ours.num_errors) == ("python", 0)
    assert (len(open_.latencies_s), open_.num_errors) == (2, 0)
    assert same.generator == ("h2load" if shutil.which("h2load") else "python")
    assert same.num_errors == 0


def test_calls_have_other_rows_until_they_take_too_much_memory():
    rows = np.arange(1000, dtype=np.uint8).reshape(-1, 1)
    asked = Workload(model="x", rows={"images": rows})
    method = RpcMethod("/", lambda model, feeds: bytes(feeds["images"]), list)
    assert messages_of(method, asked, 3)[:2] == [b"\0\1\2", b"\3\4\5"]
    assert len(messages_of(method, asked, 3)) == 256
    assert len(messages_of(method, asked, 400)) == 2
    wide = replace(asked, rows={"images": np.zeros((5, 3 << 20), np.uint8)})
    assert len(messages_of(method, wide, 1)) == 1


def test_server_of_another_checkout_is_started_from_there(setting, tmp_path):
    for package in ("serving", "digit_classifier"):
        shutil.copytree(ROOT / package, tmp_path / package)
    with (tmp_path / "serving" / "__init__.py").open("a") as file:
        file.write("\nimport pathlib\npathlib.Path('imported').touch()\n")
    there = replace(setting, checkouts={"old-infer": tmp_path})
    with open_target(Spec(target="old-infer"), there) as running:
        until_answered(lambda seconds: running.load.closed(Demand(1, 1, seconds)))
    assert (tmp_path / "imported").is_file()


def test_server_that_gives_other_digits_is_not_measured(setting, models):
    answers = [(digit + 1) % 10 for digit in setting.workload.answers or ()]
    wrong = replace(setting, workload=replace(setting.workload, answers=answers))
    with pytest.raises(NotMeasured, match="other digits"), open_target(Spec(target="plain"), wrong):
        pass
    with running_server(models, "--device", "cpu") as server:
        peer = replace(setting, addresses={"peer": server.address})
        with open_target(Spec(target="peer"), peer) as running:
            assert (running.pid, running.startup_s) == (server.process.pid, None)
    with pytest.raises(NotMeasured, match="does not answer"):  # it has gone
        open_target(Spec(target="peer"), peer).__enter__()


def test_target_that_dies_costs_only_its_own_measurement(setting):
    spec = Spec(target="plain")
    suite = Suite(
        name="x", specs=[Spec(target="h2"), spec], scenarios=["SingleStream"], rounds=1,
        seconds=0.05,
    )  # fmt: skip

    def kill_plain(step):
        if step.endswith("plain, SingleStream"):
            (pid,) = [pid for pid in family(os.getpid()) if is_plain(pid)]
            os.kill(pid, signal.SIGKILL)

    kept = runner.run(suite, setting, kill_plain)
    assert {sample.spec.target for sample in kept.samples} == {"h2"}
    assert [skip.spec for skip in kept.skips] == [spec]


def is_plain(pid):
    return b"plain_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
