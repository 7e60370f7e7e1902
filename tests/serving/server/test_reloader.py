"""A new version takes over without a restart; a bad one never does."""

import logging
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Classifier, Client
from serving.config import ModelConfig
from serving.images import Images
from serving.server.reloader import Reloader
from tests.serving.telemetry.test_metrics import scrape, value
from tests.support import published
from tests.support.processes import wait_until
from tests.support.servers import RunningServer, running_server

TIMEOUT_S = 20.0


@pytest.fixture
def model_dir(models: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    shutil.copytree(models, tmp_path / "models")
    return tmp_path / "models" / "digits"


@pytest.fixture
def config(model_dir: Path) -> ModelConfig:
    return ModelConfig(models=model_dir.parent, device="cpu")


@pytest.fixture
def served(config: ModelConfig) -> Iterator[Classifier]:
    with Classifier.open(config) as classifier:
        yield classifier


@pytest.fixture
def reloader(served: Classifier, config: ModelConfig) -> Reloader:
    return Reloader(served, config)


def test_newest_version_takes_over(
    served: Classifier, reloader: Reloader, model_dir: Path, images: Images
) -> None:
    assert not reloader.reload()
    for version in ("2", "10", "9"):
        published.good(model_dir, version)
    assert reloader.reload()
    assert served.model_info().version == served.classify(images[:1]).model_version == "10"
    assert not reloader.reload()
    assert served.metrics.snapshot().reloads == Counter(adopted=1, failed=0)


@pytest.mark.parametrize("kind", published.BAD)
def test_bad_version_leaves_the_old_one_serving(
    served: Classifier,
    reloader: Reloader,
    model_dir: Path,
    images: Images,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = served.classify(images[:20])
    published.BAD[kind](model_dir, "2")
    with caplog.at_level(logging.INFO, "serving"):
        for _ in range(3):  # a version that failed is not tried again
            assert not reloader.reload()
    after = served.classify(images[:20])
    assert after.model_version == "1"
    assert after.probabilities.tobytes() == before.probabilities.tobytes()
    assert served.metrics.snapshot().reloads == Counter(adopted=0, failed=1)
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("refused version 2, version 1 stays in service: ")


@pytest.mark.parametrize("kind", published.SPECIAL)
@pytest.mark.parametrize("file_name", ["manifest.json", "model.onnx"])
def test_what_is_no_regular_file_is_refused_unread(
    served: Classifier, reloader: Reloader, model_dir: Path, kind: str, file_name: str
) -> None:
    published.special(model_dir, "2", file_name, kind)
    assert not reloader.reload()
    published.good(model_dir, "3")
    assert reloader.reload()
    assert served.version == "3"
    assert served.metrics.snapshot().reloads == Counter(adopted=1, failed=1)


def test_endless_model_is_refused_and_its_run_is_ended(
    served: Classifier, reloader: Reloader, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.model.loaded_model._CHECK_LIMIT_S", 0.5)
    published.endless(model_dir, "2")
    assert not reloader.reload()
    wait_until(lambda: all(thread.name != "model-loader" for thread in threading.enumerate()))
    monkeypatch.undo()
    published.good(model_dir, "3")
    assert reloader.reload()
    assert served.version == "3"


def test_endless_newest_version_is_passed_over_at_start(
    config: ModelConfig, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.model.loaded_model._CHECK_LIMIT_S", 2.0)
    published.endless(model_dir, "2")
    with Classifier.open(config) as classifier:
        assert classifier.version == "1"


def test_version_that_was_mended_takes_over(
    served: Classifier, reloader: Reloader, model_dir: Path
) -> None:
    published.BAD["truncated"](model_dir, "2")
    assert not reloader.reload()
    shutil.rmtree(model_dir / "2")
    published.good(model_dir, "2")
    assert reloader.reload()
    assert served.version == "2"


def test_newest_good_version_below_a_bad_one_takes_over(
    served: Classifier, reloader: Reloader, model_dir: Path
) -> None:
    published.good(model_dir, "2")
    published.BAD["garbage"](model_dir, "3")
    assert reloader.reload()
    assert served.version == "2"


def test_version_that_was_removed_gives_way_to_the_one_before(
    served: Classifier, reloader: Reloader, model_dir: Path
) -> None:
    published.good(model_dir, "2")
    assert reloader.reload()
    shutil.rmtree(model_dir / "2")
    assert reloader.reload()
    assert served.version == "1"


def test_vanished_directory_leaves_the_old_one_serving_and_is_logged_once(
    served: Classifier,
    reloader: Reloader,
    model_dir: Path,
    images: Images,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = model_dir.rename(model_dir.parent / "kept")
    with caplog.at_level(logging.INFO, "serving"):
        for _ in range(3):
            assert not reloader.reload()
        assert served.classify(images[:1]).model_version == "1"
        kept.rename(model_dir)
        for _ in range(3):
            assert not reloader.reload()
    assert served.metrics.snapshot().reloads["failed"] == 1
    gone, back = caplog.messages
    assert gone.startswith(f"reload failed, version 1 stays in service: no model in {model_dir}")
    assert back == "the model directory is readable again"


def test_pinned_version_is_never_replaced(model_dir: Path) -> None:
    published.good(model_dir, "2")
    config = ModelConfig(models=model_dir.parent, version="1")
    with Classifier.open(config) as classifier:
        assert not Reloader(classifier, config).reload()
        assert classifier.version == "1"


def test_version_without_the_served_variant_is_refused(model_dir: Path) -> None:
    config = ModelConfig(models=model_dir.parent, precision="int8")
    with Classifier.open(config) as classifier:
        published.good(model_dir, "2")  # fp32 alone
        assert not Reloader(classifier, config).reload()
        assert classifier.version == "1"


def wait_for_version(client: Client, version: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while client.model_info().version != version:
        assert time.monotonic() < deadline_s, f"version {version} never served"
        time.sleep(0.02)


@pytest.fixture
def following(model_dir: Path) -> Iterator[RunningServer]:
    """A server of one's own that looks for versions at SIGHUP."""
    with running_server(model_dir.parent) as server:
        yield server


def test_sighup_reloads_and_every_answer_names_its_version(
    following: RunningServer, model_dir: Path, images: Images
) -> None:
    with Client(following.address) as client:
        assert client.classify(images[:1]).model_version == "1"
        published.good(model_dir, "2")
        following.process.send_signal(signal.SIGHUP)
        wait_for_version(client, "2")
        assert client.classify(images[:1]).model_version == "2"
    samples = scrape(following)
    assert value(samples, "digits_reloads_total", outcome="adopted") == 1
    assert value(samples, "digits_reloads_total", outcome="failed") == 0
    assert following.stop() == 0


def test_interval_reloads(model_dir: Path) -> None:
    with running_server(model_dir.parent, "--reload-interval", "0.05") as server:
        published.good(model_dir, "2")
        with Client(server.address) as client:
            wait_for_version(client, "2")
        assert server.stop() == 0
