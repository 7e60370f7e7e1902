"""Versions that are published whole, or not at all."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from serving.publishing.writer import write_version
from tests.serving.publishing.test_models import with_weights_beside

PUBLISH = """
import os, resource, signal, sys
from pathlib import Path
from serving.publishing.writer import write_version

folder, limit_bytes, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def kill_after_steps(event, args):
    global steps
    steps -= event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
    if steps < 0:
        os.kill(os.getpid(), signal.SIGKILL)

resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
sys.addaudithook(kill_after_steps)
files_of = lambda version: {"a": bytes(100_000), "b": version.encode()}
write_version(folder, files_of, {"config": b"c"})
"""


def publish_in_a_process(folder, *, limit_bytes=1_000_000, steps=1_000_000):
    """Publish where files may not grow over a limit, and die before the next file operation."""
    command = [sys.executable, "-c", PUBLISH, str(folder), str(limit_bytes), str(steps)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def files_of(version):
    return {"manifest.json": json.dumps({"version": version}).encode()}


def test_next_version_is_one_above_the_highest(tmp_path):
    for name in ("2", "10", "notes", ".99"):
        (tmp_path / name).mkdir()
    assert write_version(tmp_path, files_of).name == "11"


def test_model_file_that_was_edited_is_kept(tmp_path):
    write_version(tmp_path, files_of, {"config.pbtxt": b"ours"})
    assert (tmp_path / "config.pbtxt").read_bytes() == b"ours"
    (tmp_path / "config.pbtxt").write_bytes(b"theirs")
    write_version(tmp_path, files_of, {"config.pbtxt": b"ours"})
    assert (tmp_path / "config.pbtxt").read_bytes() == b"theirs"


def test_failing_contents_publish_nothing(tmp_path):
    def fail(version):
        raise KeyError(version)

    with pytest.raises(KeyError):
        write_version(tmp_path, fail, {"config.pbtxt": b"ours"})
    assert list(tmp_path.iterdir()) == []


def test_publications_at_the_same_time_get_different_versions(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: write_version(tmp_path, files_of), range(12)))
    assert sorted(int(folder.name) for folder in folders) == list(range(1, 13))
    for folder in folders:
        assert json.loads((folder / "manifest.json").read_text())["version"] == folder.name


def test_killed_publication_leaves_only_whole_versions(tmp_path):
    for steps in count(step=2):
        done = publish_in_a_process(tmp_path, steps=steps)
        versions = [name for name in visible(tmp_path) if name != "config"]
        for version in versions:
            assert (tmp_path / version / "a").stat().st_size == 100_000
            assert (tmp_path / version / "b").read_text() == version
        if done.returncode == 0:
            break
    assert steps > 10  # it was killed at every second step before
    assert not (tmp_path / ".staging").exists()


EACH_CALL = """
import os, shutil, signal, sys
from pathlib import Path

from serving.model import repository
from serving.publishing.writer import write_version

model, root = Path(sys.argv[1]), Path(sys.argv[2])
files = {path.name: path.read_bytes() for path in (model, model.with_name("weights.bin"))}
publish = lambda: write_version(root, lambda version: files, {"config.pbtxt": b"#"})

def is_system_call(function):
    of_files = type(getattr(function, "__self__", None)).__module__ == "_io"
    return of_files or getattr(function, "__module__", "") in ("posix", "fcntl", "io", "_io")

def die_before(steps):
    def count(frame, event, function):
        nonlocal steps
        steps -= event == "c_call" and is_system_call(function)
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)

def check():
    assert {path.name for path in root.iterdir()} <= {".staging", "config.pbtxt", "1", "2"}
    found = repository.versions(root)
    for version in found:
        _, data, weights = repository.load(root, version, is_described=False)
        assert {model.name: data, **weights} == files, version
    return found

publish()
killed = {"1": 0, "2": 0}
while True:
    process = os.fork()
    if not process:
        die_before(sum(killed.values()))
        publish()
        sys.setprofile(None)
        os._exit(0)
    code = os.waitpid(process, 0)[1]
    newest = check()[0]
    shutil.rmtree(root / "2", ignore_errors=True)
    if not code:
        break
    assert code == signal.SIGKILL, code
    killed[newest] += 1
    assert publish().name == "2" == check()[0] and not (root / ".staging").exists()
    shutil.rmtree(root / "2")
assert newest == "2" and not (root / ".staging").exists()
print(*killed.values())
"""


def test_publication_killed_before_any_system_call_leaves_a_repository_that_serves(tmp_path):
    """In one process after the other, each a call later; the next publication is whole."""
    file = with_weights_beside(tmp_path).rename(tmp_path / "model.onnx")
    command = [sys.executable, "-c", EACH_CALL, str(file), str(tmp_path / "net")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before > 50
    assert after > 5


def test_full_disk_leaves_nothing_visible(tmp_path):
    full = publish_in_a_process(tmp_path, limit_bytes=50_000)
    assert "File too large" in full.stderr
    assert list(tmp_path.iterdir()) == []
    assert publish_in_a_process(tmp_path).returncode == 0
    assert visible(tmp_path) == ["1", "config"]


def test_publishing_leaves_no_descriptor_open_and_no_lock_where_it_fails(tmp_path, monkeypatch):
    """A descriptor that stays open keeps the lock: the next publisher would wait for ever."""

    def full(descriptor):
        raise OSError(28, "No space left on device")

    opened = os.listdir("/proc/self/fd")
    write_version(tmp_path / "mine", files_of)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_version(tmp_path / "mine", files_of)
    assert os.listdir("/proc/self/fd") == opened
    assert write_version(tmp_path / "mine", files_of).name == "2"
