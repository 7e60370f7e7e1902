"""Record which lines each test runs, and how long it takes: a plugin of pytest's.

    MUTATION_RECORD=FILE python -m pytest -p tests.mutation.recording PATHS...

The file is JSON: `seconds` of each test that passed, `processes`, those of them that start
processes, `uses`, the tests of each shared fixture, `contexts`, the names of tests and of fixtures,
and "" while importing, and `lines`, for each file and line which of them ran it.
"""

import json
import os
from collections import defaultdict
from pathlib import Path

import coverage
import pytest

RECORD = Path(os.environ["MUTATION_RECORD"])
ROOT = Path.cwd()

recorder = coverage.Coverage(
    data_file=None,
    config_file=False,
    source=[str(ROOT / "serving"), str(ROOT / "digit_classifier")],
    concurrency="thread",
)
recorder.start()
contexts = [""]
seconds: dict[str, float] = defaultdict(float)
failed: set[str] = set()
processes: set[str] = set()
uses: dict[str, list[str]] = defaultdict(list)


def enter(context):
    contexts.append(context)
    recorder.switch_context(context)


def leave():
    contexts.pop()
    recorder.switch_context(contexts[-1])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("process"):
            processes.add(item.nodeid)
        for name in item.fixturenames:
            uses[f"fixture {name}"].append(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    enter(item.nodeid)
    try:
        return (yield)
    finally:
        leave()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """Note the lines of a shared fixture apart: they count for each test that uses it."""
    if fixturedef.scope == "function":
        return (yield)
    enter(f"fixture {fixturedef.argname}")
    try:
        return (yield)
    finally:
        leave()


def pytest_runtest_logreport(report):
    seconds[report.nodeid] += report.duration  # its fixtures' time, too: a mutant's run has them
    if not report.passed:
        failed.add(report.nodeid)


def pytest_unconfigure():
    recorder.stop()
    data = recorder.get_data()
    number = {context: at for at, context in enumerate(sorted(data.measured_contexts()))}
    lines = {
        str(Path(file).relative_to(ROOT)): {
            line: [number[each] for each in ran]
            for line, ran in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    passed = {test: taken_s for test, taken_s in seconds.items() if test not in failed}
    record = {"seconds": passed, "processes": sorted(processes & passed.keys()), "uses": uses,
              "contexts": [*number], "lines": lines}  # fmt: skip
    RECORD.write_text(json.dumps(record))
