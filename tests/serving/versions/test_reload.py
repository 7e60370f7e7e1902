"""A new version takes over without a restart; a bad one never does."""

import logging
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from digit_classifier import Classifier
from serving.config import ModelConfig
from serving.versions.catalog import Catalog
from tests.serving.telemetry.test_metrics import scrape, value
from tests.support import published
from tests.support.servers import running_server, wait_until

TIMEOUT_S = 20.0


@pytest.fixture
def config(model_dir):
    return ModelConfig(models=model_dir.parent, device="cpu")


@pytest.fixture
def counts():
    return Counter()


@pytest.fixture
def catalog(config, counts):
    catalog = Catalog(config)
    catalog.count_reload = lambda outcome: counts.update([outcome])
    return catalog


def version_of(catalog):
    return catalog.models["digits"].default.version


def test_newest_version_takes_over(catalog, counts, model_dir, images):
    assert not catalog.reload()
    for version in ("2", "10", "9"):
        published.good(model_dir, version)
    assert catalog.reload()
    assert version_of(catalog) == "10"
    assert not catalog.reload()
    assert list(catalog.models["digits"].versions) == ["10"]
    assert counts == Counter(loaded=1)


@pytest.mark.parametrize("kind", published.BAD)
def test_bad_version_leaves_the_old_one_serving(catalog, counts, model_dir, kind, caplog):
    before = catalog.models["digits"]
    published.BAD[kind](model_dir, "2")
    with caplog.at_level(logging.WARNING, "serving"):
        for _ in range(3):  # a version that failed is not tried again
            assert not catalog.reload()
    assert catalog.models["digits"].versions == before.versions
    assert counts == Counter(failed=1)
    (line,) = caplog.messages
    assert line.startswith("model digits: refused version 2, version 1 stays in service: ")


def test_classifier_that_mixes_rows_runs_its_images_alone(catalog, model_dir, caplog):
    published.neighbours(model_dir, "2")
    with caplog.at_level(logging.WARNING, "serving"):
        assert catalog.reload()
    served = catalog.models["digits"].default
    assert (served.version, served.settings.max_batch_size) == ("2", 1)
    assert "batching off: probabilities (CumSum): it looks over rows" in caplog.text


@pytest.mark.parametrize("kind", published.SPECIAL)
@pytest.mark.parametrize("file_name", ["manifest.json", "model.onnx"])
def test_what_is_no_regular_file_is_refused_unread(catalog, counts, model_dir, kind, file_name):
    published.special(model_dir, "2", file_name, kind)
    assert not catalog.reload()
    published.good(model_dir, "3")
    assert catalog.reload()
    assert version_of(catalog) == "3"
    assert counts == Counter(loaded=1, failed=1)


def test_endless_model_is_refused_and_its_run_is_ended(catalog, model_dir, monkeypatch):
    monkeypatch.setattr("serving.model.loading._CHECK_LIMIT_S", 0.5)
    published.endless(model_dir, "2")
    assert not catalog.reload()
    wait_until(lambda: all(thread.name != "model-loader" for thread in threading.enumerate()))
    monkeypatch.undo()
    published.good(model_dir, "3")
    assert catalog.reload()
    assert version_of(catalog) == "3"


@pytest.mark.parametrize("names", [None, ("digits",)])
def test_vanished_directory_leaves_the_old_one_serving_and_is_logged_once(
    config, names, model_dir, caplog
):
    catalog = Catalog(replace(config, names=names))
    kept = model_dir.rename(model_dir.parent / ".kept")
    with caplog.at_level(logging.INFO, "serving"):
        for _ in range(3):
            assert not catalog.reload()
        assert version_of(catalog) == "1"
        kept.rename(model_dir)
        for _ in range(3):
            assert not catalog.reload()
    gone, back = caplog.messages
    assert f"stays in service: no model in {model_dir.parent}" in gone
    assert back.endswith(" can be read again")


def wait_for_version(client, version):
    deadline_s = time.monotonic() + TIMEOUT_S
    while client.describe().version != version:
        assert time.monotonic() < deadline_s, f"version {version} never served"
        time.sleep(0.02)


@pytest.fixture
def following(model_dir):
    """A server of one's own that looks for versions at SIGHUP."""
    with running_server(model_dir.parent) as server:
        yield server


def test_sighup_reloads_and_every_answer_names_its_version(following, model_dir, images):
    with Classifier.connect(following.address) as client:
        assert client.classify(images[:1]).model_version == "1"
        published.good(model_dir, "2")
        following.process.send_signal(signal.SIGHUP)
        wait_for_version(client, "2")
        assert client.classify(images[:1]).model_version == "2"
    samples = scrape(following)
    assert value(samples, "serving_reloads_total", outcome="loaded") == 1
    assert value(samples, "serving_reloads_total", outcome="failed") == 0
    assert following.stop() == 0
